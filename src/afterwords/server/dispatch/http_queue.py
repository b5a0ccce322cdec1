"""The job queue of a server elsewhere: the port `JobQueue` over HTTP, for `afterwords worker`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from hashlib import sha256
from typing import Any, BinaryIO, Final, TypeVar

import httpx
from cachetools import TTLCache
from pydantic import BaseModel, ValidationError

from afterwords import __version__
from afterwords.client.parsing import parse_error
from afterwords.client.profiles import Access
from afterwords.client.requests import Request, Response
from afterwords.client.transport import CONNECT_TIMEOUT_S, client_settings, response_headers
from afterwords.errors import (
    AfterwordsError,
    InvalidRequestError,
    InvalidResponseError,
    NotFoundError,
    ServerSetupError,
    ServiceUnavailableError,
    StaleAttemptError,
    UnauthorizedError,
    pip_install,
)
from afterwords.models import new_id
from afterwords.network import explain_network_errors, root_cause
from afterwords.server.dispatch import messages
from afterwords.server.dispatch.audio_stream import AudioListener, AudioStreams
from afterwords.server.dispatch.protocol import (
    PART_MAX_BYTES,
    POLL_MAX_S,
    PROTOCOL,
    ClaimAnswer,
    ClaimBody,
    ClaimedJob,
    EndBody,
    HeartbeatBody,
    Offer,
    WantedAnswer,
    WorkerVoices,
)
from afterwords.server.records import Claim, JobProgress, ReportKind, StoredJob
from afterwords.server.tracing import current_traceparent

_log = logging.getLogger(__name__)

TIMEOUT_S: Final = 30.0
"""How long the server may take to answer, beyond a wait that was asked for."""
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 2.0
SETTLE_S: Final = 5.0
"""How long a poll may take to end after its claim was settled."""
CACHE_MAX_BYTES: Final = 64 << 20
CACHE_TTL_S: Final = 300.0
"""How long recordings and prompts stay in memory: also those of voices that are deleted meanwhile."""
CLAIMS_MAX: Final = 1024
CLAIM_TTL_S: Final = 900.0
"""How long a claim, with its text, stays in memory after its last heartbeat."""
_CHUNK_BYTES: Final = 64 * 1024
_UNAVAILABLE: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

M = TypeVar("M", bound=BaseModel)


class HttpJobQueue:
    """The jobs of a server, for the dispatcher of a worker.

    Attributes:
        offers: The backends of the worker.
        streams: The streams that the dispatcher writes.
        progress: Returns the progress of a job.
        n_running: Returns how many jobs run.
        cancel: Stops the attempt at a job.
        is_over: Set when no more jobs are claimed.
        failure: Why, if the server does not accept the worker any more.

    Args:
        once: Claim jobs only as long as some wait.
        max_jobs: Number of jobs to claim.
    """

    def __init__(
        self, access: Access, token: str, *, name: str, once: bool = False, max_jobs: int | None = None
    ) -> None:
        self.offers: Mapping[str, Offer] = {}
        self.streams: AudioStreams | None = None
        self.progress: Callable[[StoredJob], JobProgress] = lambda _: JobProgress("waiting")
        self.n_running: Callable[[], int] = lambda: 0
        self.cancel: Callable[[str], None] = lambda _: None
        self.is_over = asyncio.Event()
        self.failure: AfterwordsError | None = None
        self._access = access
        self._token = token
        self._name = name
        self._once = once
        self._n_left = max_jobs
        self._claim_id = new_id()
        self._n_requests = 0
        self._n_unanswered = 0  # with this ID
        self._interrupted = asyncio.Event()
        self._is_away = False
        self._claims: TTLCache[tuple[str, int], tuple[Claim, str]] = TTLCache(CLAIMS_MAX, CLAIM_TTL_S)
        self._cache: TTLCache[tuple[str, ...], bytes] = TTLCache(CACHE_MAX_BYTES, CACHE_TTL_S, getsizeof=len)
        self._uploads: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}  # by job
        with explain_network_errors():
            # Each attempt may have several requests open, and the dispatcher limits the attempts.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
            self._http = httpx.AsyncClient(**{**client_settings(access), "limits": limits})

    async def close(self) -> None:
        """Close all connections."""
        tasks = [*self._uploads.values(), *self._watches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()

    async def check(self) -> None:
        """Wait until the server answers, and check that it accepts this worker.

        Raises:
            UnauthorizedError: The token is wrong or revoked.
            ServerSetupError: The server speaks another protocol.
        """
        await self._poll([], [], [], wait_s=0)
        _log.info("connected to %s as %s", self._access.base_url, self._name)

    # -- the port JobQueue

    async def claim(
        self,
        *,
        backends: Sequence[str],
        worker: str,  # noqa: ARG002 - it has its own name
        skip_voices: Sequence[str] = (),
        prepare: Sequence[str] = (),
    ) -> Claim | None:
        self._interrupted.clear()
        if self.is_over.is_set():
            return None
        wait_s = 0 if self._once else POLL_MAX_S
        try:
            claimed = await self._wait_for_job(backends, skip_voices, prepare, wait_s=wait_s)
        except (UnauthorizedError, ServerSetupError) as error:
            self.failure = error
            self.is_over.set()
            return None
        if claimed is None:
            if self._once and not self.n_running() and not self._interrupted.is_set():
                self.is_over.set()
            return None
        self._claim_id, self._n_unanswered = new_id(), 0
        if self._n_left is not None and not claimed.is_preparation:
            self._n_left -= 1
            if not self._n_left:
                self.is_over.set()
        return self._accept(claimed)

    def interrupt(self) -> None:
        self._interrupted.set()

    async def heartbeat(self, job_id: str, attempt: int) -> bool:
        claim, token = self._find(job_id, attempt)
        self._claims[job_id, attempt] = claim, token
        progress = self.progress(claim.job)
        body = {"step": progress.step, "fraction": progress.fraction}
        try:
            response = await self._send(claim, "POST", "heartbeat", json=HeartbeatBody.model_validate(body))
        except StaleAttemptError:
            return False
        return parse_answer(WantedAnswer, response).is_wanted

    async def reference(self, claim: Claim) -> bytes:
        wav = await self._fetch(claim, "reference", claim.voice.ref_sha256)
        if wav is None or sha256(wav).hexdigest() != claim.voice.ref_sha256:
            raise ServiceUnavailableError("The recording arrived damaged.")
        return wav

    async def prompt(self, claim: Claim, *, version: str) -> bytes | None:
        params = _prompt_params(claim, version)
        return await self._fetch(claim, "prompt", params["digest"], **params)

    async def save_prompt(self, claim: Claim, *, version: str, prompt: bytes, is_fast: bool = False) -> None:
        params = {**_prompt_params(claim, version), "is_fast": str(is_fast).lower()}
        await self._send(claim, "PUT", "prompt", params=params, content=prompt)
        self._keep(("prompt", claim.voice.voice_id, params["digest"]), prompt)

    async def find_deleted(self, voice_ids: Sequence[str]) -> set[str]:
        body = WorkerVoices(voice_ids=list(voice_ids))
        response = await self._request("POST", f"{self._access.base_url}/v1/workers/deleted", self._token, json=body)
        deleted = parse_answer(WorkerVoices, response).voice_ids
        for key in [*self._cache]:
            if key[1] in deleted:
                del self._cache[key]
        return set(deleted)

    async def checkpoint(self, claim: Claim, *, version: str) -> bytes | None:
        response = await self._send(claim, "GET", "checkpoint", params=_prompt_params(claim, version))
        return None if response.status_code == 204 else response.content

    async def save_checkpoint(self, claim: Claim, *, version: str, checkpoint: bytes) -> None:
        if len(checkpoint) <= PART_MAX_BYTES:
            params = _prompt_params(claim, version)
            await self._send(claim, "PUT", "checkpoint", params=params, content=checkpoint)

    async def save_report(self, claim: Claim, kind: ReportKind, report: bytes) -> None:
        await self._send(claim, "PUT", kind, content=report)

    async def complete(self, job_id: str, attempt: int | None, wav: BinaryIO, *, synth_ms: int | None = None) -> None:
        claim, _ = self._find(job_id, attempt)
        wav.seek(0)
        digest, n_bytes = sha256(), 0
        while chunk := wav.read(_CHUNK_BYTES):
            digest.update(chunk)
            n_bytes += len(chunk)

        async def content() -> AsyncIterator[bytes]:
            wav.seek(0)
            while chunk := wav.read(_CHUNK_BYTES):
                yield chunk

        headers = {"Content-Type": "audio/wav", "Content-Length": str(n_bytes), "X-Content-SHA256": digest.hexdigest()}
        if synth_ms is not None:
            headers["X-Synthesis-Time-Ms"] = str(synth_ms)
        await self._send(claim, "PUT", "audio", headers=headers, content=content())
        self._stop_watch(job_id)

    async def fail(self, job_id: str, attempt: int | None, *, error: str) -> None:
        await self._end(job_id, attempt, EndBody(outcome="failed", error=error))

    async def retry(self, job_id: str, attempt: int, *, error: str, max_attempts: int | None = None) -> None:
        await self._end(job_id, attempt, EndBody(outcome="retry", error=error, max_attempts=max_attempts))

    async def release(self, job_id: str, attempt: int) -> None:
        await self._end(job_id, attempt, EndBody(outcome="released"))

    async def end_preparation(self, job_id: str, attempt: int) -> None:
        await self._end(job_id, attempt, EndBody(outcome="prepared"))

    # -- claims

    async def _wait_for_job(
        self, backends: Sequence[str], skip_voices: Sequence[str], prepare: Sequence[str], *, wait_s: float
    ) -> ClaimedJob | None:
        """Poll until there is a job, the queue is interrupted, or, with `wait_s` 0, there is no job.

        An interrupted poll is ended by a second claim with the same ID, which wishes for nothing and so returns only
        what the first one was given. So no job is given to a worker that stopped waiting, and connections stay open.
        """
        poll = asyncio.create_task(self._poll(backends, skip_voices, prepare, wait_s=wait_s))
        interruption = asyncio.create_task(self._interrupted.wait())
        try:
            await asyncio.wait({poll, interruption}, return_when=asyncio.FIRST_COMPLETED)
            if poll.done():
                return poll.result()
            if self._is_away:
                return None
            settled = await self._request_claim([], [], [], wait_s=0)
            await asyncio.wait({poll}, timeout=SETTLE_S)
            if settled is None and poll.done():  # given by another server, which does not know the second claim
                return poll.result()
            return settled
        finally:
            for task in (poll, interruption):
                task.cancel()
            await asyncio.gather(poll, interruption, return_exceptions=True)

    async def _poll(
        self, backends: Sequence[str], skip_voices: Sequence[str], prepare: Sequence[str], *, wait_s: float
    ) -> ClaimedJob | None:
        """Ask for a job until there is one, also while the server is away."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                claimed = await self._request_claim(backends, skip_voices, prepare, wait_s=wait_s)
            except ServiceUnavailableError as error:
                if not self._is_away:
                    _log.warning("the server is away: %s It is tried again until it is back.", error.message)
                self._is_away = True
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            if self._is_away:
                _log.info("the server is back")
            self._is_away, pause_s = False, FIRST_PAUSE_S
            if claimed is not None or not wait_s or self._interrupted.is_set():
                return claimed

    async def _request_claim(
        self, backends: Sequence[str], skip_voices: Sequence[str], prepare: Sequence[str], *, wait_s: float
    ) -> ClaimedJob | None:
        self._cache.expire()
        self._claims.expire()
        self._n_requests += 1
        body = ClaimBody(
            protocol=PROTOCOL,
            version=__version__,
            worker=self._name,
            claim_id=self._claim_id,
            is_repeated=self._n_unanswered > 0,
            number=self._n_requests,
            offers=dict(self.offers),
            backends=list(backends),
            skip_voices=list(skip_voices),
            prepare=list(prepare),
            wait_s=wait_s,
        )
        self._n_unanswered += 1
        try:
            response = await self._request(
                "POST", f"{self._access.base_url}/v1/workers/claim", self._token, json=body, wait_s=wait_s
            )
        except NotFoundError as error:
            raise ServerSetupError(
                f"{self._access.base_url} is not an afterwords server, or is older than this worker.",
                hint=f"check the address, and install the same version of afterwords on both: {pip_install()}.",
            ) from error
        except InvalidRequestError as error:
            if error.code != "worker_protocol":
                raise
            raise ServerSetupError(error.message, hint=await self._find_version()) from error
        except UnauthorizedError:
            raise UnauthorizedError(
                f"{self._access.base_url} refuses the worker token: it is wrong or was revoked.",
                hint="create one on the machine of the server: afterwords workers token create",
            ) from None
        self._n_unanswered -= 1
        return parse_answer(ClaimAnswer, response).job

    async def _find_version(self) -> str:
        """Return what to install in order to fit the server."""
        with suppress(AfterwordsError, ValueError, KeyError):
            health = (await self._request("GET", f"{self._access.base_url}/v1/health", "")).json()
            return f'on this machine: pip install "afterwords=={health["version"]}".'
        return "install the version of the server on this machine."

    # -- attempts

    def _accept(self, claimed: ClaimedJob) -> Claim:
        """Keep what the requests for an attempt need, and stream its audio if a client listens."""
        claim = claimed.as_claim()
        number = claim.job.job_id, claim.job.attempt
        self._claims[number] = claim, claimed.token
        if claimed.is_streamed and self.streams is not None:
            listener = self.streams.listen(claim.job.job_id)
            upload = asyncio.create_task(self._upload(claim, listener, takes_words=claimed.takes_words))
            self._uploads[number] = upload
            upload.add_done_callback(lambda _: self._uploads.pop(number, None))
        self._stop_watch(claim.job.job_id)
        self._watches[claim.job.job_id] = asyncio.create_task(self._watch(claim))
        return claim

    def _url(self, job_id: str) -> str:
        return f"{self._access.base_url}/v1/jobs/{job_id}"

    def _find(self, job_id: str, attempt: int | None) -> tuple[Claim, str]:
        found = self._claims.get((job_id, attempt or 0))
        if found is None:
            raise StaleAttemptError
        return found

    async def _end(self, job_id: str, attempt: int | None, body: EndBody) -> None:
        claim, _ = self._find(job_id, attempt)
        if upload := self._uploads.get((job_id, attempt or 0)):
            upload.cancel()
        self._stop_watch(job_id)
        await self._send(claim, "POST", "end", json=body)

    async def _watch(self, claim: Claim) -> None:
        """Stop the attempt once its job is cancelled: the next heartbeat would notice it later."""
        is_wanted = True
        while is_wanted:
            try:
                params = {"wait_s": str(POLL_MAX_S)}
                response = await self._send(claim, "GET", "wanted", params=params, wait_s=POLL_MAX_S)
                is_wanted = parse_answer(WantedAnswer, response).is_wanted
            except StaleAttemptError:
                is_wanted = False
            except AfterwordsError as error:
                _log.debug("job %s: it is not watched: %s", claim.job.job_id, error.code)
            await asyncio.sleep(FIRST_PAUSE_S if is_wanted else 0)  # a server that stops answers at once
        del self._watches[claim.job.job_id]
        self.cancel(claim.job.job_id)

    def _stop_watch(self, job_id: str) -> None:
        if watch := self._watches.pop(job_id, None):
            watch.cancel()

    async def _fetch(self, claim: Claim, name: str, cache_key: str, **params: str) -> bytes | None:
        """Fetch what belongs to a voice, or take it from the cache."""
        key = (name, claim.voice.voice_id, cache_key)
        if (data := self._cache.get(key)) is not None:
            return data
        response = await self._send(claim, "GET", name, params=params)
        if response.status_code == 204:
            return None
        self._keep(key, response.content)
        return response.content

    def _keep(self, key: tuple[str, ...], data: bytes) -> None:
        if len(data) <= CACHE_MAX_BYTES:
            self._cache[key] = data

    async def _upload(self, claim: Claim, listener: AudioListener, *, takes_words: bool) -> None:
        """Send the audio while it is generated, with its words if it has any and the server takes them.

        If that fails, the server's listeners get the rest with the result.
        """
        try:
            sample_rate = await listener.wait_until_started()
            if sample_rate is None:
                return

            has_words = takes_words and listener.words is not None

            async def audio() -> AsyncGenerator[bytes, None]:
                n_sent = 0
                async for chunk in listener:
                    if has_words:
                        words = (listener.words or ())[n_sent:]
                        n_sent += len(words)
                        yield messages.pack("audio", chunk, words=[word.model_dump() for word in words])
                    else:
                        yield chunk

            params = {"sample_rate": str(sample_rate), "has_words": str(has_words).lower()}
            async with aclosing(audio()) as content:
                await self._send(claim, "POST", "stream", params=params, content=content)
        except AfterwordsError as error:
            _log.debug("job %s: its audio was not streamed: %s", claim.job.job_id, error.code)
        finally:
            listener.close()

    async def _send(self, claim: Claim, method: str, what: str, **options: Any) -> httpx.Response:
        """Send a request for an attempt.

        Raises:
            ServiceUnavailableError: The server does not answer, or can't do it at the moment.
            StaleAttemptError: The attempt is not wanted any more.
        """
        _, token = self._find(claim.job.job_id, claim.job.attempt)
        if traceparent := current_traceparent() or claim.job.traceparent:
            options["headers"] = {**options.get("headers", {}), "traceparent": traceparent}
        try:
            return await self._request(method, f"{self._url(claim.job.job_id)}/{what}", token, **options)
        except (NotFoundError, UnauthorizedError):
            raise StaleAttemptError from None

    async def _request(
        self, method: str, url: str, token: str, *, json: BaseModel | None = None, wait_s: float = 0, **options: Any
    ) -> httpx.Response:
        server, _, path = url.partition("/v1/")
        headers = dict(options.pop("headers", {}))
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if json is not None:
            headers["Content-Type"] = "application/json"
            options["content"] = json.model_dump_json().encode()
        timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S, read=TIMEOUT_S + wait_s, pool=None)
        try:
            response = await self._http.request(method, url, headers=headers, timeout=timeout, **options)
        except httpx.TransportError as error:
            why = getattr(root_cause(error), "strerror", None) or type(error).__name__
            raise ServiceUnavailableError(f"Can't reach {server}: {str(why).lower()}.") from error
        if response.is_success:
            return response
        facts = Response(response.status_code, response_headers(response), response.content)
        refusal = parse_error(facts, Request(method, f"/v1/{path}"))
        if response.status_code in _UNAVAILABLE and refusal.code not in ("reference_missing", "audio_lost"):
            raise ServiceUnavailableError(f"{server} answered {response.status_code}.") from refusal
        raise refusal


def _prompt_params(claim: Claim, version: str) -> dict[str, str]:
    """Return the query by which the server recognizes a prompt or checkpoint."""
    return {"version": version, "digest": claim.voice.prompt_digest(backend=claim.job.backend, version=version)}


def parse_answer(model: type[M], response: httpx.Response) -> M:
    """Return the answer of a server.

    Raises:
        InvalidResponseError: It does not follow the protocol.
    """
    try:
        return model.model_validate_json(response.content)
    except ValidationError:
        raise InvalidResponseError.for_reason("it does not follow the protocol of workers") from None
