"""Speech: ask for it, follow the job, fetch the audio; and the door where workers bring theirs."""

from __future__ import annotations

import re
from typing import Annotated, Final
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from afterwords.errors import AfterwordsError, ConflictError, SynthesisError
from afterwords.models import JobStatus
from afterwords.provenance import mark_tags
from afterwords.server.auth import Credential, requires
from afterwords.server.disconnects import while_connected
from afterwords.server.records import Scope, StoredJob
from afterwords.server.routes.audio import PiecesResponse, audio_response, encoded_stream
from afterwords.server.routes.responses import (
    COMMON,
    MEDIA_TYPES,
    IdempotencyKey,
    JobId,
    audio_content,
    base_url,
    caller_of,
    errors,
    exchange_of,
    json_response,
    list_response,
    state_of,
)
from afterwords.server.routes.schemas import JobAccepted, JobListed, JobShown, SynthesizeBody
from afterwords.server.services.synthesis import AcceptedJob, CachedSpeech, SynthesisRequest
from afterwords.server.webhooks import check_url

router = APIRouter(tags=["speech"])

WAIT_MAX_S: Final = 60
LEFT_OUT_MAX: Final = 20
"""The most words that X-Left-Out names."""
STREAM_WAIT_S: Final = 3600.0
"""How long a stream waits for its turn; a client that leaves ends it sooner."""
_WAIT: Final = re.compile(r"\s*wait\s*=\s*(\d{1,6})\s*", re.IGNORECASE)
NOT_FOUND: Final = errors(_404="job_not_found")
FORBIDDEN: Final = errors(_403="insufficient_scope")
Wait = Annotated[int, Query(ge=0, le=WAIT_MAX_S, description="Seconds to wait for the job to become final.")]


@router.post(
    "/v1/synthesize",
    status_code=202,
    responses={
        200: {"content": audio_content(), "description": "The audio: cached, waited for, or streamed."},
        202: {"model": JobAccepted, "description": "A job that was accepted."},
        **COMMON,
        **FORBIDDEN,
        **errors(
            _400="missing_field, invalid_json, bad_request, invalid_host",
            _404="voice_not_found",
            _409="idempotency_conflict, ambiguous_voice_name",
            _422="empty_text, unspeakable_text, text_too_long, control_character, invalid_unicode, invalid_backend, "
            "unsupported_lang, invalid_field, invalid_webhook_url",
            _429="rate_limited, too_many_concurrent_requests, queue_full, quota_exceeded",
            _500="reference_missing, synthesis_failed, internal_error",
        ),
    },
)
@requires(Credential.USER, Scope.SYNTHESIZE)
async def synthesize(
    request: Request,
    body: SynthesizeBody,
    idempotency_key: IdempotencyKey = None,
    prefer: Annotated[str | None, Header(description="`wait=N`: answer with the audio if it is ready by then.")] = None,
) -> Response:
    """Speak a text: audio at once where it was spoken before, else a job to follow."""
    state, caller = state_of(request), caller_of(request)
    ask = SynthesisRequest(
        **body.model_dump(exclude={"stream", "webhook_url"}),
        webhook_url=check_url(body.webhook_url) if body.webhook_url else None,
    )
    answer = await state.synthesis.submit(caller, ask, idempotency_key=idempotency_key, listen=body.stream)
    response = await _answered(request, ask, answer, is_stream=body.stream, wait_s=_wait_of(prefer))
    if answer.left_out:
        response.headers["X-Left-Out"] = ",".join(quote(word[:40]) for word in answer.left_out[:LEFT_OUT_MAX])
    return response


