"""Requests and responses as both clients see them, with the rules for retries and resumed downloads. No I/O."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Final
from uuid import uuid4

from afterwords.audio.wav_chunks import UNKNOWN_SIZE
from afterwords.errors import AfterwordsError, ConnectionLostError, InvalidOptionError, UnreachableError
from afterwords.models import SpeechFormat

TIMEOUT_S: Final = 60.0
"""How long a server may stay silent, in seconds."""
JOB_TIMEOUT_S: Final = 600.0
"""How long `say` and `wait` wait for a job, in seconds."""
FIRST_AUDIO_S: Final = 600.0
"""How long a stream may stay silent at first: earlier jobs run, and the voice is prepared."""
LONG_POLL_S: Final = 20
"""How long one request waits for a job, in seconds."""
PAGE_MAX: Final = 1000

RETRIES: Final = 4
BACKOFF_S, BACKOFF_MAX_S = 0.25, 8.0
RETRY_AFTER_MAX_S: Final = 60.0
JSON_MAX_BYTES: Final = 16 * 2**20
AUDIO_MAX_BYTES: Final = 512 * 2**20  # 5,000 characters at the lowest speed make 300 MB

_TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})
_NOT_PROCESSED: Final = frozenset({408, 429, 503})
_PERMANENT_CODES: Final = frozenset({"quota_exceeded", "reference_missing", "audio_lost", "synthesis_failed"})
_SHA256_ETAG: Final = re.compile(r'"([0-9a-f]{64})"')
_IDEMPOTENCY_KEY: Final = re.compile(r"[!-~]{1,255}")
_RESOURCE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,200}")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a server.

    Attributes:
        form: Fields of a multipart form that carries `file` as its recording.
        is_repeatable: The request may be sent again even if the server processed it.
        idempotency_key: Makes the request repeatable on a server that supports such keys.
        is_admin: The admin secret authorizes the request.
        is_public: The request needs no key.
        feature: What the request does, if only afterwords servers can do it and the hosted service can't.
        missing_code: The error code of a 404 response that has none.
        is_done_if_gone: A 404 response means that an earlier attempt, whose response was lost, succeeded.
        is_stream: The body of a successful response stays open for the caller to read.
        is_download: The body may be long, and an incomplete one is returned too.
        wait_s: How long the server may stay silent on purpose, beyond the client's timeout.
    """

    method: str
    path: str
    params: Mapping[str, str | int] = field(default_factory=dict)
    json: Any = field(default=None, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)
    file: bytes | None = field(default=None, repr=False)
    body: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    is_repeatable: bool = True
    idempotency_key: str | None = None
    is_admin: bool = False
    is_public: bool = False
    feature: str | None = None
    missing_code: str = "not_found"
    is_done_if_gone: bool = False
    is_stream: bool = False
    is_download: bool = False
    wait_s: float = 0.0

    @property
    def max_bytes(self) -> int:
        """The size of the longest body that is accepted."""
        return AUDIO_MAX_BYTES if self.is_download else JSON_MAX_BYTES


