"""Routes of remote workers: the result of a job as JSON, like the hosted service, or as the audio itself."""

from __future__ import annotations

import base64
from codecs import BOM_UTF8
from hashlib import sha256
from io import BytesIO
from typing import Annotated, BinaryIO, Final

from fastapi import APIRouter, Header, Request
from fastapi.responses import Response
from pydantic import ValidationError

from afterwords.errors import InvalidRequestError, MalformedWavError, SynthesisError
from afterwords.models import parse_id
from afterwords.server.auth import JSON_MAX_BYTES, Credential, requires
from afterwords.server.records import StoredJob
from afterwords.server.routes.responses import JobId, errors, identity_of, json_response, request_body, state_of
from afterwords.server.routes.schemas import CompleteBody, Completed
from afterwords.server.spool import open_spool
from afterwords.text import max_speech_s

router = APIRouter(tags=["workers"])

BYTES_PER_SECOND: Final = 2 * 48_000
"""Largest rate of speech as 16-bit mono."""
RESULT: Final = {
    **errors(
        _400="missing_field, invalid_json, bad_request, invalid_host",
        _404="job_not_found",
        _409="stale_attempt",
        _410="voice_deleted",
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
    with open_spool(state_of(request).settings.folder) as file:
        await _spool_body(request, job, file, expansion=4 / 3)
        content = file.read()
    try:
        body = CompleteBody.model_validate_json(content.removeprefix(BOM_UTF8))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        if not first["loc"]:
            raise InvalidRequestError(code="invalid_json") from None
        if first["type"] == "missing":
            raise InvalidRequestError.missing_field(str(first["loc"][0])) from None
        raise InvalidRequestError.invalid_field(str(first["loc"][0]), rule=first["msg"].lower()) from None
    if parse_id(body.job_id) != job_id:
        raise InvalidRequestError.invalid_field("job_id", rule="it must be the job of the path")
    if job is None:
        return _ok()
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
    with open_spool(state_of(request).settings.folder) as file:
        if await _spool_body(request, job, file) != digest.lower():
            raise InvalidRequestError.invalid_field("X-Content-SHA256", rule="it must be the SHA-256 of the body")
        if job is not None:
            await state_of(request).completion.complete(job_id, job.attempt, file, synth_ms=synth_ms)
    return _ok()


async def _spool_body(request: Request, job: StoredJob | None, file: BinaryIO, *, expansion: float = 1) -> str:
    """Write the body to a file and return its SHA-256 in hex.

    Args:
        expansion: How much larger the body is than its audio.

    Raises:
        SynthesisError: The audio is longer than speech of the text can be; the job has failed.
        InvalidRequestError: As above, but the job already has a result.
    """
    longest_s = max_speech_s(job.text or "", speed=job.speed) if job else 0
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
        file.write(piece)
    file.seek(0)
    return digest.hexdigest()


def _ok() -> Response:
    return json_response(Completed(status="ok"))
