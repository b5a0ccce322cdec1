"""Routes of remote workers: the result of a job as JSON, like the hosted service, or as the audio itself."""

from __future__ import annotations

import base64
import time
from codecs import BOM_UTF8
from contextlib import AbstractContextManager
from hashlib import sha256
from io import BytesIO
from typing import Annotated, BinaryIO, Final, TypeVar

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from afterwords import __version__
from afterwords.errors import InvalidRequestError, MalformedWavError, StaleAttemptError, SynthesisError
from afterwords.models import SPEED_MIN, parse_id
from afterwords.server.auth import JSON_MAX_BYTES, Credential, requires
from afterwords.server.concurrency import while_connected
from afterwords.server.dispatch.protocol import (
    PART_MAX_BYTES,
    POLL_MAX_S,
    PROTOCOL,
    ClaimAnswer,
    ClaimBody,
    ClaimedJob,
    EndBody,
    HeartbeatBody,
    Hello,
    WantedAnswer,
    WorkerVoices,
)
from afterwords.server.records import Claim, ReportKind, StoredJob
from afterwords.server.routes.responses import (
    JobId,
    context_of,
    errors,
    identity_of,
    json_response,
    request_body,
    state_of,
)
from afterwords.server.routes.schemas import CompleteBody, Completed
from afterwords.server.routing import DocumentedRoute
from afterwords.server.spool import open_spool
from afterwords.text import MAX_REQUEST_CHARS, max_speech_s

router = APIRouter(route_class=DocumentedRoute, tags=["workers"])

M = TypeVar("M", bound=BaseModel)
PromptVersion = Annotated[str, Query(min_length=1, max_length=200)]
PromptDigest = Annotated[str, Query(pattern="^[0-9a-f]{64}$")]
"""See `StoredVoice.prompt_digest`: the transcript may have changed since the claim."""

NO_STORE: Final = {"Cache-Control": "no-store"}
BYTES_PER_SECOND: Final = 2 * 48_000
"""Largest rate of speech as 16-bit mono."""
LONGEST_S: Final = max_speech_s("x" * MAX_REQUEST_CHARS, speed=SPEED_MIN)
"""Longest speech of any text."""
RESULT: Final = {
    **errors(
        _400="missing_field, invalid_json, bad_request, invalid_host",
        _404="job_not_found",
        _409="stale_attempt",
        _410="voice_deleted",
        _429="too_many_concurrent_requests",
        _422="invalid_field, runaway_audio, empty_data, not_wav, malformed_wav, no_fmt, truncated, too_many_chunks, "
        "bad_channels, bad_sample_rate, bad_bits, bad_block_align, unsupported_encoding, non_finite_audio",
    ),
}


@router.post(
    "/v1/jobs/{job_id}/complete",
    responses={200: {"model": Completed}, **RESULT},
    openapi_extra=request_body("application/json", CompleteBody.model_json_schema()),
)
@requires(Credential.WORKER, max_body_bytes=None)
async def complete(request: Request, job_id: JobId) -> Response:
    """Complete a job with audio in base64, or with an error. The first result wins; later ones change nothing."""
    job = await state_of(request).completion.open_job(job_id, identity_of(request).attempt)
    with _delivering(request, job_id), open_spool(state_of(request).settings.folder) as file:
        await _spool_body(request, job, file, expansion=4 / 3)
        content = file.read()
    if job is None:
        return _ok()
    body = _parse_body(CompleteBody, content)
    if parse_id(body.job_id) != job_id:
        raise InvalidRequestError.invalid_field("job_id", rule="it must be the job of the path")
    completion = state_of(request).completion
    if body.error is not None:
        await completion.fail(job_id, job.attempt, error="synthesis_failed")
        return _ok()
    if not body.wav_b64:
        await completion.reject(
            job, MalformedWavError.for_source("the audio", "its data chunk is empty", code="empty_data")
        )
    try:
        wav = base64.b64decode(body.wav_b64 or "", validate=True)
    except ValueError:  # not base64, or not even ASCII
        await completion.reject(job, InvalidRequestError.invalid_field("wav_b64", rule="it must be base64"))
    await completion.complete(job_id, job.attempt, BytesIO(wav))
    return _ok()


