"""How one request is made to succeed: sent, judged, sent again where that is safe, fetched to the last byte.

Generators that yield requests and pauses, and are handed what came back: no I/O, so `Client` and `AsyncClient` share
every rule. What a server answers is believed only as far as it can be checked: status, shape, length and digest.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from typing import Any, Final, TypeVar
from uuid import uuid4

from afterwords.audio.wav_chunks import UNKNOWN_SIZE
from afterwords.errors import (
    AfterwordsError,
    BadRequestError,
    ConnectionLostError,
    InvalidOptionError,
    LimitError,
    RemoteError,
    RemoteJobError,
    ServerSetupError,
    ServiceError,
    StrangeAnswerError,
    UnreachableError,
)

T = TypeVar("T")

RETRIES: Final = 4
BACKOFF_S, BACKOFF_MAX_S = 0.25, 8.0
RETRY_AFTER_MAX_S: Final = 60.0
JSON_MAX_BYTES: Final = 16 * 2**20
AUDIO_MAX_BYTES: Final = 512 * 2**20
"""Nothing that a server has to say is longer: 5,000 characters at their slowest make 300 MB."""

_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_NOTHING_DONE: Final = frozenset({408, 429, 503})
_LASTING: Final = frozenset({"quota_exceeded", "reference_missing", "audio_lost", "synthesis_failed"})
_CODES: Final = {
    400: "bad_request",
    401: "unauthorized",
    403: "insufficient_scope",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "request_too_large",
    422: "invalid_input",
    429: "limit_reached",
    503: "service_unavailable",
}
"""What a refusal means that has no code of its own."""
_HINTS: Final = {
    "unauthorized": "`afterwords login` takes another key; AFTERWORDS_API_KEY wins over it.",
    "admin_required": "set AFTERWORDS_ADMIN_SECRET to the admin secret of the server, or ask the person who runs it.",
    "key_replaced": "use the key that replaced it: `afterwords login`.",
    "voice_not_found": "`afterwords voices --remote` lists the voices there; `afterwords push` copies a voice there.",
    "ambiguous_voice_name": "use the id of the voice: `afterwords voices --remote --json`.",
    "home_voice": "change it where it is at home: `afterwords voices` on the machine of the server.",
    "job_not_found": "`afterwords jobs list` lists the jobs there.",
    "key_not_found": "`afterwords keys list --remote` lists the keys there.",
    "quota_exceeded": "`afterwords usage` shows when the next period begins; or ask for a higher limit.",
    "storage_quota_exceeded": "delete a voice, or ask the person who runs the server for more room.",
}
_DIGEST: Final = re.compile(r'"([0-9a-f]{64})"')
_KEY: Final = re.compile(r"[!-~]{1,255}")
_WORD: Final = re.compile(r"[!-~]{1,80}")
"""What a code, a request id and the name of a field look like; whoever tells of an error prints them."""
_MESSAGE_MAX_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class Ask:
    """A request.

    Attributes:
        form: fields of a form that carries `file` as its recording.
        is_repeatable: whether it may be sent again though it may have been carried out.
        idempotency_key: makes it repeatable with a server that knows such keys.
        is_admin: whether the admin secret opens it.
        is_public: whether it needs no key.
        missing: the code of a 404 that has none.
        gone_is_done: a 404 means that an attempt before, whose answer was lost, did it.
        is_stream: the body of a good answer is left to be read by whoever asked.
        is_download: the body may be long, and a part of it is of use.
        wait_s: how long the server may be silent on purpose, beyond the client's timeout.
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
    missing: str = "not_found"
    gone_is_done: bool = False
    is_stream: bool = False
    is_download: bool = False
    wait_s: float = 0.0

    @property
    def max_bytes(self) -> int:
        """The longest body that is taken."""
        return AUDIO_MAX_BYTES if self.is_download else JSON_MAX_BYTES


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        headers: by lower-case name.
        is_whole: False where the connection ended within the body.
        stream: the open response, where the body was left to be read.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    is_whole: bool = True
    stream: Any = field(default=None, repr=False)

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-request-id")


@dataclass(slots=True)
class Known:
    """What a client has learned of its server.

    Attributes:
        is_own: whether it is an afterwords server, not the hosted service; None: not asked yet.
        voices: identifiers by name.
    """

    is_own: bool | None = None
    voices: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pause:
    """Time to let pass before the next request."""

    seconds: float


