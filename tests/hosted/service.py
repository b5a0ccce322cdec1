"""A fake of the hosted afterwords-cloud service, with exactly the fields that its tables in docs/api.md list.

A client that works here needs no feature of our server: no Idempotency-Key, long polls, formats, pages, ETag or
X-Request-Id. Everything that the tables do not list is ignored or 404. It uses the standard library and plain SQL, and
does not import the package, so that it can't share bugs with our server. Worker callbacks, signup, checkout and
webhooks are missing, because the clients do not call them.
"""

from __future__ import annotations

import hmac
import json
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from secrets import token_urlsafe
from threading import Lock
from types import TracebackType
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from tests.hosted.audio import check_reference, sine_wav
from tests.hosted.http_server import (
    HttpError,
    HttpRequest,
    HttpResponse,
    HttpServer,
    apply_range,
    json_response,
    parse_form,
    parse_json,
)

LANGS = ("en", "zh", "ja", "ko", "es", "fr", "de", "it", "pt", "ru")
SECONDS_PER_CHARACTER = 0.06
TABLES = """
CREATE TABLE keys (key_hash TEXT PRIMARY KEY, label TEXT, created_at TEXT);
CREATE TABLE voices (
    voice_id TEXT PRIMARY KEY, owner TEXT, name TEXT, backend TEXT, ref_text TEXT, lang TEXT, family TEXT,
    ref_audio_key TEXT, created_at TEXT, metadata TEXT);
CREATE TABLE jobs (
    job_id TEXT PRIMARY KEY, owner TEXT, voice_id TEXT, status TEXT, audio_key TEXT, error TEXT, created_at TEXT,
    completed_at TEXT, char_count INTEGER);
CREATE TABLE spent (job_id TEXT PRIMARY KEY, owner TEXT, characters INTEGER, at TEXT);
"""