@router.put(
    "/v1/jobs/{job_id}/audio",
    responses={200: {"model": Completed}, **RESULT},
    openapi_extra=request_body("audio/wav"),
)
@requires(Credential.WORKER, max_body_bytes=None)
async def put_audio(
    request: Request,
    job_id: JobId,
    digest: Annotated[
        str | None, Header(alias="X-Content-SHA256", description="SHA-256 of the body in hex; required.")
    ] = None,
    synth_ms: Annotated[
        int | None, Header(alias="X-Synthesis-Time-Ms", ge=0, le=2**31, description="Duration of the synthesis.")
    ] = None,
) -> Response:
    """Complete a job with a WAV file. The first result wins; later ones change nothing."""
    job = await state_of(request).completion.open_job(job_id, identity_of(request).attempt)
    if digest is None:
        raise InvalidRequestError.missing_field("X-Content-SHA256")
    with _delivering(request, job_id), open_spool(state_of(request).settings.folder) as file:
        if await _spool_body(request, job, file) != digest.lower():
            raise InvalidRequestError.invalid_field("X-Content-SHA256", rule="it must be the SHA-256 of the body")
        if job is not None:
            await state_of(request).workers.complete(job_id, job.attempt, file, synth_ms=synth_ms)
    return _ok()


# -- workers that ask for jobs: `dispatch/protocol.py` has the bodies ---------------------------------------------


@router.post("/v1/workers/claim", include_in_schema=False)
@requires(Credential.WORKER_TOKEN)
async def claim(request: Request) -> Response:
    """Return a job once there is one, if the connection is still there."""
    context_of(request).is_routine = True
    state, token_id = state_of(request), identity_of(request).worker_token_id
    assert token_id is not None, "the route requires it"
    content = await request.body()
    _check_protocol(content)
    body = _parse_body(ClaimBody, content)
    with state.workers.claiming.hold(token_id):
        claim = await while_connected(request.receive, state.workers.claim(body, token_id=token_id))
    if claim is None:
        return json_response(ClaimAnswer(job=None))
    if await request.is_disconnected():
        await state.workers.take_back(body, claim, token_id=token_id)
        raise ClientDisconnect
    return _give(request, claim, token_id=token_id)


@router.post("/v1/jobs/{job_id}/begin", include_in_schema=False)
@requires(Credential.ATTEMPT)
async def begin(request: Request, job_id: JobId) -> Response:
    """Return the job of an attempt that was handed to a service, and renew its lease."""
    _check_protocol(await request.body())
    state = state_of(request)
    claim = await state.workers.begin(job_id, _attempt(request))
    return _give(request, claim, token_id=identity_of(request).worker_token_id)


@router.post("/v1/workers/deleted", include_in_schema=False)
@requires(Credential.WORKER_TOKEN)
async def find_deleted(request: Request) -> Response:
    """Return which voices of a worker have been deleted."""
    context_of(request).is_routine = True
    voices = _parse_body(WorkerVoices, await request.body())
    deleted = await state_of(request).workers.queue.find_deleted(voices.voice_ids)
    return json_response(WorkerVoices(voice_ids=sorted(deleted)))


@router.get("/v1/workers", include_in_schema=False)
@requires(Credential.ADMIN)
async def list_workers(request: Request) -> Response:
    """Return the remote workers that are connected to this server process."""
    state = state_of(request)
    labels = {token.token_id: token.label for token in await state.keys.list_worker_tokens()}
    workers = [
        {
            "name": worker.name,
            "version": worker.version,
            "token_id": worker.token_id,
            "token_label": labels.get(worker.token_id),
            "backends": sorted(worker.offers),
            "running_jobs": state.workers.count_running(worker),
            "seen_s": round(time.monotonic() - worker.seen, 1),
        }
        for worker in state.workers.workers
    ]
    return JSONResponse({"workers": workers}, headers=NO_STORE)


@router.post("/v1/jobs/{job_id}/heartbeat", include_in_schema=False)
@requires(Credential.ATTEMPT)
async def heartbeat(request: Request, job_id: JobId) -> Response:
    """Renew the lease, and return whether the job is still wanted."""
    context_of(request).is_routine = True
    body = _parse_body(HeartbeatBody, await request.body())
    is_wanted = await state_of(request).workers.heartbeat(job_id, _attempt(request), body)
    return json_response(WantedAnswer(is_wanted=is_wanted))


