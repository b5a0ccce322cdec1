"""A client of an afterwords server.

async with afterwords.AsyncClient("https://voices.example.com", api_key="aw_...") as client:
    audio = await client.say("Hello", voice="me")
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Iterable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import httpx

from afterwords.client._async.jobs import AsyncJobs, AsyncRemoteJob
from afterwords.client._async.keys import AsyncKeys
from afterwords.client._async.session import AsyncSession
from afterwords.client._async.stream import AsyncLiveSpeech, AsyncRemoteBytes, AsyncRemoteSpeech
from afterwords.client._async.voices import AsyncVoices
from afterwords.client.files import parse_option
from afterwords.client.parsing import (
    SpeechResponse,
    check_audio,
    parse_job,
    parse_model,
    parse_notices,
    parse_speech,
)
from afterwords.client.profiles import find_access
from afterwords.client.requests import (
    FIRST_AUDIO_S,
    JOB_TIMEOUT_S,
    TIMEOUT_S,
    Request,
    Response,
    drop_none,
    ensure_idempotency_key,
    estimate_request,
    long_poll_s,
    resource_path,
    speech_fields,
    synthesis_request,
)
from afterwords.models import Estimate, FormatName, Health, Job, JobStatus, SpeechFormat, Usage, Voice

if TYPE_CHECKING:
    from afterwords.audio.audio import Audio


class AsyncClient:
    """A client of an afterwords server. Tasks can share it. Use it in `async with`, or close it.

    Args:
        base_url: The server's address. Default: AFTERWORDS_BASE_URL, then the profile that `afterwords login` saved,
            then a server on this machine.
        api_key: Default: AFTERWORDS_API_KEY, then the key of the profile. It is sent to `base_url` only.
        admin_secret: Required for `keys`. Default: AFTERWORDS_ADMIN_SECRET.
        profile: The name of the profile to use.
        timeout_s: How long the server may stay silent, in seconds.
        transport: Replaces the network, for tests and proxies.

    Raises:
        InvalidInputError: The address, a secret or the profile can't be used.
        ServiceError: Raised by every method that sends a request: the server refused it. The class says why, and
            `request_id` identifies the request.
        RemoteError: Raised by every such method: the server can't be reached, or its response is invalid.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        admin_secret: str | None = None,
        profile: str | None = None,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        access = find_access(base_url, api_key=api_key, admin_secret=admin_secret, profile=profile)
        self._session = AsyncSession(access, timeout_s=timeout_s, transport=transport)
        self.voices: Final = AsyncVoices(self._session)
        self.jobs: Final = AsyncJobs(self._session)
        self.keys: Final = AsyncKeys(self._session)

    def __repr__(self) -> str:
        return f"AsyncClient({self.base_url!r})"

    @property
    def base_url(self) -> str:
        """The address of the server."""
        return self._session.access.base_url

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def say(
        self,
        text: str,
        *,
        voice: Voice | str,
        emotion: str | None = None,
        lang: str | None = None,
        backend: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
        timestamps: bool = False,
        verify: bool = False,
        timeout_s: float = JOB_TIMEOUT_S,
    ) -> Audio:
        """Speak a text, and return all of the audio.

        Args:
            text: 1 to 5,000 characters.
            voice: A voice of the server, its name or its ID. If two voices have the name, the newer one speaks.
            emotion: Emotion of the take that speaks; the tag `[happy]` at the start of the text chooses it, too.
            lang: Language of the text. Default: the language of the voice.
            backend: The backend that speaks. Default: the backend of the voice.
            speed: 0.25 to 4; the pitch does not change.
            seed: Makes a backend that samples reproducible.
            timestamps: Set `alignment` of the result. The server's cache is not used then.
            verify: Have the server compare the speech with the text and speak faulty sentences again; set
                `verification` of the result. The cache is not used then either.
            timeout_s: How long to wait for the job, in seconds.

        Raises:
            VoiceNotFoundError: The server has no such voice, or no such take of it.
            JobFailedError: The text could not be spoken.
            JobTimeoutError: The job is still pending, and continues.
        """
        from afterwords.client.audio import decode_speech

        deadline = time.monotonic() + timeout_s
        fields = speech_fields(
            text,
            emotion=emotion,
            lang=lang,
            backend=backend,
            speed=speed,
            seed=seed,
            timestamps=timestamps,
            verify=verify,
        )
        job = await self._submit(voice, fields, key=ensure_idempotency_key(), wait_s=long_poll_s(timeout_s))
        if job.status is not JobStatus.READY:
            await job.wait(timeout_s=max(0.0, deadline - time.monotonic()))
        audio = decode_speech(SpeechResponse(await job.data(), job.voice_id, job.backend, job.job_id), voice)
        if timestamps:
            audio = replace(audio, alignment=await job.alignment())
        return replace(audio, verification=await job.verification()) if verify else audio

    async def stream(
        self,
        text: str,
        *,
        voice: Voice | str,
        emotion: str | None = None,
        lang: str | None = None,
        backend: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
        timestamps: bool = False,
        verify: bool = False,
    ) -> AsyncRemoteSpeech:
        """Speak a text, and return the audio while it is generated: iterate over the result.

        Closing it early cancels the job. A server that can't stream sends the audio once it is ready.
        The arguments and errors are those of `say`. With `timestamps`, `client.jobs.alignment` returns them later,
        and with `verify`, `client.jobs.verification` the report.
        """
        fields = speech_fields(
            text,
            emotion=emotion,
            lang=lang,
            backend=backend,
            speed=speed,
            seed=seed,
            timestamps=timestamps,
            verify=verify,
        )
        speech = AsyncRemoteSpeech(self._session, await self._open_stream(voice, fields), voice)
        await speech._read_header()
        return speech

    async def speak(
        self,
        text: AsyncIterable[str] | Iterable[str],
        *,
        voice: Voice | str,
        emotion: str | None = None,
        lang: str | None = None,
        backend: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
    ) -> AsyncLiveSpeech:
        """Speak a text while it is being written, sentence by sentence, and return the audio: iterate over the result.

        Returns with the first audio. Closing the result early cancels what was not spoken. `transport` is not used.

        Args:
            text: The pieces of the text, cut anywhere. An iterable that is not asynchronous must not block.
            voice: As for `say`; so are the other arguments and errors.

        Raises:
            TextError: There was nothing to speak.
            UnsupportedByServerError: The hosted service needs the whole text.
        """
        await self._session.check_supports("text that is still being written")
        name = voice.voice_id if isinstance(voice, Voice) else voice
        config = drop_none(
            voice=name, emotion=emotion and emotion.strip().lower(), language=lang, model=backend, seed=seed
        )
        config |= {"speed": speed, "response_format": "pcm", "stream_audio": True, "split_granularity": "sentence"}
        speech = AsyncLiveSpeech(await self._session.open_socket(), voice)
        await speech._start(text, config)
        return speech

    async def stream_bytes(
        self,
        text: str,
        *,
        voice: Voice | str,
        format: SpeechFormat | FormatName = SpeechFormat.WAV,
        emotion: str | None = None,
        lang: str | None = None,
        backend: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
    ) -> AsyncRemoteBytes:
        """Speak a text, and return the bytes of an audio file while it is generated, to forward or to save.

        Closing it early cancels the job. A server that can't stream sends the bytes once the job is ready.

        Args:
            text: As for `say`; so are the other arguments and errors.
            format: wav, mp3, opus, webm, flac, aac, pcm (16-bit little-endian mono), mulaw or alaw.
        """
        kind = parse_option(SpeechFormat, format, name="format")
        fields = speech_fields(text, emotion=emotion, lang=lang, backend=backend, speed=speed, seed=seed, format=kind)
        return AsyncRemoteBytes(self._session, await self._open_stream(voice, fields))

    async def synthesize(
        self,
        text: str,
        *,
        voice: Voice | str,
        emotion: str | None = None,
        lang: str | None = None,
        backend: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
        timestamps: bool = False,
        verify: bool = False,
        format: SpeechFormat | FormatName = SpeechFormat.WAV,
        webhook_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncRemoteJob:
        """Submit a text, and return the job at once.

        Args:
            text: As for `say`; so are the other arguments.
            timestamps: Find what `job.alignment` returns.
            verify: Find what `job.verification` returns.
            format: As for `stream_bytes`; the format of `job.download`.
            webhook_url: A public https address that is called when the job has ended.
            idempotency_key: Requests with the same key and content create one job. None generates a key for this call.
        """
        kind = parse_option(SpeechFormat, format, name="format")
        fields = speech_fields(
            text,
            emotion=emotion,
            lang=lang,
            backend=backend,
            speed=speed,
            seed=seed,
            timestamps=timestamps,
            verify=verify,
            format=kind,
            webhook_url=webhook_url,
        )
        return await self._submit(voice, fields, key=ensure_idempotency_key(idempotency_key))

    async def estimate(
        self,
        text: str,
        *,
        voice: Voice | str,
        emotion: str | None = None,
        lang: str | None = None,
        backend: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
    ) -> Estimate:
        """Return what speaking a text would take and cost. Nothing is spoken or charged.

        The arguments and errors are those of `say`, except for limits, which `is_within_limit` compares.

        Raises:
            UnsupportedByServerError: The hosted service has no estimates.
        """
        fields = speech_fields(text, emotion=emotion, lang=lang, backend=backend, speed=speed, seed=seed)
        _, response = await self.voices._request(voice, lambda voice_id: estimate_request(voice_id, fields))
        return parse_model(response, Estimate)

    async def health(self) -> Health:
        """Return the status of the server and its backends. Needs no key."""
        return parse_model(await self._session.request(Request("GET", "/v1/health", is_public=True)), Health)

    async def usage(self) -> Usage:
        """Return what was spent in this billing period."""
        return parse_model(await self._session.request(Request("GET", "/v1/usage")), Usage)

    async def _submit(self, voice: Voice | str, fields: dict[str, Any], *, key: str, wait_s: int = 0) -> AsyncRemoteJob:
        """Create a job, or get the audio if it is cached or ready within `wait_s` seconds."""

        def build(voice_id: str) -> Request:
            return synthesis_request(voice_id, fields, key=key, wait_s=wait_s)

        await self._check_options(fields)
        voice_id, response = await self.voices._request(voice, build)
        if response.status != 200:
            return self._accept(response, voice_id)
        check_audio(response)
        job_id = response.headers.get("x-job-id")
        if not response.is_whole or response.is_damaged:  # by now the server has the audio
            if job_id is not None:
                response = Response(200, response.headers, await self.jobs.data(job_id))
            else:
                response = await self._session.download(build(voice_id))
                check_audio(response)
        speech = parse_speech(response, voice_id)
        job = Job(job_id=job_id, voice_id=speech.voice_id, status=JobStatus.READY)
        return AsyncRemoteJob._from_job(
            self.jobs, job, speech, backend=speech.backend, left_out=speech.left_out, notices=speech.notices
        )

    async def _open_stream(self, voice: Voice | str, fields: dict[str, Any]) -> SpeechResponse:
        """Return the audio as an open response; from a server that can't stream, once the job is ready."""
        key = ensure_idempotency_key()
        await self._check_options(fields)
        voice_id, response = await self.voices._request(
            voice, lambda voice_id: synthesis_request(voice_id, {**fields, "stream": True}, key=key)
        )
        if response.status == 200:
            check_audio(response)
            return parse_speech(response, voice_id)
        job = self._accept(response, voice_id)
        await job.wait(timeout_s=FIRST_AUDIO_S)
        path = f"{resource_path('/v1/jobs', str(job.job_id))}/audio"
        response = await self._session.request(Request("GET", path, is_stream=True, missing_code="job_not_found"))
        check_audio(response)
        speech = parse_speech(response, voice_id)
        return replace(speech, backend=job.backend, job_id=job.job_id, left_out=job.left_out, notices=job.notices)

    def _accept(self, response: Response, voice_id: str) -> AsyncRemoteJob:
        job = parse_job(response).model_copy(update={"voice_id": response.headers.get("x-voice-id", voice_id)})
        backend, (left_out, notices) = response.headers.get("x-backend"), parse_notices(response)
        return AsyncRemoteJob._from_job(self.jobs, job, backend=backend, left_out=left_out, notices=notices)

    async def _check_options(self, fields: dict[str, Any]) -> None:
        if fields.keys() & {"speed", "seed", "response_format", "webhook_url", "timestamps", "verify", "emotion"}:
            await self._session.check_supports("speed, seed, emotion, timestamps, verify, other formats, and webhooks")