class LoggedRequest(NamedTuple):
    """A request of the log: `path` with its query, header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class _Work:
    """A job that a worker is running."""

    text: str
    cache_path: str
    looks_left: int
    due: float


class _Call(NamedTuple):
    """An authenticated request: the owner of its key, and the ID in its path."""

    request: HttpRequest
    owner: str
    id: str


class HostedService:
    """A fake of the hosted service on a free port of 127.0.0.1, while used in `with`. Thread-safe.

    Args:
        backends: The backends that `GET /v1/health` returns, best first.
        pending_looks: How many times `GET /v1/jobs/{id}` returns that a job is pending.
        pending_s: How long a job is pending at least, in seconds.
        error_style: `object` for errors as in docs/api.md, `string` for `{"error": "message"}`.
        public_url: The beginning of `audio_url`. It does not exist, so clients must use the address of their key.

    Attributes:
        api_key: The key of an account; `POST /v1/keys` with `admin_secret` creates more.
        requests: All requests, in order.
        blobs: The storage, with paths such as `voices/{voice_id}/ref.wav`; delete one to lose it.

    A job whose text contains the word `fail` fails.
    """

    admin_secret = "the-admin-secret-of-the-hosted-service"

    def __init__(
        self,
        *,
        backends: Sequence[str] = ("qwen3-1.7b", "qwen3-0.6b"),
        pending_looks: int = 2,
        pending_s: float = 0.0,
        error_style: Literal["object", "string"] = "object",
        public_url: str = "https://cdn.example.invalid",
    ) -> None:
        self.backends = tuple(backends)
        self.pending_looks, self.pending_s = pending_looks, pending_s
        self.error_style, self.public_url = error_style, public_url
        self.requests: list[LoggedRequest] = []
        self.blobs: dict[str, bytes] = {}
        self._work: dict[str, _Work] = {}
        self._lock = Lock()

    def __enter__(self) -> HostedService:
        self._db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.executescript(TABLES)
        self.api_key = self._new_key(None)["api_key"]
        self._server = HttpServer(self._respond)
        self.url = self._server.url
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self._db.close()

    def annotate(self, voice_id: str, **metadata: Any) -> None:
        """Set the `metadata` of a voice, which clients get as JSON in a string, because the column is TEXT."""
        with self._lock:
            self._rows("UPDATE voices SET metadata = ? WHERE voice_id = ?", json.dumps(metadata), voice_id)

    # -- routing and authentication -----------------------------------------------------------------------------

    def _respond(self, request: HttpRequest) -> HttpResponse:
        with self._lock:
            self.requests.append(LoggedRequest(request.method, request.target, dict(request.headers)))
            try:
                self._finish_work()
                return self._route(request)
            except HttpError as error:
                return self._error_response(error)

    def _route(self, request: HttpRequest) -> HttpResponse:
        for method, pattern, access, route in _ROUTES:
            if method == request.method and (found := re.fullmatch(pattern, request.path)):
                return route(self, _Call(request, self._authenticate(access, request), "".join(found.groups())))
        raise HttpError(404, "not_found", "There is no such route.")

    def _authenticate(self, access: str, request: HttpRequest) -> str:
        """Return the owner: the hash of a user's key, empty for the admin and the public."""
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        secret = credentials if scheme.lower() == "bearer" else ""
        if access == "user":
            key_hash = _hash(secret)
            is_authorized = bool(self._rows("SELECT 1 FROM keys WHERE key_hash = ?", key_hash))
        else:
            key_hash = ""
            is_authorized = access == "public" or hmac.compare_digest(_hash(secret), _hash(self.admin_secret))
        if not is_authorized:
            raise HttpError(401, "unauthorized", "The key is missing or unknown.")
        return key_hash

    def _error_response(self, failure: HttpError) -> HttpResponse:
        if self.error_style == "string":
            return json_response(failure.status, {"error": failure.message})
        kinds = {401: "authentication_error", 404: "not_found_error", 500: "server_error"}
        error = {
            "code": failure.code,
            "message": failure.message,
            "type": kinds.get(failure.status, "invalid_request_error"),
            "param": failure.param,
            "request_id": str(uuid4()),
        }
        return json_response(failure.status, {"error": error})

    # -- health, keys, usage ------------------------------------------------------------------------------------

    def _health(self) -> HttpResponse:
        return json_response(200, {"status": "ok", "backends": self.backends})

    def _create_key(self, request: HttpRequest) -> HttpResponse:
        fields = parse_json(request) if request.body else {}
        label = fields.get("label")
        return json_response(201, self._new_key(label if isinstance(label, str) else None))

    def _new_key(self, label: str | None) -> dict[str, Any]:
        secret, created_at = f"aw_{token_urlsafe(32)}", _now()
        self._rows("INSERT INTO keys VALUES (?,?,?)", _hash(secret), label, created_at)
        return {"api_key": secret, "label": label, "created_at": created_at}

    def _usage(self, owner: str) -> HttpResponse:
        start = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
        spent = self._rows("SELECT characters FROM spent WHERE owner = ? AND at >= ?", owner, _iso(start))
        return json_response(
            200,
            {
                "characters": sum(row["characters"] for row in spent),
                "limit": None,
                "period_start": _iso(start),
                "period_end": _iso(end),
            },
        )

    # -- voices -------------------------------------------------------------------------------------------------

    def _create_voice(self, request: HttpRequest, owner: str) -> HttpResponse:
        form = parse_form(request)
        for field, present in (("name", form.fields), ("ref_audio", form.files)):
            if field not in present:
                raise HttpError(400, "missing_field", f"The field {field} is missing.", field)
        name, wav = form.fields["name"], form.files["ref_audio"]
        if not 1 <= len(name) <= 200:
            raise HttpError(422, "invalid_name", "A name has 1 to 200 characters.", "name")
        default = "qwen3-1.7b" if "qwen3-1.7b" in self.backends else self.backends[0]
        backend, lang = self._check_backend(form.fields.get("backend") or default, form.fields.get("lang") or "en")
        check_reference(wav)
        voice_id, created_at = str(uuid4()), _now()
        ref_audio_key = f"voices/{voice_id}/ref.wav"
        self.blobs[ref_audio_key] = wav
        details = (form.fields.get("ref_text"), lang, form.fields.get("family"), ref_audio_key, created_at, None)
        self._rows("INSERT INTO voices VALUES (?,?,?,?,?,?,?,?,?,?)", voice_id, owner, name, backend, *details)
        return json_response(201, {"voice_id": voice_id, "name": name, "backend": backend, "created_at": created_at})

    def _list_voices(self, owner: str) -> HttpResponse:
        columns = "voice_id, name, backend, lang, created_at"
        return json_response(200, self._rows(f"SELECT {columns} FROM voices WHERE owner = ? ORDER BY rowid", owner))

    def _show_voice(self, owner: str, voice_id: str) -> HttpResponse:
        voice = self._voice(owner, voice_id)
        return json_response(200, {column: voice[column] for column in voice if column != "owner"})

    def _delete_voice(self, owner: str, voice_id: str) -> HttpResponse:
        self._voice(owner, voice_id)
        deleted = [row["job_id"] for row in self._rows("SELECT job_id FROM jobs WHERE voice_id = ?", voice_id)]
        for job_id in deleted:
            self._work.pop(job_id, None)
        folders = (f"voices/{voice_id}/", *(f"jobs/{job_id}." for job_id in deleted))
        for path in [path for path in self.blobs if path.startswith(folders)]:
            del self.blobs[path]
        self._rows("DELETE FROM jobs WHERE voice_id = ?", voice_id)
        self._rows("DELETE FROM voices WHERE voice_id = ?", voice_id)
        return HttpResponse(204)

    def _voice(self, owner: str, voice_id: object) -> dict[str, Any]:
        for voice in self._rows("SELECT * FROM voices WHERE voice_id = ? AND owner = ?", str(voice_id), owner):
            return voice
        raise HttpError(404, "voice_not_found", "There is no such voice.")

    # -- speech -------------------------------------------------------------------------------------------------

    def _synthesize(self, request: HttpRequest, owner: str) -> HttpResponse:
        fields = parse_json(request)
        for name in ("voice_id", "text"):
            if fields.get(name) is None:
                raise HttpError(400, "missing_field", f"The field {name} is missing.", name)
        voice = self._voice(owner, fields["voice_id"])
        text = _check_text(fields["text"])
        backend, lang = self._check_backend(
            fields.get("backend") or voice["backend"], fields.get("lang") or voice["lang"]
        )
        cache_key = _hash("\0".join((text, lang, backend)))
        cache_path = f"voices/{voice['voice_id']}/cache/{cache_key}.wav"
        headers = {"X-Cache": "HIT", "X-Voice-Id": voice["voice_id"], "X-Backend": backend, "X-Synthesis-Time-Ms": "0"}
        if cache_path in self.blobs:
            return HttpResponse(200, self.blobs[cache_path], "audio/wav", headers)
        if voice["ref_audio_key"] not in self.blobs:
            raise HttpError(500, "reference_missing", "The recording of the voice is missing from storage.")
        job_id = self._new_job(owner, voice["voice_id"], text, cache_path)
        return json_response(
            202, {"job_id": job_id, "status": "pending"}, {**headers, "X-Cache": "MISS", "X-Synthesis-Time-Ms": "-1"}
        )

    def _new_job(self, owner: str, voice_id: str, text: str, cache_path: str) -> str:
        job_id, now, cost = str(uuid4()), _now(), len(text)
        row = (job_id, owner, voice_id, "pending", None, None, now, None, cost)
        self._rows("INSERT INTO jobs VALUES (?,?,?,?,?,?,?,?,?)", *row)
        self._rows("INSERT INTO spent VALUES (?,?,?,?)", job_id, owner, cost, now)
        self._work[job_id] = _Work(text, cache_path, self.pending_looks, time.monotonic() + self.pending_s)
        return job_id

    def _finish_work(self) -> None:
        """Finish the jobs that are due."""
        for job_id, work in tuple(self._work.items()):
            if work.looks_left or time.monotonic() < work.due:
                continue
            del self._work[job_id]
            if re.search(r"\bfail\b", work.text, re.IGNORECASE):
                self._fail(job_id, "The worker could not speak the text.")
                self._rows("DELETE FROM spent WHERE job_id = ?", job_id)
                continue
            path = f"jobs/{job_id}.wav"
            self.blobs[path] = self.blobs[work.cache_path] = sine_wav(SECONDS_PER_CHARACTER * len(work.text))
            ready = "UPDATE jobs SET status = 'ready', audio_key = ?, completed_at = ? WHERE job_id = ?"
            self._rows(ready, path, _now(), job_id)

    def _fail(self, job_id: str, why: str) -> None:
        failed = "UPDATE jobs SET status = 'failed', error = ?, completed_at = ? WHERE job_id = ?"
        self._rows(failed, why, _now(), job_id)

    def _show_job(self, owner: str, job_id: str) -> HttpResponse:
        job = self._job(owner, job_id)
        shown = {"job_id": job_id, "status": job["status"]}
        if job["status"] == "ready":
            shown["audio_url"] = f"{self.public_url}/v1/jobs/{job_id}/audio"
        elif job["status"] == "failed":
            shown["error"] = job["error"]
        elif self._work[job_id].looks_left:
            self._work[job_id].looks_left -= 1
        return json_response(200, shown)

    def _job_audio(self, request: HttpRequest, owner: str, job_id: str) -> HttpResponse:
        job = self._job(owner, job_id)
        if job["status"] != "ready":
            raise HttpError(404, "job_not_ready", "The job is not ready.")
        wav = self.blobs.get(job["audio_key"])
        if wav is None:
            self._fail(job_id, "The audio is missing from storage.")
            raise HttpError(500, "audio_lost", "The audio is missing from storage.")
        return apply_range(request, HttpResponse(200, wav, "audio/wav", {"X-Job-Id": job_id}))

    def _job(self, owner: str, job_id: str) -> dict[str, Any]:
        for job in self._rows("SELECT * FROM jobs WHERE job_id = ? AND owner = ?", job_id, owner):
            return job
        raise HttpError(404, "job_not_found", "There is no such job.")

    # -- helpers ------------------------------------------------------------------------------------------------

    def _check_backend(self, backend: object, lang: object) -> tuple[str, str]:
        if not isinstance(backend, str) or backend not in self.backends:
            raise HttpError(422, "invalid_backend", "The backend is not offered.", "backend")
        short = lang.partition("-")[0].lower() if isinstance(lang, str) else ""
        if short not in (("en",) if backend == "lite" else LANGS):
            raise HttpError(422, "unsupported_lang", "The backend does not speak the language.", "lang")
        return backend, short

    def _rows(self, sql: str, *values: object) -> list[dict[str, Any]]:
        return [dict(row) for row in self._db.execute(sql, values)]