@router.get("/v1/jobs/{job_id}/wanted", include_in_schema=False)
@requires(Credential.ATTEMPT)
async def wanted(request: Request, job_id: JobId, wait_s: Annotated[float, Query(ge=0, le=POLL_MAX_S)]) -> Response:
    """Return whether the job is still wanted, as soon as it is not: between heartbeats, a worker learns of its end."""
    context_of(request).is_routine = True
    workers = state_of(request).workers
    with workers.waiting.hold(job_id):
        ended = workers.queue.is_wanted(job_id, _attempt(request), wait_s=wait_s)
        return json_response(WantedAnswer(is_wanted=await while_connected(request.receive, ended)))


@router.post("/v1/jobs/{job_id}/end", include_in_schema=False)
@requires(Credential.ATTEMPT)
async def end(request: Request, job_id: JobId) -> Response:
    """End an attempt without audio: fail the job, or return it to the queue."""
    body = _parse_body(EndBody, await request.body())
    await state_of(request).workers.end(job_id, _attempt(request), body)
    return _ok()


@router.get("/v1/jobs/{job_id}/reference", include_in_schema=False)
@requires(Credential.ATTEMPT)
async def get_reference(request: Request, job_id: JobId) -> Response:
    """Return the recording of the voice, a canonical WAV file."""
    queue = state_of(request).workers.queue
    wav = await queue.reference(await queue.find_claim(job_id, _attempt(request)))
    return Response(wav, headers=NO_STORE, media_type="audio/wav")


@router.get("/v1/jobs/{job_id}/prompt", include_in_schema=False)
@requires(Credential.ATTEMPT)
async def get_prompt(request: Request, job_id: JobId, version: PromptVersion, digest: PromptDigest) -> Response:
    """Return the stored prompt of the voice; 204 if there is none."""
    queue = state_of(request).workers.queue
    claim = await queue.find_claim(job_id, _attempt(request))
    return _part(await queue.prompt(claim, version=version) if _is_same(claim, version, digest) else None)


@router.put("/v1/jobs/{job_id}/prompt", include_in_schema=False)
@requires(Credential.ATTEMPT, max_body_bytes=PART_MAX_BYTES)
async def put_prompt(
    request: Request,
    job_id: JobId,
    version: PromptVersion,
    digest: PromptDigest,
    is_fast: Annotated[bool, Query()] = False,
) -> Response:
    """Store a prompt of the voice, also when the job has its audio already."""
    queue, prompt = state_of(request).workers.queue, await request.body()
    claim = await queue.find_claim(job_id, _attempt(request), may_be_final=True)
    if not _is_same(claim, version, digest):
        raise StaleAttemptError
    await queue.save_prompt(claim, version=version, prompt=prompt, is_fast=is_fast)
    return _ok()


@router.get("/v1/jobs/{job_id}/checkpoint", include_in_schema=False)
@requires(Credential.ATTEMPT)
async def get_checkpoint(request: Request, job_id: JobId, version: PromptVersion, digest: PromptDigest) -> Response:
    """Return where an earlier preparation of the voice stopped; 204 if it is not known."""
    queue = state_of(request).workers.queue
    claim = await queue.find_claim(job_id, _attempt(request))
    return _part(await queue.checkpoint(claim, version=version) if _is_same(claim, version, digest) else None)


@router.put("/v1/jobs/{job_id}/checkpoint", include_in_schema=False)
@requires(Credential.ATTEMPT, max_body_bytes=PART_MAX_BYTES)
async def put_checkpoint(request: Request, job_id: JobId, version: PromptVersion, digest: PromptDigest) -> Response:
    """Store how far the preparation of the voice is."""
    queue, checkpoint = state_of(request).workers.queue, await request.body()
    claim = await queue.find_claim(job_id, _attempt(request))
    if not _is_same(claim, version, digest):
        raise StaleAttemptError
    await queue.save_checkpoint(claim, version=version, checkpoint=checkpoint)
    return _ok()


@router.put("/v1/jobs/{job_id}/timing", include_in_schema=False)
@requires(Credential.ATTEMPT)
async def put_timing(request: Request, job_id: JobId) -> Response:
    """Store when each character is spoken, before the audio is delivered."""
    return await _save_report(request, job_id, "timing")


@router.put("/v1/jobs/{job_id}/verification", include_in_schema=False)
@requires(Credential.ATTEMPT)
async def put_verification(request: Request, job_id: JobId) -> Response:
    """Store how the speech compares with the text, before the audio is delivered."""
    return await _save_report(request, job_id, "verification")


async def _save_report(request: Request, job_id: str, kind: ReportKind) -> Response:
    queue, report = state_of(request).workers.queue, await request.body()
    await queue.save_report(await queue.find_claim(job_id, _attempt(request)), kind, report)
    return _ok()