@dataclass(frozen=True, slots=True)
class Response:
    """A response of a server.

    Attributes:
        headers: By lower-case name.
        is_whole: False if the connection was lost within the body.
        stream: The open `httpx.Response`, if the body was left for the caller to read.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    is_whole: bool = True
    stream: Any = field(default=None, repr=False)

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "of no type").partition(";")[0].lower()[:60]

    @property
    def is_audio(self) -> bool:
        return self.content_type.startswith("audio/")

    @property
    def is_json(self) -> bool:
        return "json" in self.content_type

    @property
    def is_transient_failure(self) -> bool:
        """The status is one that may go away by itself."""
        return self.status in _TRANSIENT

    @property
    def retry_after_s(self) -> int | None:
        value = self.headers.get("retry-after", "")
        return int(value) if re.fullmatch(r"\d{1,9}", value) else None

    @property
    def is_damaged(self) -> bool:
        """The body does not match the SHA-256 in its ETag, or is a WAV file shorter than its header says."""
        digest = _SHA256_ETAG.fullmatch(self.headers.get("etag", ""))
        if digest is not None:
            return sha256(self.body).hexdigest() != digest[1]
        length = int.from_bytes(self.body[4:8], "little")
        return self.body.startswith(b"RIFF") and length != UNKNOWN_SIZE and len(self.body) < 8 + length


# -- building requests ----------------------------------------------------------------------------------------


def drop_none(**fields: Any) -> dict[str, Any]:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def resource_path(collection: str, resource_id: str) -> str:
    """Return the path of a resource. A malformed ID becomes `-`, which no resource has."""
    return f"{collection}/{resource_id if _RESOURCE_ID.fullmatch(resource_id) else '-'}"


def voice_request(method: str, voice_id: str, suffix: str = "", **options: Any) -> Request:
    path = resource_path("/v1/voices", voice_id)
    return Request(method, f"{path}{suffix}", missing_code="voice_not_found", **options)


def ensure_idempotency_key(key: str | None = None) -> str:
    """Return an idempotency key: the given one, or a new one.

    Raises:
        InvalidOptionError: No header can carry the key.
    """
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidOptionError.for_option(
            "the idempotency key", value=key[:40], allowed="1 to 255 visible ASCII characters"
        )
    return key or str(uuid4())


def speech_fields(
    text: str,
    *,
    emotion: str | None,
    lang: str | None,
    backend: str | None,
    speed: float,
    seed: int | None,
    timestamps: bool = False,
    verify: bool = False,
    format: SpeechFormat = SpeechFormat.WAV,
    webhook_url: str | None = None,
) -> dict[str, Any]:
    """Return the JSON fields of a synthesis request, without those that have their default."""
    return drop_none(
        text=text,
        emotion=None if emotion is None else emotion.strip().lower(),
        lang=lang,
        backend=backend,
        speed=None if speed == 1.0 else speed,
        seed=seed,
        timestamps=timestamps or None,
        verify=verify or None,
        response_format=None if format is SpeechFormat.WAV else format.value,
        webhook_url=webhook_url,
    )


def synthesis_request(voice_id: str, fields: dict[str, Any], *, key: str, wait_s: int = 0) -> Request:
    """Return a synthesis request; the server responds within `wait_s` seconds, or streams if `stream` is set."""
    is_stream = "stream" in fields
    return Request(
        "POST",
        "/v1/synthesize",
        json={"voice_id": voice_id, **fields},
        headers={"Prefer": f"wait={wait_s}"} if wait_s else {},
        is_repeatable=False,
        idempotency_key=key,
        missing_code="voice_not_found",
        is_stream=is_stream,
        is_download=True,
        wait_s=FIRST_AUDIO_S if is_stream else wait_s,
    )


def estimate_request(voice_id: str, fields: dict[str, Any]) -> Request:
    body = {"voice_id": voice_id, **fields}
    return Request("POST", "/v1/estimate", json=body, missing_code="voice_not_found", feature="estimating speech")


def long_poll_s(left_s: float) -> int:
    """Return how long the next request waits for a job, in whole seconds."""
    return max(0, round(min(LONG_POLL_S, left_s)))


# -- retries --------------------------------------------------------------------------------------------------


def should_retry(response: Response | None, error: AfterwordsError) -> bool:
    """Return whether a failed request may succeed soon. There is no response if the connection failed."""
    if response is None:
        return isinstance(error, UnreachableError | ConnectionLostError)
    if not response.is_whole:
        return True
    is_soon = (response.retry_after_s or 0) <= RETRY_AFTER_MAX_S
    return response.is_transient_failure and error.code not in _PERMANENT_CODES and is_soon


def was_not_processed(response: Response | None, error: AfterwordsError) -> bool:
    """Return whether it is certain that the server did nothing."""
    return isinstance(error, UnreachableError) if response is None else response.status in _NOT_PROCESSED


def backoff_s(attempt: int, error: AfterwordsError) -> float:
    """Return how long to wait: as long as the server asks for, else an exponential backoff. Both have jitter."""
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        return float(retry_after_s) + random.uniform(0.0, BACKOFF_S)
    return random.uniform(0.5, 1.0) * min(BACKOFF_MAX_S, BACKOFF_S * 2.0**attempt)


# -- resumed downloads ----------------------------------------------------------------------------------------


NOTHING: Final = Response(0, {}, is_whole=False)
"""A download that has not begun."""


def resume(request: Request, have: Response) -> Request:
    """Return the request for the rest of a body."""
    if not have.body:
        return request
    headers = {"Range": f"bytes={len(have.body)}-"}
    if etag := have.headers.get("etag"):
        headers["If-Range"] = etag
    return replace(request, headers={**request.headers, **headers})


def append(have: Response, part: Response) -> Response:
    """Return the body so far with the next part; one of another body starts the download over."""
    if part.status != 206:
        can_resume = part.is_whole or part.headers.get("accept-ranges") != "none"
        return part if can_resume else NOTHING
    found = _CONTENT_RANGE.fullmatch(part.headers.get("content-range", ""))
    if found is None or int(found[1]) != len(have.body):
        return NOTHING
    body = have.body + part.body
    return Response(200, have.headers, body, is_whole=part.is_whole and len(body) == int(found[2]))
