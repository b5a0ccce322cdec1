# Generated from client/_async/jobs.py by `make client`. Do not edit.
"""The jobs of a server, and a job with access to its audio."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import PrivateAttr

from afterwords.client._sync.session import Session
from afterwords.client.files import parse_option, write_file
from afterwords.client.parsing import SpeechResponse, check_audio, check_ready, parse_job, parse_model, validate
from afterwords.client.requests import JOB_TIMEOUT_S, PAGE_MAX, Request, long_poll_s, resource_path
from afterwords.errors import ConflictError, JobTimeoutError
from afterwords.models import Alignment, Job, JobStatus, Verification

if TYPE_CHECKING:
    from afterwords.audio.audio import Audio
    from afterwords.backends.base import Progress

_PROGRESS_INTERVAL_S: Final = 1
_POLL_MIN_S, _POLL_MAX_S = 0.1, 2.0  # for a server without long polls


class Jobs:
    """The jobs of a server: `client.jobs`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, job_id: str) -> RemoteJob:
        """Return a job with its status.

        Raises:
            NotFoundError: The server has no such job.
        """
        return RemoteJob._from_job(self, self._get(job_id))

    def list(self, *, status: JobStatus | str | None = None, page_size: int = 100) -> Iterator[RemoteJob]:
        """Iterate over the jobs, newest first; a page is fetched when it is needed."""
        jobs = self._session.pages(
            "/v1/jobs",
            lambda fields, response: validate(Job, fields, response),
            id_field="job_id",
            feature="listing jobs",
            status=None if status is None else parse_option(JobStatus, status, name="status").value,
            limit=max(1, min(page_size, PAGE_MAX)),
        )
        return (RemoteJob._from_job(self, job) for job in jobs)

    def wait(self, job_id: str, *, timeout_s: float = JOB_TIMEOUT_S, progress: Progress | None = None) -> RemoteJob:
        """Wait until a job is ready.

        Args:
            job_id: The ID of the job.
            timeout_s: How long to wait, in seconds.
            progress: Called about once a second with the fraction of the current step that is done, from 0 to 1, and
                the step: "waiting", "loading", "preparing" or "speaking".

        Raises:
            JobFailedError, JobError: The job has no audio.
            JobTimeoutError: The job is still pending, and continues.
        """
        deadline = time.monotonic() + timeout_s
        pause_s = _POLL_MIN_S
        while True:
            began = time.monotonic()
            wait_s = long_poll_s(deadline - began)
            job = self._get(job_id, wait_s=min(_PROGRESS_INTERVAL_S, wait_s) if progress else wait_s)
            if job.status is not JobStatus.PENDING:
                return RemoteJob._from_job(self, check_ready(job))
            if progress:
                progress(job.progress or 0.0, job.step or "waiting")
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise JobTimeoutError(
                    f"The job {job_id} is still pending after {timeout_s:.3g} s.",
                    hint=f"it continues; wait for it again: afterwords jobs wait {job_id}",
                    job_id=job_id,
                )
            if time.monotonic() - began < 1.0:  # the server does not support long polls
                self._session.sleep(min(pause_s, left_s))
                pause_s = min(_POLL_MAX_S, pause_s * 1.5)

    def cancel(self, job_id: str) -> RemoteJob:
        """Cancel a pending job; nothing is charged for it.

        Raises:
            ConflictError: The job has already ended.
        """
        path = resource_path("/v1/jobs", job_id)
        request = Request("DELETE", path, missing_code="job_not_found", feature="cancelling a job")
        return RemoteJob._from_job(self, parse_job(self._session.request(request)))

    def audio(self, job_id: str) -> Audio:
        """Return the audio of a job.

        Raises:
            NotFoundError: The job is not ready.
        """
        from afterwords.client.audio import decode_speech

        speech = SpeechResponse(self.data(job_id), None, None, job_id)
        return decode_speech(speech)

    def alignment(self, job_id: str) -> Alignment:
        """Return when each character is spoken, of a job that was submitted with `timestamps`.

        Raises:
            NotFoundError: The job is not ready.
            UnavailableError: The job has no timestamps.
        """
        path = f"{resource_path('/v1/jobs', job_id)}/timestamps"
        response = self._session.request(
            Request("GET", path, missing_code="job_not_found", feature="timestamps of jobs")
        )
        return parse_model(response, Alignment)

    def verification(self, job_id: str) -> Verification:
        """Return how the speech compares with the text, of a job that was submitted with `verify`.

        Raises:
            NotFoundError: The job is not ready.
            UnavailableError: The job has no verification.
        """
        path = f"{resource_path('/v1/jobs', job_id)}/verification"
        response = self._session.request(Request("GET", path, missing_code="job_not_found", feature="verified speech"))
        return parse_model(response, Verification)

    def download(self, job_id: str, path: Path | str) -> Path:
        """Write the audio of a job to a file, completely or not at all, and return its path."""
        return write_file(self.data(job_id), path)

    def data(self, job_id: str) -> bytes:
        """Return the audio file of a job.

        Raises:
            NotFoundError: The job is not ready.
        """
        path = f"{resource_path('/v1/jobs', job_id)}/audio"
        response = self._session.download(Request("GET", path, missing_code="job_not_found", is_download=True))
        check_audio(response)
        return response.body

    def _get(self, job_id: str, *, wait_s: int = 0) -> Job:
        path = resource_path("/v1/jobs", job_id)
        params = {"wait": wait_s} if wait_s else {}
        request = Request("GET", path, params=params, missing_code="job_not_found", wait_s=wait_s)
        return parse_job(self._session.request(request))