@router.post("/v1/jobs/{job_id}/stream", include_in_schema=False)
@requires(Credential.ATTEMPT, max_body_bytes=None, is_live=True)
async def stream(
    request: Request,
    job_id: JobId,
    sample_rate: Annotated[int, Query(ge=8_000, le=192_000)],
    has_words: Annotated[bool, Query()] = False,
) -> Response:
    """Pass on the audio of an attempt while it is generated: mono 16-bit PCM, or messages with it and its words."""
    workers = state_of(request).workers
    with workers.waiting.hold(job_id):
        content = request.stream()
        await workers.receive(job_id, _attempt(request), content, sample_rate=sample_rate, has_words=has_words)
    return _ok()


def _delivering(request: Request, job_id: str) -> AbstractContextManager[None]:
    """Count a result of a worker token; in the hosted dispatch form, which has no such tokens, of a job."""
    return state_of(request).workers.delivering.hold(identity_of(request).worker_token_id or job_id)


def _check_protocol(content: bytes) -> None:
    if (spoken := _parse_body(Hello, content)).protocol != PROTOCOL:
        raise InvalidRequestError(
            f"The worker speaks protocol {spoken.protocol} (afterwords {spoken.version}), but this server "
            f"{PROTOCOL} (afterwords {__version__}).",
            code="worker_protocol",
        )


def _give(request: Request, claim: Claim, *, token_id: str | None) -> Response:
    """Return a job to the worker that holds it."""
    state, job = state_of(request), claim.job
    token = state.workers.queue.attempt_token(job.job_id, job.attempt, claimed_with=token_id)
    is_streamed = state.workers.is_streamed(job.job_id)
    claimed = ClaimedJob.from_claim(claim, token=token, lease_s=state.settings.lease_s, is_streamed=is_streamed)
    return json_response(ClaimAnswer(job=claimed))


def _attempt(request: Request) -> int:
    attempt = identity_of(request).attempt
    assert attempt is not None, "the route requires the token of an attempt"
    return attempt


def _is_same(claim: Claim, version: str, digest: str) -> bool:
    """Return whether the voice still has the recording and the transcript that the worker knows."""
    return claim.voice.prompt_digest(backend=claim.job.backend, version=version) == digest


def _part(data: bytes | None) -> Response:
    headers = NO_STORE
    return Response(status_code=204, headers=headers) if data is None else Response(data, headers=headers)


def _parse_body(model: type[M], content: bytes) -> M:
    """Return a JSON body.

    Raises:
        InvalidRequestError: It is not JSON, or a field is missing or invalid.
    """
    try:
        return model.model_validate_json(content.removeprefix(BOM_UTF8))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        if not first["loc"]:
            raise InvalidRequestError(code="invalid_json") from None
        if first["type"] == "missing":
            raise InvalidRequestError.missing_field(str(first["loc"][0])) from None
        raise InvalidRequestError.invalid_field(str(first["loc"][0]), rule=first["msg"].lower()) from None


async def _spool_body(request: Request, job: StoredJob | None, file: BinaryIO, *, expansion: float = 1) -> str:
    """Write the body to a file and return its SHA-256 in hex.

    Of a job that already has a result, it is read, but not written: the worker may have lost the answer.

    Args:
        expansion: How much larger the body is than its audio.

    Raises:
        SynthesisError: The audio is longer than speech of the text can be; the job has failed.
        InvalidRequestError: As above, but the job already has a result.
    """
    longest_s = max_speech_s(job.text or "", speed=job.speed) if job else LONGEST_S
    maximum = JSON_MAX_BYTES + round(expansion * longest_s * BYTES_PER_SECOND)
    n_bytes, digest = 0, sha256()
    async for piece in request.stream():
        n_bytes += len(piece)
        if n_bytes > maximum and job is None:
            raise InvalidRequestError.too_large(maximum_bytes=maximum)
        if n_bytes > maximum and job is not None:
            at_least_s = n_bytes / expansion / BYTES_PER_SECOND
            await state_of(request).completion.reject(
                job, SynthesisError.runaway(duration_s=at_least_s, maximum_s=longest_s)
            )
        digest.update(piece)
        if job is not None:
            file.write(piece)
    file.seek(0)
    return digest.hexdigest()


def _ok() -> Response:
    return json_response(Completed(status="ok"))
