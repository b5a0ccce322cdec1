"""Routes of speech: request it, follow its job, download the audio."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from afterwords.audio.encoding import MEDIA_TYPES, Encoding
from afterwords.models import Alignment, Estimate, JobStatus, SpeechFormat, Verification
from afterwords.server.auth import Credential, requires
from afterwords.server.concurrency import while_connected
from afterwords.server.records import Scope, StoredJob
from afterwords.server.routes.audio import (
    add_result_headers,
    job_audio_response,
    job_headers,
    parse_encoding,
    speech_headers,
    speech_response,
)
from afterwords.server.routes.responses import (
    IdempotencyKey,
    JobId,
    audio_content,
    base_url,
    caller_of,
    context_of,
    errors,
    json_response,
    list_response,
    state_of,
)
from afterwords.server.routes.schemas import JobAccepted, JobListed, JobShown, StorableText, SynthesizeBody
from afterwords.server.routing import DocumentedRoute
from afterwords.server.services.synthesis import AcceptedJob, CachedSpeech, SynthesisRequest
from afterwords.server.webhooks import check_url

router = APIRouter(route_class=DocumentedRoute, tags=["speech"])

WAIT_MAX_S: Final = 60
_WAIT: Final = re.compile(r"\s*wait\s*=\s*(\d{1,6})\s*", re.IGNORECASE)
NOT_FOUND: Final = errors(_404="job_not_found")
QUOTA_HEADERS: Final = {
    f"X-Characters-{name}": {"schema": {"type": "integer"}, "description": f"{what}; absent without a limit."}
    for name, what in (
        ("Used", "Characters used in the billing period, with this request"),
        ("Remaining", "Characters left in it"),
    )
}
_INVALID_BODY: Final = "missing_field, invalid_json, bad_request, invalid_host"
_INVALID_SPEECH: Final = (
    "empty_text, unspeakable_text, text_too_long, control_character, invalid_unicode, invalid_backend, "
    "unsupported_lang, invalid_field, invalid_webhook_url"
)


@router.post(
    "/v1/synthesize",
    status_code=202,
    responses={
        200: {
            "content": audio_content(),
            "description": "The audio: cached, waited for, or streamed.",
            "headers": QUOTA_HEADERS,
        },
        202: {"model": JobAccepted, "description": "An accepted job.", "headers": QUOTA_HEADERS},
        **errors(
            _400=_INVALID_BODY,
            _404="voice_not_found",
            _409="idempotency_conflict, ambiguous_voice_name",
            _422=f"{_INVALID_SPEECH}, timestamps_unavailable, verification_unavailable",
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
    prefer: Annotated[
        str | None, Header(description="`wait=N`: respond with the audio if it is ready within N seconds, at most 60.")
    ] = None,
) -> Response:
    """Synthesize a text. Returns the audio if it is cached, else a job to follow."""
    state, caller, options = state_of(request), caller_of(request), _options(body)
    result = await state.synthesis.submit(caller, options, idempotency_key=idempotency_key, listen=body.stream)
    if isinstance(result, AcceptedJob):
        context_of(request).job_id = result.job.job_id
    if body.stream or isinstance(result, CachedSpeech):
        return await speech_response(request, result, Encoding(options.response_format, options.sample_rate))
    job = result.job
    waits = (_WAIT.fullmatch(preference) for preference in (prefer or "").split(","))
    wait_s = next((min(int(match[1]), WAIT_MAX_S) for match in waits if match), 0)
    if wait_s:
        waiting = state.synthesis.get_job(caller, job.job_id, wait_s=wait_s)
        job = await while_connected(request.receive, waiting)
    if wait_s and job.status is JobStatus.READY:
        response = await job_audio_response(request, job, job_headers(job))
    else:
        headers = speech_headers(job.voice_id, job.backend, cache="MISS", synth_ms=-1)
        response = json_response(JobAccepted(job_id=job.job_id, status=job.status), 202, headers)
    add_result_headers(response, result)
    return response


@router.post(
    "/v1/estimate",
    responses={
        200: {"model": Estimate},
        **errors(
            _400=_INVALID_BODY,
            _404="voice_not_found",
            _409="ambiguous_voice_name",
            _422=_INVALID_SPEECH,
            _500="reference_missing, internal_error",
        ),
    },
)
@requires(Credential.USER, Scope.SYNTHESIZE)
async def estimate(request: Request, body: SynthesizeBody) -> Response:
    """Return what a synthesis would take and cost. Creates no job and charges nothing."""
    return json_response(await state_of(request).synthesis.estimate(caller_of(request), _options(body)))


def _options(body: SynthesizeBody) -> SynthesisRequest:
    parse_encoding(body.response_format, body.sample_rate)
    return SynthesisRequest(
        **body.model_dump(exclude={"stream", "webhook_url"}),
        webhook_url=check_url(body.webhook_url) if body.webhook_url else None,
    )


@router.get(
    "/v1/jobs",
    responses={200: {"model": list[JobListed]}, **errors(_422="invalid_field")},
)
@requires(Credential.USER, Scope.SYNTHESIZE)
async def list_jobs(
    request: Request,
    status: Annotated[JobStatus | None, Query(description="Only jobs with this status.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Jobs per page.")] = 100,
    after: Annotated[StorableText | None, Query(max_length=64, description="Start after this job_id.")] = None,
) -> Response:
    """List the jobs of the account, newest first. A Link header leads to the next page."""
    jobs = await state_of(request).store.list_jobs(
        account_id=caller_of(request).account_id, status=status, limit=limit, after=after and after.lower()
    )
    facts = ("voice_id", "created_at", "completed_at", "char_count")
    items = [JobListed(**dict(_job_body(request, job)), **{name: getattr(job, name) for name in facts}) for job in jobs]
    last_id = jobs[-1].job_id if jobs else None
    return list_response(items, request=request, path="/v1/jobs", limit=limit, last_id=last_id)


@router.get(
    "/v1/jobs/{job_id}",
    responses={200: {"model": JobShown}, **NOT_FOUND, **errors(_422="invalid_field")},
)
@requires(Credential.USER, Scope.SYNTHESIZE)
async def show_job(
    request: Request,
    job_id: JobId,
    wait: Annotated[int, Query(ge=0, le=WAIT_MAX_S, description="Seconds to wait for the job to become final.")] = 0,
) -> Response:
    """Return the status of a job."""
    found = state_of(request).synthesis.get_job(caller_of(request), job_id, wait_s=wait)
    job = await (while_connected(request.receive, found) if wait else found)
    context_of(request).is_routine = job.status is JobStatus.PENDING
    return json_response(_job_body(request, job))


@router.get(
    "/v1/jobs/{job_id}/audio",
    responses={
        200: {"content": audio_content(), "description": "The audio."},
        206: {"content": audio_content(), "description": "A part of the audio."},
        307: {"description": "The audio is at the URL in Location, for a few minutes and without a key."},
        **errors(_404="job_not_found, job_not_ready", _416="range_not_satisfiable", _500="audio_lost, internal_error"),
    },
)
@requires(Credential.USER, Scope.SYNTHESIZE)
async def job_audio(request: Request, job_id: JobId) -> Response:
    """Return the audio of a job that is ready, or where it is."""
    state = state_of(request)
    job = await state.synthesis.get_job(caller_of(request), job_id)
    headers = {"X-Job-Id": job.job_id}
    is_as_stored = job.response_format is SpeechFormat.WAV and job.sample_rate is None
    is_redirected = state.settings.audio_redirect and is_as_stored
    if is_redirected and request.method == "GET" and not context_of(request).is_head:
        path = job.audio_key if job.status is JobStatus.READY and job.audio_sha256 else None
        if path and (url := await state.blobs.signed_url(path)):
            headers |= {"Location": url, "ETag": f'"{job.audio_sha256}"', "Cache-Control": "private, no-store"}
            return Response(None, 307, headers, media_type=MEDIA_TYPES[SpeechFormat.WAV])
    return await job_audio_response(request, job, headers)


@router.get(
    "/v1/jobs/{job_id}/verification",
    responses={
        200: {"model": Verification},
        **errors(_404="job_not_found, job_not_ready", _422="verification_unavailable, invalid_field"),
    },
)
@requires(Credential.USER, Scope.SYNTHESIZE)
async def job_verification(request: Request, job_id: JobId) -> Response:
    """Return how the speech of a job compares with its text, if it was submitted with `verify`."""
    synthesis = state_of(request).synthesis
    return json_response(await synthesis.get_verification(await synthesis.get_job(caller_of(request), job_id)))


@router.get(
    "/v1/jobs/{job_id}/timestamps",
    responses={
        200: {"model": Alignment},
        **errors(_404="job_not_found, job_not_ready", _422="timestamps_unavailable, invalid_field"),
    },
)
@requires(Credential.USER, Scope.SYNTHESIZE)
async def job_timestamps(request: Request, job_id: JobId) -> Response:
    """Return when each character of a job is spoken, if it was submitted with `timestamps`."""
    synthesis = state_of(request).synthesis
    return json_response(await synthesis.get_alignment(await synthesis.get_job(caller_of(request), job_id)))


@router.delete(
    "/v1/jobs/{job_id}",
    responses={200: {"model": JobShown}, **NOT_FOUND, **errors(_409="job_final")},
)
@requires(Credential.USER, Scope.SYNTHESIZE)
async def cancel_job(request: Request, job_id: JobId) -> Response:
    """Cancel a pending job and refund its characters."""
    return json_response(_job_body(request, await state_of(request).synthesis.cancel(caller_of(request), job_id)))


# -- headers and bodies ---------------------------------------------------------------------------------------


def _job_body(request: Request, job: StoredJob) -> JobShown:
    """Return a job as the API shows it; its link comes from settings and route, never from the Host header."""
    progress = state_of(request).dispatcher.progress(job) if job.status is JobStatus.PENDING else None
    is_ready = job.status is JobStatus.READY
    return JobShown(
        job_id=job.job_id,
        status=job.status,
        audio_url=f"{base_url(request)}/v1/jobs/{job.job_id}/audio" if is_ready else None,
        error=job.error,
        step=progress.step if progress else None,
        progress=None if progress is None or progress.fraction is None else round(progress.fraction, 3),
    )