_ROUTES: tuple[tuple[str, str, str, Callable[[HostedService, _Call], HttpResponse]], ...] = (
    ("GET", "/v1/health", "public", lambda service, _call: service._health()),
    ("POST", "/v1/keys", "admin", lambda service, call: service._create_key(call.request)),
    ("POST", "/v1/voices", "user", lambda service, call: service._create_voice(call.request, call.owner)),
    ("GET", "/v1/voices", "user", lambda service, call: service._list_voices(call.owner)),
    ("GET", "/v1/voices/([^/]+)", "user", lambda service, call: service._show_voice(call.owner, call.id)),
    ("DELETE", "/v1/voices/([^/]+)", "user", lambda service, call: service._delete_voice(call.owner, call.id)),
    ("POST", "/v1/synthesize", "user", lambda service, call: service._synthesize(call.request, call.owner)),
    ("GET", "/v1/jobs/([^/]+)", "user", lambda service, call: service._show_job(call.owner, call.id)),
    (
        "GET",
        "/v1/jobs/([^/]+)/audio",
        "user",
        lambda service, call: service._job_audio(call.request, call.owner, call.id),
    ),
    ("GET", "/v1/usage", "user", lambda service, call: service._usage(call.owner)),
)


def _check_text(text: object) -> str:
    if not isinstance(text, str) or not 1 <= len(text) <= 5_000:
        code = "text_too_long" if text else "empty_text"
        raise HttpError(422, code, "A text has 1 to 5,000 characters.", "text")
    if "\0" in text:
        raise HttpError(422, "control_character", "A text has no NUL.", "text")
    return text


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _now() -> str:
    return _iso(datetime.now(UTC))


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