Operation = Generator[Ask | Pause, Answer | None, T]


def once(key: str | None = None) -> str:
    """A key that makes repeating a request safe: the one that was given, or a new one."""
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidOptionError("the idempotency key", value=key[:40], allowed="1 to 255 visible ASCII characters")
    return key or str(uuid4())


# -- sending --------------------------------------------------------------------------------------------------


def sent(ask: Ask, known: Known) -> Operation[Answer]:
    """Send a request until it is answered well, as often as that is safe.

    Raises:
        ServiceError and others: the server refused, or kept failing: the class of the code that it gave.
        UnreachableError, ConnectionLostError: there was no answer, or not a whole one.
        StrangeAnswerError: what came is no answer of the API.
    """
    may_be_done = False
    for attempt in range(RETRIES + 1):
        answer = None
        try:
            answer = yield ask
            assert answer is not None, "a request is answered"
            if answer.status < 300 and (answer.is_whole or (ask.is_download and answer.status in (200, 206))):
                return answer  # of a 202 no half is of use
            error = refusal(answer, ask) if answer.is_whole else cut(answer)
        except AfterwordsError as failed:  # the driver throws in what became of the request
            error = failed
        if answer is not None and answer.status == 404 and ask.gone_is_done and may_be_done:
            return Answer(204, {}, b"")
        if attempt == RETRIES or not _may_pass(answer, error):
            raise error
        if not _was_not_done(answer, error):
            may_be_done = True
            if not (ask.is_repeatable or (yield from _is_known(ask, known))):
                raise error
        yield Pause(pause_s(attempt, error))
    raise AssertionError("the last attempt returns or raises")


def _may_pass(answer: Answer | None, error: AfterwordsError) -> bool:
    """Whether it may go well next time, if that is soon enough."""
    if answer is None:
        return isinstance(error, UnreachableError | ConnectionLostError)
    if not answer.is_whole:
        return True
    is_soon = (_retry_after(answer) or 0) <= RETRY_AFTER_MAX_S
    return answer.status in _PASSING and error.code not in _LASTING and is_soon


def _was_not_done(answer: Answer | None, error: AfterwordsError) -> bool:
    """Whether it is certain that nothing came of the request."""
    return isinstance(error, UnreachableError) if answer is None else answer.status in _NOTHING_DONE


def cut(answer: Answer | None = None) -> ConnectionLostError:
    """The error that half an answer is."""
    error = ConnectionLostError("the server", why="it ended within the answer")
    if answer is not None:
        error.request_id = _word(answer.request_id)
    return error


def _is_known(ask: Ask, known: Known) -> Operation[bool]:
    """Whether the server would know a request again that it has carried out."""
    if ask.idempotency_key is None:
        return False
    try:
        return (yield from is_own(known))
    except AfterwordsError:  # then it is not known, and what failed first is what to tell
        return False


def is_own(known: Known) -> Operation[bool]:
    """Whether this is an afterwords server; the hosted service does not tell its version."""
    if known.is_own is None:
        answer = yield from sent(Ask("GET", "/v1/health", is_public=True), known)
        health = json_of(answer)
        known.is_own = isinstance(health, dict) and bool(health.get("version"))
    return known.is_own


def pause_s(attempt: int, error: AfterwordsError) -> float:
    """As long as the server wishes, else twice as long each time; never all clients at once."""
    wish = getattr(error, "retry_after_s", None)
    if wish is not None:
        return float(wish) + random.uniform(0.0, BACKOFF_S)
    return random.uniform(0.5, 1.0) * min(BACKOFF_MAX_S, BACKOFF_S * 2.0**attempt)


# -- refusals -------------------------------------------------------------------------------------------------


