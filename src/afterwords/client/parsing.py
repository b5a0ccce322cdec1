"""Responses as errors, models and audio.

Unknown fields are ignored, so that a newer server can send more; known ones are validated.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from afterwords.client.requests import Request, Response
from afterwords.errors import (
    AfterwordsError,
    ConnectionLostError,
    InvalidResponseError,
    JobError,
    JobFailedError,
    TextWarning,
    error_from_code,
)
from afterwords.models import Job, JobStatus, Model, Voice

M = TypeVar("M", bound=Model)

_CODES: Final = {
    400: "bad_request",
    401: "unauthorized",
    402: "subscription_inactive",
    403: "insufficient_scope",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "request_too_large",
    422: "invalid_input",
    429: "limit_reached",
    503: "service_unavailable",
}
"""The error codes of responses that have none."""
_HINTS: Final = {
    "unauthorized": "log in with a valid key: `afterwords login`. AFTERWORDS_API_KEY takes precedence over it.",
    "admin_required": "set AFTERWORDS_ADMIN_SECRET to the server's admin secret, or ask its operator.",
    "key_replaced": "log in with the new key: `afterwords login`.",
    "voice_not_found": "list voices with `afterwords voices --remote`, or copy one to the server: `afterwords push`.",
    "ambiguous_voice_name": "use the voice's ID, which `afterwords voices --remote --json` lists.",
    "home_voice": "change it with `afterwords voices` on the machine that runs the server.",
    "job_not_found": "list the server's jobs with `afterwords jobs list`.",
    "key_not_found": "list the server's keys with `afterwords keys list --remote`.",
    "quota_exceeded": "see with `afterwords usage` when the next period begins, or ask for a higher limit.",
    "subscription_inactive": "renew the subscription on the server's account page; the key then works again.",
    "storage_quota_exceeded": "delete a voice, or ask the operator of the server for more storage.",
}
_WORD: Final = re.compile(r"[!-~]{1,80}")
"""What a code, a request ID or a field name looks like; anything else is not printed."""
_MESSAGE_MAX_CHARS: Final = 500
_JOB_FAILURES: Final = {
    "synthesis_failed": ("the engine could not speak the text", ""),
    "worker_lost": ("its worker process ended in every attempt", ""),
    "model_unavailable": (
        "its worker could not load the model",
        "use another backend, or ask the operator of the server, whose log says why.",
    ),
    "out_of_memory": ("the server has too little memory for it", ""),
    "runaway_audio": ("the engine did not find the end of the text", ""),
    "reference_missing": ("the reference recording of the voice is missing from storage", ""),
    "audio_lost": ("its audio is missing from storage or was altered", ""),
    "timestamps_unavailable": (
        "its worker can't find the times of its words",
        "use the backend `lite`, or install afterwords[transcribe] where the worker runs.",
    ),
    "verification_unavailable": (
        "its worker can't recognize speech",
        "install afterwords[transcribe] where the worker runs, or leave out `verify`.",
    ),
    "loading_timed_out": (
        "loading the model made no progress for too long",
        "try again; the server's setting is AFTERWORDS_START_ALLOWANCE_S.",
    ),
    "preparing_timed_out": (
        "preparing the voice made no progress for too long",
        "try again, which resumes it; the server's setting is AFTERWORDS_START_ALLOWANCE_S.",
    ),
    "speaking_timed_out": (
        "the engine made no sound for too long",
        "try again; the server's setting is AFTERWORDS_STALL_S.",
    ),
}
"""What each error code of a failed job means, and how to fix it; docs/api.md lists the codes."""
_NEXT_LINK: Final = re.compile(r'>\s*;\s*rel="?next"?')


# -- errors ---------------------------------------------------------------------------------------------------


def parse_error(response: Response, request: Request) -> AfterwordsError:
    """Return the error that a response describes: the class of its code, with the request ID."""
    if 300 <= response.status < 400:
        return invalid_response(response, "it redirects to another address, which must not receive the key")
    fields: dict[str, Any] = {}
    try:
        error = json.loads(response.body)["error"]
        fields = error if isinstance(error, dict) else {"message": error if isinstance(error, str) else ""}
    except (ValueError, KeyError, TypeError, RecursionError):
        if not response.is_json and not response.is_transient_failure:  # else a proxy reports that the server is down
            return invalid_response(response, f"it has status {response.status} and is not JSON")
    missing_code = request.missing_code if response.status == 404 else ""
    code = _word(fields.get("code")) or _CODES.get(response.status) or missing_code
    request_id = _word(fields.get("request_id")) or _word(response.headers.get("x-request-id"))
    message = str(fields.get("message") or f"The server responded with status {response.status}.")
    limit = response.headers.get("ratelimit-limit", "")
    if code in _HINTS:
        hint = _HINTS[code]
    elif response.retry_after_s is not None:
        hint = f"wait {response.retry_after_s} s, then try again."
    elif response.status < 500:
        hint = "correct the request, then try again."
    else:
        about = f", and name the request {request_id}" if request_id else ""
        hint = f"try again; if it fails again, ask the operator of the server{about}."
    return error_from_code(
        code,
        message[:_MESSAGE_MAX_CHARS],
        hint=hint,
        http_status=response.status,
        param=_word(fields.get("param")),
        limit=int(limit) if re.fullmatch(r"\d{1,15}", limit) else None,
        retry_after_s=response.retry_after_s,
        request_id=request_id,
    )


def parse_socket_error(message: Mapping[str, Any], request_id: str) -> AfterwordsError:
    """Return the error that a message of a WebSocket describes, as `parse_error` does."""
    headers = {"content-type": "application/json", "x-request-id": request_id}
    if isinstance(retry_after_s := message.get("retry_after_s"), int):
        headers["retry-after"] = str(retry_after_s)
    status = message.get("status")
    if not isinstance(status, int) or not 400 <= status < 600:
        status = 500
    return parse_error(Response(status, headers, json.dumps({"error": message}).encode()), Request("GET", ""))


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def truncated_response(response: Response) -> ConnectionLostError:
    """Return the error for a connection that was lost within the body."""
    error = ConnectionLostError.for_url("the server", why="it ended within the response")
    error.request_id = _word(response.headers.get("x-request-id"))
    return error


def invalid_response(response: Response, why: str) -> InvalidResponseError:
    """Return the error for a response that is not one of the API."""
    error = InvalidResponseError.for_reason(why)
    error.request_id, error.http_status = _word(response.headers.get("x-request-id")), response.status
    return error


# -- models ---------------------------------------------------------------------------------------------------


def _parse_json(response: Response) -> Any:
    if not response.is_json:
        raise invalid_response(response, f"its content type is {response.content_type} instead of JSON")
    try:
        return json.loads(response.body)
    except (ValueError, RecursionError):
        raise invalid_response(response, "its JSON can't be read") from None


def parse_object(response: Response) -> dict[str, Any]:
    """Return the JSON object of a response, or raise InvalidResponseError."""
    body = _parse_json(response)
    if not isinstance(body, dict):
        raise invalid_response(response, "it is not a JSON object")
    return body


def parse_array(response: Response) -> list[dict[str, Any]]:
    """Return the JSON objects of a response, or raise InvalidResponseError."""
    body = _parse_json(response)
    if not isinstance(body, list) or not all(isinstance(item, dict) for item in body):
        raise invalid_response(response, "it is not a list of JSON objects")
    return body


def has_next_page(response: Response) -> bool:
    return _NEXT_LINK.search(response.headers.get("link", "")) is not None


def parse_model(response: Response, model: type[M]) -> M:
    return validate(model, parse_object(response), response)


def parse_models(response: Response, model: type[M]) -> list[M]:
    return [validate(model, item, response) for item in parse_array(response)]


def validate(model: type[M], fields: Mapping[str, Any], response: Response) -> M:
    """Return a model of the fields that it knows, or raise InvalidResponseError."""
    try:
        return model.model_validate({name: fields[name] for name in model.model_fields if name in fields})
    except ValidationError as error:
        names = ", ".join(sorted({str(e["loc"][0]) for e in error.errors() if e["loc"]}))
        raise invalid_response(response, f"its {model.__name__} has wrong or missing fields ({names})") from None


def parse_voice(fields: Mapping[str, Any], response: Response) -> Voice:
    """Return a voice. The fields of its reference begin with `ref_`."""
    reference = {
        "sha256": fields.get("ref_sha256"),
        "duration_s": fields.get("ref_duration_s"),
        "sample_rate": fields.get("ref_sample_rate"),
    }
    metadata = fields.get("metadata")
    if isinstance(metadata, str):  # the hosted service stores a JSON string
        try:
            metadata = json.loads(metadata)
        except (ValueError, RecursionError):
            metadata = None
    if metadata is None and fields.get("emotion"):  # in a list
        metadata = {"emotion": fields["emotion"]}
    known = {
        **fields,
        "lang": fields.get("lang") or "en",
        "metadata": metadata if isinstance(metadata, dict) else {},
        "reference": {**reference, "grade": fields.get("ref_grade")} if all(reference.values()) else None,
    }
    return validate(Voice, known, response)


def parse_job(response: Response) -> Job:
    fields = parse_object(response)
    if fields.get("job_id") is None:
        raise invalid_response(response, "its Job has no job_id")
    return validate(Job, fields, response)


def check_ready(job: Job) -> Job:
    """Return a final job that is ready, or raise JobFailedError or JobError."""
    if job.status is JobStatus.FAILED:
        reason = job.error or "no reason was given"
        meaning, fix = _JOB_FAILURES.get(reason, ("", ""))
        why = f"{meaning} ({reason})" if meaning else reason.rstrip(".")
        fix = fix or "try again; if it fails again, ask the operator of the server."
        message, hint = f"The job {job.job_id} failed: {why}.", f"nothing was charged; {fix}"
        raise JobFailedError(message, hint=hint, job_id=job.job_id, reason=reason)
    if job.status is JobStatus.CANCELLED:
        raise JobError(f"The job {job.job_id} was cancelled.", code="job_cancelled", job_id=job.job_id)
    return job


# -- speech ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpeechResponse:
    """Audio of a response, with what its headers say.

    Attributes:
        is_cached: The speech was in the server's cache.
        left_out: Words of the text that the backend can't speak.
        notices: Sentences about markup of the text that is spoken as text or ignored.
        stream: The open `httpx.Response`, if the audio is still to be read.
    """

    data: bytes = field(repr=False)
    voice_id: str | None
    backend: str | None
    job_id: str | None = None
    is_cached: bool = False
    left_out: tuple[str, ...] = field(default=(), repr=False)
    notices: tuple[str, ...] = ()
    stream: Any = field(default=None, repr=False)


class SpeechUnit(BaseModel):
    """The message with which the audio of a part of a live text begins."""

    model_config = ConfigDict(hide_input_in_errors=True)

    sample_rate: Annotated[int, Field(ge=1_000, le=400_000)]
    voice_id: str | None = None
    backend: str | None = None
    left_out: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def parse_unit(message: Mapping[str, Any]) -> SpeechUnit:
    """Return the beginning of a unit, and warn if words of it are not spoken, and about its markup."""
    try:
        unit = SpeechUnit.model_validate(message)
    except ValidationError:
        raise InvalidResponseError.for_reason("the message audio.start has wrong or missing fields") from None
    if unit.left_out:
        warn_left_out(unit.backend)
    for notice in unit.notices:
        warnings.warn(notice, TextWarning, stacklevel=2)
    return unit


def check_audio(response: Response) -> None:
    """Raise InvalidResponseError if a successful response is not audio."""
    if not response.is_audio:
        raise invalid_response(response, f"its content type is {response.content_type} instead of audio")


def parse_speech(response: Response, voice_id: str) -> SpeechResponse:
    headers, (left_out, notices) = response.headers, parse_notices(response)
    return SpeechResponse(
        response.body,
        headers.get("x-voice-id", voice_id),
        headers.get("x-backend"),
        headers.get("x-job-id"),
        is_cached=headers.get("x-cache", "").upper() == "HIT",
        left_out=left_out,
        notices=notices,
        stream=response.stream,
    )


def parse_notices(response: Response) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words of the text that are not spoken, and notices about its markup.

    Warn about both, without naming the words.
    """
    words = tuple(unquote(word) for word in response.headers.get("x-left-out", "").split(",") if word)
    if words:
        warn_left_out(response.headers.get("x-backend"))
    if notices := response.headers.get("x-notices"):
        warnings.warn(notices, TextWarning, stacklevel=2)
    return words, (notices,) if notices else ()


def warn_left_out(backend: str | None) -> None:
    why = f"{backend or 'The server'} leaves out words of the text; `left_out` has them."
    warnings.warn(why, TextWarning, stacklevel=3)