async def _answered(
    request: Request, ask: SynthesisRequest, answer: CachedSpeech | AcceptedJob, *, is_stream: bool, wait_s: int
) -> Response:
    state = state_of(request)
    if isinstance(answer, CachedSpeech):
        entry = answer.entry
        headers = _about(entry.voice_id, answer.backend, cache="HIT", synth_ms=entry.synth_ms)
        return await audio_response(
            request,
            answer.audio,
            ask.response_format,
            voice_id=entry.voice_id,
            sha256=entry.sha256,
            headers=headers,
        )
    if is_stream:
        return await _streamed(request, answer)
    job = answer.job
    if wait_s:
        waited = state.synthesis.get_job(caller_of(request), job.job_id, wait_s=wait_s)
        job = await while_connected(request.receive, waited)
        if job.status is JobStatus.READY:
            return await _audio_of(request, job, _about_job(job))
    headers = _about(job.voice_id, job.backend, cache="MISS", synth_ms=-1)
    return json_response(JobAccepted(job_id=job.job_id, status=job.status), 202, headers)


@router.get(
    "/v1/jobs",
    responses={200: {"model": list[JobListed]}, **COMMON, **FORBIDDEN, **errors(_422="invalid_field")},
)
@requires(Credential.USER, Scope.SYNTHESIZE)
async def list_jobs(
    request: Request,
    status: Annotated[JobStatus | None, Query(description="Only jobs that stand so.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="The most that are listed at once.")] = 100,
    after: Annotated[str | None, Query(max_length=64, description="Begin after this job_id.")] = None,
) -> Response:
    """List the account's jobs, newest first. A Link header leads to the next page."""
    jobs = await state_of(request).synthesis.list_jobs(
        caller_of(request), status=status, limit=limit, after=after and after.lower()
    )
    items = [_listed(request, job).model_dump(mode="json") for job in jobs]
    return list_response(
        items, request=request, path="/v1/jobs", limit=limit, last_id=jobs[-1].job_id if jobs else None
    )


@router.get(
    "/v1/jobs/{job_id}",
    responses={200: {"model": JobShown}, **COMMON, **NOT_FOUND, **FORBIDDEN, **errors(_422="invalid_field")},
)
@requires(Credential.USER, Scope.SYNTHESIZE)
async def show_job(request: Request, job_id: JobId, wait: Wait = 0) -> Response:
    """Tell where a job stands."""
    found = state_of(request).synthesis.get_job(caller_of(request), job_id, wait_s=wait)
    job = await (while_connected(request.receive, found) if wait else found)
    exchange_of(request).is_routine = job.status is JobStatus.PENDING
    return json_response(_shown(request, job))


@router.get(
    "/v1/jobs/{job_id}/audio",
    responses={
        200: {"content": audio_content(), "description": "The audio."},
        206: {"content": audio_content(), "description": "A part of the audio."},
        **COMMON,
        **FORBIDDEN,
        **errors(_404="job_not_found, job_not_ready", _416="range_not_satisfiable", _500="audio_lost, internal_error"),
    },
)
@requires(Credential.USER, Scope.SYNTHESIZE)
async def job_audio(request: Request, job_id: JobId) -> Response:
    """Give the audio of a job that is ready."""
    job = await state_of(request).synthesis.get_job(caller_of(request), job_id)
    return await _audio_of(request, job, {"X-Job-Id": job.job_id})


@router.delete(
    "/v1/jobs/{job_id}",
    responses={200: {"model": JobShown}, **COMMON, **NOT_FOUND, **FORBIDDEN, **errors(_409="job_final")},
)
@requires(Credential.USER, Scope.SYNTHESIZE)
async def cancel_job(request: Request, job_id: JobId) -> Response:
    """Cancel a pending job; what it reserved is given back."""
    return json_response(_shown(request, await state_of(request).synthesis.cancel(caller_of(request), job_id)))


# -- audio ----------------------------------------------------------------------------------------------------


async def _audio_of(request: Request, job: StoredJob, headers: dict[str, str]) -> Response:
    audio = await state_of(request).synthesis.open_audio(job)
    return await audio_response(
        request, audio, job.response_format, voice_id=job.voice_id, sha256=job.audio_sha256 or "", headers=headers
    )


async def _streamed(request: Request, accepted: AcceptedJob) -> Response:
    """The audio while it is made; where it can't be heard from here, all of it once it is ready.

    A client that disconnects has its job cancelled, whether it waits, is prepared, or is spoken.
    """
    state, caller, job, listener = state_of(request), caller_of(request), accepted.job, accepted.listener

    async def close(is_whole: bool) -> None:
        if listener:
            listener.close()
        if accepted.is_new:
            await state.synthesis.end_stream(caller, job.job_id, is_whole=is_whole)

    async def begun() -> Response:
        try:
            sample_rate = (
                await state.synthesis.wait_for_audio(job, listener, wait_s=STREAM_WAIT_S) if listener else None
            )
            if sample_rate is None or listener is None:
                response = await _once_ready(request, job)
                await close(True)
                return response
            voice = await state.voices.get(caller, job.voice_id)
        except BaseException as error:
            await close(isinstance(error, AfterwordsError))
            raise
        tags = mark_tags(backend=job.backend, voice_name=voice.name, voice_id=voice.voice_id, made_at=job.created_at)
        headers = {**_about_job(job), "Cache-Control": "private, no-store", "Accept-Ranges": "none"}
        sound = encoded_stream(request, aiter(listener), sample_rate, job.response_format, tags)
        return PiecesResponse(sound, 200, headers, MEDIA_TYPES[job.response_format], close=close)

    return await while_connected(request.receive, begun())


async def _once_ready(request: Request, job: StoredJob) -> Response:
    job = await state_of(request).synthesis.get_job(caller_of(request), job.job_id, wait_s=STREAM_WAIT_S)
    if job.status is JobStatus.READY:
        return await _audio_of(request, job, _about_job(job))
    if job.status is JobStatus.CANCELLED:
        raise ConflictError.job_final(job.status)
    raise SynthesisError.for_backend(job.backend, why=job.error or "it took too long")


# -- shapes ---------------------------------------------------------------------------------------------------


def _wait_of(prefer: str | None) -> int:
    """Seconds of `Prefer: wait=N`; other preferences are not ours to know."""
    for preference in (prefer or "").split(","):
        if wanted := _WAIT.fullmatch(preference):
            return min(int(wanted[1]), WAIT_MAX_S)
    return 0


def _about(voice_id: str, backend: str, *, cache: str, synth_ms: int) -> dict[str, str]:
    return {
        "X-Cache": cache,
        "X-Voice-Id": voice_id,
        "X-Backend": backend,
        "X-Synthesis-Time-Ms": str(synth_ms),
    }


def _about_job(job: StoredJob) -> dict[str, str]:
    synth_ms = -1 if job.synth_ms is None else job.synth_ms
    return {**_about(job.voice_id, job.backend, cache="MISS", synth_ms=synth_ms), "X-Job-Id": job.job_id}


def _shown(request: Request, job: StoredJob) -> JobShown:
    is_pending = job.status is JobStatus.PENDING
    now = state_of(request).dispatcher.progress(job) if is_pending else None
    return JobShown(
        job_id=job.job_id,
        status=job.status,
        audio_url=_audio_url(request, job),
        error=job.error,
        step=now.step if now else None,
        progress=None if now is None or now.fraction is None else round(now.fraction, 3),
    )


def _listed(request: Request, job: StoredJob) -> JobListed:
    return JobListed(
        **_shown(request, job).model_dump(),
        voice_id=job.voice_id,
        created_at=job.created_at,
        completed_at=job.completed_at,
        char_count=job.char_count,
    )


def _audio_url(request: Request, job: StoredJob) -> str | None:
    """Made from configuration and the path of the route, never from what a request says of its host."""
    if job.status is not JobStatus.READY:
        return None
    return f"{base_url(request)}/v1/jobs/{job.job_id}/audio"