def refusal(answer: Answer, ask: Ask) -> AfterwordsError:
    """The error that an answer is: the class of its code, with the request id."""
    if 300 <= answer.status < 400:
        return strange(answer, "it leads to another address, and keys are sent nowhere else")
    told = _told(answer)
    if told is None and not _is_json(answer):
        if answer.status in _PASSING:  # a proxy speaks for a server that is away
            told = {}
        else:
            return strange(answer, f"it has status {answer.status} and is not JSON")
    told = told or {}
    code = _word(told.get("code")) or _CODES.get(answer.status) or (ask.missing if answer.status == 404 else "")
    kind = _classes().get(code) or (BadRequestError if 400 <= answer.status < 500 else ServiceError)
    error = kind.__new__(kind)
    error.request_id = _word(told.get("request_id")) or _word(answer.request_id)
    message = str(told.get("message") or f"The server answered with status {answer.status}.")[:_MESSAGE_MAX_CHARS]
    AfterwordsError.__init__(error, message, hint=_hint(code, answer, error.request_id))
    error.code = code or kind.code
    error.http_status = answer.status
    if isinstance(error, ServiceError):
        error.param = _word(told.get("param"))
        error.retry_after_s = _retry_after(answer)
    if isinstance(error, LimitError):
        limit = answer.headers.get("ratelimit-limit", "")
        error.limit = int(limit) if re.fullmatch(r"\d{1,15}", limit) else None
    return error


def _told(answer: Answer) -> dict[str, Any] | None:
    """The error object of an answer; a plain message counts as one."""
    try:
        told = json.loads(answer.body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return told if isinstance(told, dict) else {"message": told if isinstance(told, str) else ""}


def _word(told: object) -> str | None:
    return told if isinstance(told, str) and _WORD.fullmatch(told) else None


def _is_json(answer: Answer) -> bool:
    return "json" in _type_of(answer)


def _hint(code: str, answer: Answer, request_id: str | None) -> str:
    if code in _HINTS:
        return _HINTS[code]
    if (retry_after_s := _retry_after(answer)) is not None:
        return f"wait {retry_after_s} s, then ask again."
    if answer.status < 500:
        return "correct the request, then try again."
    again = f" about request {request_id}" if request_id else ""
    return f"try again; if it fails again, ask the person who runs the server{again}."


def _retry_after(answer: Answer) -> int | None:
    wish = answer.headers.get("retry-after", "")
    return int(wish) if re.fullmatch(r"\d{1,9}", wish) else None


@cache
def _classes() -> dict[str, type[AfterwordsError]]:
    """Every class of what a server may say, by its code."""
    found: dict[str, type[AfterwordsError]] = {}

    def add(kind: type[AfterwordsError]) -> None:
        for sub in kind.__subclasses__():
            if sub.__module__.startswith("afterwords.errors.") and sub not in _NOT_TOLD:
                found.setdefault(sub.code, sub)
                add(sub)

    add(AfterwordsError)
    return found


_NOT_TOLD: Final = (RemoteError, RemoteJobError, ServerSetupError)
"""What is found out here, and no server's to say."""


def strange(answer: Answer, why: str) -> StrangeAnswerError:
    error = StrangeAnswerError(why)
    error.request_id, error.http_status = _word(answer.request_id), answer.status
    return error


# -- what an answer holds -------------------------------------------------------------------------------------


def json_of(answer: Answer) -> Any:
    """The JSON of a good answer.

    Raises:
        StrangeAnswerError: it is none.
    """
    if not _is_json(answer):
        raise strange(answer, f"it is {_type_of(answer)} where JSON belongs")
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        raise strange(answer, "its JSON can't be read") from None


def check_audio(answer: Answer) -> None:
    """See that a good answer is a sound.

    Raises:
        StrangeAnswerError: it is something else.
    """
    if not is_audio(answer):
        raise strange(answer, f"it is {_type_of(answer)} where audio belongs")


def is_audio(answer: Answer) -> bool:
    return _type_of(answer).startswith("audio/")


def _type_of(answer: Answer) -> str:
    return answer.headers.get("content-type", "of no type").partition(";")[0].lower()[:60]


def is_damaged(answer: Answer) -> bool:
    """Whether a whole body is not the one that its ETag, a SHA-256, states, or is a WAV file shorter than it says."""
    stated = _DIGEST.fullmatch(answer.headers.get("etag", ""))
    if stated is not None:
        return sha256(answer.body).hexdigest() != stated[1]
    length = int.from_bytes(answer.body[4:8], "little")
    return answer.body.startswith(b"RIFF") and length != UNKNOWN_SIZE and len(answer.body) < 8 + length