class RemoteJob(Job):
    """A job of a server, with access to its audio."""

    _jobs: Jobs = PrivateAttr()
    _speech: SpeechResponse | None = PrivateAttr(default=None)
    _backend: str | None = PrivateAttr(default=None)
    _left_out: tuple[str, ...] = PrivateAttr(default=())
    _notices: tuple[str, ...] = PrivateAttr(default=())

    @classmethod
    def _from_job(
        cls,
        jobs: Jobs,
        job: Job,
        speech: SpeechResponse | None = None,
        *,
        backend: str | None = None,
        left_out: tuple[str, ...] = (),
        notices: tuple[str, ...] = (),
    ) -> RemoteJob:
        remote = cls.model_validate(job.model_dump())
        remote._jobs, remote._speech, remote._backend = jobs, speech, backend
        remote._left_out, remote._notices = left_out, notices
        return remote

    @property
    def left_out(self) -> tuple[str, ...]:
        """The words of the text that the backend can't speak, if the response to the request named them."""
        return self._left_out

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences about markup of the text that is spoken as text or ignored, if the response named any."""
        return self._notices

    @property
    def backend(self) -> str | None:
        """The backend that speaks; None if the server did not name it."""
        return self._backend

    @property
    def is_cached(self) -> bool:
        """The speech was in the server's cache, so nothing was charged."""
        return self._speech is not None and self._speech.is_cached

    def wait(self, *, timeout_s: float = JOB_TIMEOUT_S, progress: Progress | None = None) -> RemoteJob:
        """Wait until the job is ready, and return it as it is then.

        The arguments and errors are those of `client.jobs.wait`.
        """
        if self.status is JobStatus.READY:
            return self
        done: Job = self._jobs.wait(self._id(), timeout_s=timeout_s, progress=progress)
        done = done.model_copy(update={"voice_id": self.voice_id or done.voice_id})
        return RemoteJob._from_job(
            self._jobs, done, backend=self._backend, left_out=self._left_out, notices=self._notices
        )

    def audio(self) -> Audio:
        """Return the audio.

        Raises:
            NotFoundError: The job is not ready.
        """
        from afterwords.client.audio import decode_speech

        speech = SpeechResponse(self.data(), self.voice_id, self._backend, self.job_id)
        return decode_speech(speech)

    def alignment(self) -> Alignment:
        """Return when each character is spoken. The errors are those of `client.jobs.alignment`."""
        return self._jobs.alignment(self._id())

    def verification(self) -> Verification:
        """Return how the speech compares with the text. The errors are those of `client.jobs.verification`."""
        return self._jobs.verification(self._id())

    def download(self, path: Path | str) -> Path:
        """Write the audio to a file, completely or not at all, and return its path."""
        return write_file(self.data(), path)

    def cancel(self) -> RemoteJob:
        """Cancel the job; nothing is charged for it.

        Raises:
            ConflictError: The job has already ended.
        """
        return self._jobs.cancel(self._id())

    def data(self) -> bytes:
        """Return the audio file.

        Raises:
            NotFoundError: The job is not ready.
        """
        return self._speech.data if self._speech is not None else self._jobs.data(self._id())

    def _id(self) -> str:
        if self.job_id is None:  # the speech was in the cache, so there is no job
            raise ConflictError(f"The job is already {self.status}, so it can't be cancelled.", code="job_final")
        return self.job_id
