"""Every error that afterwords raises on purpose.

A class is what a caller catches, and its `code` distinguishes the causes. Messages never repeat text to speak, a
transcript or a key.

    AfterwordsError
    ├── InvalidInputError           an input can't be used (exit 5)
    │   ├── InvalidOptionError · ConsentRequiredError · UnsupportedLangError · VoiceExistsError · FileError
    │   ├── RecordingError
    │   │   └── MalformedWavError
    │   └── TextError
    ├── NotFoundError               a voice, job, key, model or route does not exist (exit 4)
    │   └── VoiceNotFoundError
    ├── UnavailableError            this machine lacks something (exit 1)
    │   └── MissingExtraError · BackendUnavailableError
    ├── ModelError                  a model is missing, damaged or can't be loaded (exit 1)
    ├── SynthesisError              an engine could not speak (exit 7)
    ├── StreamConsumedError         a stream was read twice (exit 1)
    ├── LibraryError                the voice library on this disk can't be used (exit 1)
    │   └── CorruptVoiceError · StorageFullError
    ├── ServiceError                a server refused a request, or failed (exit 8)
    │   ├── InvalidRequestError · InvalidBundleError
    │   ├── UnauthorizedError · InsufficientScopeError · SubscriptionError
    │   ├── LimitError
    │   │   └── QuotaExceededError
    │   ├── ConflictError
    │   │   └── StaleAttemptError
    │   ├── AudioMissingError
    │   └── ServiceUnavailableError
    │       └── DatabaseUnavailableError · StorageUnavailableError
    ├── RemoteError                 a server or the model hub can't be reached or understood (exit 8)
    │   ├── UnreachableError · InvalidResponseError · UnsupportedByServerError · HubError
    │   └── ConnectionLostError
    │       └── ServerTimeoutError
    ├── JobError                    a job on a server has no audio (exit 7)
    │   └── JobFailedError · JobTimeoutError
    └── ServerSetupError            a server can't start like this (exit 2)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

if TYPE_CHECKING:
    from pathlib import Path


class Code(NamedTuple):
    """What one code of a class changes; None and empty fields keep the defaults of the class."""

    http_status: int | None = None
    exit_code: int | None = None
    message: str = ""
    hint: str = ""


class AfterwordsError(Exception):
    """Base class: catch it to catch everything that afterwords raises on purpose.

    Attributes:
        code: Identifier of the cause, stable across versions.
        message: What happened, in one sentence. Control characters are escaped, so it is safe to print.
        hint: How to fix it, also safe to print.
        http_status: Status of the server's response.
        exit_code: Exit code of the CLI.
        param: Request field that is wrong.
        limit: The limit that was reached, in requests, jobs or characters.
        retry_after_s: Seconds to wait before a retry.
        request_id: ID of the refused request in the server's log.
        headers: Further headers of the server's response.
        codes: The codes of the class besides its default one.
    """

    code: str = "error"
    message: str = ""
    hint: str = ""
    http_status: int = 500
    exit_code: int = 1
    retry_after_s: int | None = None
    request_id: str | None = None
    codes: ClassVar[Mapping[str, Code]] = {"system_error": Code(), "unexpected_error": Code()}

    def __init_subclass__(cls, *, code: str = "", http_status: int = 0, exit_code: int = 0) -> None:
        cls.code = code or cls.code
        cls.http_status = http_status or cls.http_status
        cls.exit_code = exit_code or cls.exit_code

    def __init__(
        self,
        message: str = "",
        *,
        code: str = "",
        hint: str = "",
        http_status: int | None = None,
        param: str | None = None,
        limit: int | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.code = code or self.code
        details = self.codes.get(self.code, Code())
        self.message = _escape(message or details.message or self.message)
        self.hint = _escape(hint or details.hint or self.hint)
        self.http_status = http_status or details.http_status or self.http_status
        self.exit_code = details.exit_code or self.exit_code
        self.param = param
        self.limit = limit
        self.retry_after_s = self.retry_after_s if retry_after_s is None else retry_after_s
        self.headers = headers or {}
        super().__init__(self.message)


class InvalidInputError(AfterwordsError, code="invalid_input", http_status=422, exit_code=5):
    """An input can't be used."""

    codes: ClassVar[Mapping[str, Code]] = {
        "invalid_backend": Code(hint="run `afterwords backends` to list the backends."),
        "invalid_name": Code(hint="use 1 to 200 letters, digits, spaces or punctuation marks."),
        **dict.fromkeys(("invalid_book", "invalid_config", "protected_book"), Code()),
        "invalid_backup": Code(hint="use another backup; nothing was changed here."),
        "invalid_format": Code(hint="add --format wav."),
        "voice_required": Code(exit_code=2),
    }

    @classmethod
    def for_backup(cls, path: Path | str, why: str) -> Self:
        return cls(f"{str(path)!a} can't be restored: {why}.", code="invalid_backup")


class InvalidOptionError(InvalidInputError, code="invalid_option"):
    """An option of a function, a command or the configuration has an invalid value."""

    @classmethod
    def for_option(cls, option: str, *, value: object, allowed: str) -> Self:
        return cls(
            f"{option} is {_quote(value)}, but must be {allowed}.",
            hint=f"choose a value for {option} that is {allowed}.",
        )


class ConsentRequiredError(InvalidInputError, code="consent_required"):
    """A voice was to be cloned without a statement of consent."""

    message = "Cloning a voice requires a statement of consent."
    hint = "add --consent self (your own voice), granted (the speaker agreed), public-domain or synthetic."


class UnsupportedLangError(InvalidInputError, code="unsupported_lang"):
    """A backend does not speak the language."""

    @classmethod
    def for_lang(
        cls,
        lang: str | None,
        *,
        supported: Iterable[str],
        backend: str = "",
        others: Sequence[str] = (),
        unavailable: Sequence[str] = (),
    ) -> Self:
        """Describe the languages there are; a `lang` of None keeps the language out of the message.

        `others` are the backends that run here and speak it, and `unavailable` those that can't run here.
        """
        spoken = ", ".join(sorted(supported))
        hint = f"choose one of: {spoken}."
        if others:
            hint = f"use --backend {others[0]}, which speaks it."
        elif unavailable:
            names = " and ".join(unavailable[:2])
            hint = f"no backend here speaks it, but {names} would: `afterwords backends` shows what to install."
        what = "that language" if lang is None else _quote(lang)
        name = f"The backend {backend}" if backend else "afterwords"
        return cls(f"{name} does not speak {what}; it speaks {spoken}.", hint=hint)


class VoiceExistsError(InvalidInputError, code="voice_exists", http_status=409):
    """Another voice has the name."""

    @classmethod
    def for_name(cls, name: str, *, where: str = "`afterwords clone --replace`") -> Self:
        return cls(
            f"Another voice is already named {_quote(name)}.",
            hint=f"choose another name, or replace that voice with {where}.",
        )


class FileError(InvalidInputError, code="unreadable_file"):
    """A file can't be read or written."""

    hint = "check the path and its permissions."
    codes: ClassVar[Mapping[str, Code]] = {
        "unwritable_output": Code(hint="choose a path in an existing folder that you can write to.")
    }

    @classmethod
    def unreadable(cls, path: Path | str, why: str, *, hint: str = "") -> Self:
        return cls(f"{path} can't be read: {why}.", hint=hint)

    @classmethod
    def unwritable(cls, path: Path | str, why: str, *, hint: str = "") -> Self:
        return cls(f"{path} can't be written: {why}.", code="unwritable_output", hint=hint)


class RecordingError(InvalidInputError, code="invalid_audio"):
    """A recording can't be used."""

    codes: ClassVar[Mapping[str, Code]] = {
        "unsupported_audio": Code(hint="use a WAV, FLAC, MP3, Ogg, Opus, M4A, AAC or WebM file."),
        "damaged_audio": Code(hint="copy or download it again; if it was just recorded, wait until it is saved."),
        "empty_data": Code(hint="record it again, or use another file."),
        "too_short": Code(hint="record a longer sample, or join several clips."),
        "too_long": Code(hint="cut it to the part where the voice is clearest."),
        "file_too_large": Code(hint="cut the recording, or save it as 16-bit mono."),
        "silent_audio": Code(hint="check the microphone and record again."),
        "non_finite_audio": Code(hint="export it again as 16-bit PCM."),
        "no_voice": Code(hint="record at least 10 s of one person speaking, near the microphone and without music."),
        "poor_recording": Code(),
    }

    @classmethod
    def unsupported(cls, source: str) -> Self:
        return cls(f"{source} is not audio in a supported format.", code="unsupported_audio")

    @classmethod
    def damaged(cls, source: str) -> Self:
        return cls(f"{source} is damaged or incomplete: none of its audio can be decoded.", code="damaged_audio")

    @classmethod
    def no_audio(cls, source: str) -> Self:
        return cls(f"{source} contains no audio.", code="empty_data")

    @classmethod
    def too_short(cls, source: str, *, duration_s: float, minimum_s: float) -> Self:
        return cls(
            f"{source} lasts {duration_s:.2f} s, but a reference must last at least {minimum_s:g} s.", code="too_short"
        )

    @classmethod
    def too_long(cls, source: str, *, duration_s: float, maximum_s: float) -> Self:
        return cls(
            f"{source} lasts {duration_s:.2f} s, but a reference may last at most {maximum_s:g} s.", code="too_long"
        )

    @classmethod
    def too_large(cls, source: str, *, size_bytes: int, maximum_bytes: int) -> Self:
        return cls(f"{source} has {size_bytes:,} bytes; the limit is {maximum_bytes:,} bytes.", code="file_too_large")

    @classmethod
    def non_finite(cls, source: str) -> Self:
        return cls(f"{source} contains samples that are not numbers (NaN or infinity).", code="non_finite_audio")


class RecordingWarning(UserWarning):
    """A recording was accepted, but has a problem that the user should know, such as a damaged file."""


class MalformedWavError(RecordingError, code="malformed_wav"):
    """A WAV file is malformed, or in a variant that is not supported."""

    hint = "export it again as a 16-bit PCM WAV."
    codes: ClassVar[Mapping[str, Code]] = {
        **dict.fromkeys(("not_wav", "no_fmt", "truncated", "empty_data", "too_many_chunks"), Code()),
        **dict.fromkeys(("bad_channels", "bad_bits", "bad_block_align", "unsupported_encoding"), Code()),
        "bad_sample_rate": Code(hint="resample it to 48,000 Hz, for example with `ffmpeg -i FILE -ar 48000 NEW.wav`."),
    }

    @classmethod
    def for_source(
        cls, source: str, problem: str = "its chunks are out of order or truncated", *, code: str = "malformed_wav"
    ) -> Self:
        return cls(f"{source} is not a valid WAV file: {problem}.", code=code)


class TextError(InvalidInputError, code="invalid_text"):
    """A text can't be spoken. The message never repeats the text."""

    codes: ClassVar[Mapping[str, Code]] = {
        "empty_text": Code(message="The text contains nothing that can be spoken.", hint="add a letter or a digit."),
        "unspeakable_text": Code(
            hint="choose a backend that speaks its language (`afterwords backends`): --lang ru --backend qwen3-1.7b."
        ),
        "control_character": Code(hint="remove it; text copied from a terminal often contains some."),
        "invalid_unicode": Code(message="The text is not valid Unicode.", hint="save or send the text as UTF-8."),
        "text_too_long": Code(hint="split it, and speak the parts one by one."),
    }


class TextWarning(UserWarning):
    """A text is spoken without some of its words, or with its markup. The message never repeats the text."""


class UnknownSettingWarning(UserWarning):
    """An environment variable is named like a setting of afterwords but is not one; it may be misspelled."""


class NotFoundError(AfterwordsError, code="not_found", http_status=404, exit_code=4):
    """A route, job, key or model does not exist."""

    message = "The API has no such path."
    hint = "see the API reference."
    codes: ClassVar[Mapping[str, Code]] = {
        "job_not_found": Code(message="There is no such job.", hint="`GET /v1/jobs` lists the jobs."),
        "job_not_ready": Code(hint="wait until its status is ready."),
        "key_not_found": Code(message="There is no such key.", hint="`afterwords keys list` lists the keys."),
        **dict.fromkeys(("unknown_model", "billing_disabled", "customer_not_found", "model_not_found"), Code()),
        "consent_not_found": Code(message="There is no such recording of consent."),
    }


class VoiceNotFoundError(NotFoundError, code="voice_not_found"):
    """A voice does not exist."""

    message = "There is no such voice."
    hint = "`afterwords voices list` lists the voices."

    @classmethod
    def for_name(cls, name: str, *, nearest: Sequence[str] = (), where: str = "`afterwords voices list`") -> Self:
        near = " or ".join(_quote(n) for n in nearest)
        hint = f"did you mean {near}?" if near else f"{where} lists the voices."
        return cls(f"There is no voice {_quote(name)}.", hint=hint)


class UnavailableError(AfterwordsError, code="unavailable", http_status=503):
    """This machine lacks something that the work needs."""

    codes: ClassVar[Mapping[str, Code]] = {
        "no_audio_device": Code(),
        "transcriber_unavailable": Code(
            hint="type the transcript with --text, or set AFTERWORDS_WHISPER to the folder of a faster-whisper model."
        ),
        "timestamps_unavailable": Code(422),
        "verification_unavailable": Code(422, hint="set AFTERWORDS_WHISPER to the folder of a faster-whisper model."),
    }


class MissingExtraError(UnavailableError, code="missing_extra"):
    """An optional dependency is not installed."""

    @classmethod
    def for_extra(cls, extra: str, *, purpose: str) -> Self:
        return cls(f"{purpose} needs the extra {_quote(extra)}, which is not installed.", hint=pip_install(extra))


class BackendUnavailableError(UnavailableError, code="backend_unavailable"):
    """A backend can't run on this machine."""


class ModelError(AfterwordsError, code="model_file"):
    """The weights of a model are missing or damaged, or can't be loaded."""

    codes: ClassVar[Mapping[str, Code]] = {
        **dict.fromkeys(("model_not_here", "too_little_memory", "offline"), Code(503)),
        "model_busy": Code(503, hint="wait until it has finished, or stop it."),
        "precision": Code(503, hint="unset AFTERWORDS_PRECISION."),
        "foreign_model": Code(hint="change or remove that folder yourself."),
    }

    @classmethod
    def for_file(cls, name: Path | str, why: str, *, hint: str) -> Self:
        return cls(f"The model file {name} {why}.", hint=hint)

    @classmethod
    def not_downloaded(cls, name: str, *, why: str = "is not downloaded") -> Self:
        return cls(f"The model {name} {why}.", code="model_not_here", hint=f"afterwords models pull {name}")


class SynthesisError(AfterwordsError, code="synthesis_failed", exit_code=7):
    """An engine could not speak a text."""

    hint = "try a shorter text or another --seed; --debug shows where it failed."
    codes: ClassVar[Mapping[str, Code]] = {
        "runaway_audio": Code(422, hint="try again, or use another seed."),
        "measurement_timeout": Code(504, 9, hint="allow more time: --timeout SECONDS."),
    }

    @classmethod
    def for_backend(cls, backend: str, why: str) -> Self:
        return cls(f"The backend {backend} could not speak: {why}.")

    @classmethod
    def runaway(cls, *, duration_s: float, maximum_s: float) -> Self:
        return cls(
            f"The audio lasts {duration_s:.1f} s, but its text may last at most {maximum_s:.0f} s.",
            code="runaway_audio",
        )


class StreamConsumedError(AfterwordsError, code="speech_read"):
    """A stream of speech was read a second time."""

    message = "This stream was already read, and its audio is not kept."
    hint = "call `stream` again, or use `say`, which returns the whole audio."


class LibraryError(AfterwordsError, code="library"):
    """The voice library on this disk can't be used."""

    codes: ClassVar[Mapping[str, Code]] = {
        "newer_library": Code(),
        "library_busy": Code(503, hint="wait until it has finished, then try again."),
    }


class CorruptVoiceError(LibraryError, code="corrupt_voice"):
    """The folder of a voice is damaged."""

    hint = "restore that folder from a backup, or move it away; other voices are not affected."

    @classmethod
    def for_folder(cls, folder: Path, why: str) -> Self:
        return cls(f"The voice in {folder} is damaged: {why}.")


class StorageFullError(LibraryError, code="storage_full", http_status=507):
    """A disk is full."""

    hint = "free some space; nothing was changed or lost."

    @classmethod
    def for_path(cls, path: Path | str) -> Self:
        return cls(f"The disk that holds {path} is full.")


class ServiceError(AfterwordsError, code="internal_error", exit_code=8):
    """A server refused a request, or failed. Messages name the rule; they never repeat what was sent."""

    message = "Internal server error; details are in the server log."
    hint = "try again; if it persists, report the request ID to the operator of the server."
    codes: ClassVar[Mapping[str, Code]] = {
        "not_opened": Code(
            503,
            message="The server was not opened: the lifespan of its router did not run.",
            hint="run it with its lifespan, or enter app.router.lifespan_context(app) in your own (docs/server.md).",
        )
    }


class InvalidRequestError(ServiceError, code="bad_request", http_status=400, exit_code=5):
    """A request is malformed, or has an invalid field."""

    hint = "see the API reference."
    codes: ClassVar[Mapping[str, Code]] = {
        **dict.fromkeys(("missing_field", "invalid_signature", "invalid_event"), Code()),
        "invalid_json": Code(message="The body is not a JSON object: it can't be parsed.", hint="send JSON in UTF-8."),
        "invalid_multipart": Code(hint="send multipart/form-data."),
        "invalid_host": Code(
            message="The Host header does not name this server.",
            hint="use the address of the server, or add the name to AFTERWORDS_ALLOWED_HOSTS or AFTERWORDS_PUBLIC_URL.",
        ),
        "method_not_allowed": Code(405),
        "worker_protocol": Code(426, hint="install the version of the server on the machine of the worker."),
        "request_timeout": Code(408, 8, hint="send the request again."),
        "request_too_large": Code(413, hint="send less at once."),
        "range_not_satisfiable": Code(416, hint="request one range within it."),
        **dict.fromkeys(("invalid_field", "bad_content_type"), Code(422)),
        "invalid_webhook_url": Code(422, hint="use an https:// URL of a public host."),
    }

    @classmethod
    def missing_field(cls, param: str) -> Self:
        return cls(f"The field {param} is missing.", code="missing_field", hint=f"send {param}.", param=param)

    @classmethod
    def invalid_field(cls, param: str, rule: str) -> Self:
        hint = f"see {param} in the API reference."
        return cls(f"The field {param} is invalid: {rule}.", code="invalid_field", hint=hint, param=param)

    @classmethod
    def invalid_form(cls, why: str) -> Self:
        return cls(f"The body is not a valid form: {why}.", code="invalid_multipart")

    @classmethod
    def invalid_webhook_url(cls, why: str) -> Self:
        return cls(f"The webhook URL is invalid: {why}.", code="invalid_webhook_url", param="webhook_url")

    @classmethod
    def too_large(cls, *, maximum_bytes: int) -> Self:
        return cls(f"The body has more than {maximum_bytes:,} bytes.", code="request_too_large")


class InvalidBundleError(ServiceError, code="invalid_bundle", http_status=422, exit_code=5):
    """A bundle can't be imported."""

    hint = "export the voice again."

    @classmethod
    def for_reason(cls, why: str) -> Self:
        return cls(f"The bundle is invalid: {why}.")


class UnauthorizedError(ServiceError, code="unauthorized", http_status=401, exit_code=3):
    """A request has no valid key."""

    message = "The API key is missing, unknown, expired or revoked."
    hint = "send `Authorization: Bearer` with a valid key."
    codes: ClassVar[Mapping[str, Code]] = {
        "admin_required": Code(
            message="This route requires the admin secret of the server; an API key was sent.",
            hint="set AFTERWORDS_ADMIN_SECRET to the server's; a key without scopes can create keys for its account.",
        ),
        "not_logged_in": Code(),
    }

    @classmethod
    def not_logged_in(cls, url: str, *, is_admin: bool = False) -> Self:
        what, hint = "API key", "run `afterwords login`, or set AFTERWORDS_API_KEY."
        if is_admin:
            what, hint = "admin secret", "set AFTERWORDS_ADMIN_SECRET."
        return cls(f"There is no {what} for {url}.", code="not_logged_in", hint=hint)


class InsufficientScopeError(ServiceError, code="insufficient_scope", http_status=403, exit_code=3):
    """The key is valid but lacks a scope."""


class SubscriptionError(ServiceError, code="subscription_inactive", http_status=402, exit_code=6):
    """The account is suspended, since its subscription is not active."""

    message = "The subscription of this account is not active."
    hint = "renew it; the key works again at once."


class LimitError(ServiceError, code="limit_reached", http_status=429, exit_code=6):
    """A rate limit, a quota or the capacity of the server is used up."""

    codes: ClassVar[Mapping[str, Code]] = {
        **dict.fromkeys(("rate_limited", "too_many_auth_failures"), Code()),
        "too_many_concurrent_requests": Code(hint="wait until some have finished."),
        "queue_full": Code(hint="try again later."),
    }


class QuotaExceededError(LimitError, code="quota_exceeded"):
    """The characters or the storage of an account are used up."""

    hint = "wait for the next period, or ask for a higher limit."
    codes: ClassVar[Mapping[str, Code]] = {
        "storage_quota_exceeded": Code(507, hint="delete a voice, or raise AFTERWORDS_STORAGE_PER_ACCOUNT_MB.")
    }


class ConflictError(ServiceError, code="conflict", http_status=409, exit_code=5):
    """The request conflicts with the state of the resource."""

    codes: ClassVar[Mapping[str, Code]] = {
        "idempotency_conflict": Code(
            message="This Idempotency-Key was already used for another request.",
            hint="use a new key for a new request.",
        ),
        "alias_taken": Code(message="A voice of this account has this name.", hint="choose another alias."),
        "job_final": Code(hint="there is nothing left to cancel."),
        **dict.fromkeys(("checkout_replaced", "email_in_use"), Code()),
        "ambiguous_voice_name": Code(message="Several voices have this name.", hint="use its ID: GET /v1/voices."),
        "key_replaced": Code(
            message="This key was replaced: until its overlap ends it is valid, but can't replace or revoke keys.",
            hint="use the key that replaced it; `afterwords keys list` shows both.",
        ),
        "home_voice": Code(
            message="This voice belongs to the library on the server's machine and can't be changed over HTTP.",
            hint="run `afterwords voices` on that machine.",
        ),
    }


class StaleAttemptError(ConflictError, code="stale_attempt"):
    """The result of a worker is no longer needed: another attempt has the job, or its voice was deleted."""

    message = "Another attempt has taken over this job."
    hint = "discard this result."
    codes: ClassVar[Mapping[str, Code]] = {
        "voice_deleted": Code(410, 4, message="The voice was deleted, and the job with it.")
    }


class AudioMissingError(ServiceError, code="audio_lost"):
    """Stored audio is missing or altered."""

    message = "The audio is missing from storage or was altered."
    hint = "synthesize it again."
    codes: ClassVar[Mapping[str, Code]] = {
        "reference_missing": Code(message="The reference is missing or altered.", hint="create the voice again.")
    }


class ServiceUnavailableError(ServiceError, code="service_unavailable", http_status=503):
    """The server can't do this at the moment; nothing was changed."""

    message = "The server is shutting down; nothing was changed."
    hint = "try again in a moment."
    retry_after_s = 1
    codes: ClassVar[Mapping[str, Code]] = dict.fromkeys(
        ("payments_unavailable", "payments_failed", "mail_unavailable"), Code()
    )


class DatabaseUnavailableError(ServiceUnavailableError, code="database_unavailable"):
    """The server's database does not respond."""

    message = "The database does not respond; nothing was changed."


class StorageUnavailableError(ServiceUnavailableError, code="storage_unavailable"):
    """The server's audio storage does not respond."""

    message = "The audio storage does not respond; nothing was changed."


class RemoteError(AfterwordsError, code="remote", http_status=502, exit_code=8):
    """A server or the model hub can't be reached, or its response can't be used."""

    codes: ClassVar[Mapping[str, Code]] = {"network_setting": Code(503)}


class UnreachableError(RemoteError, code="unreachable", http_status=503):
    """No connection was made; nothing was sent."""


class ConnectionLostError(RemoteError, code="connection_lost"):
    """The connection ended before the response did. Whether the server carried out the request is unknown."""

    hint = "check whether the request was carried out (`afterwords jobs list`), then try again."

    @classmethod
    def for_url(cls, url: str, *, why: str = "it was closed") -> Self:
        return cls(f"The connection to {url} was lost: {why}.")


class ServerTimeoutError(ConnectionLostError, code="server_silent", http_status=504, exit_code=9):
    """The server sent nothing for too long."""

    hint = "try again, or allow more time."


class InvalidResponseError(RemoteError, code="strange_answer"):
    """A response does not follow the API, or is damaged."""

    hint = "check that the address is that of an afterwords server, and that no proxy responds in its place."

    @classmethod
    def for_reason(cls, why: str, *, hint: str = "") -> Self:
        return cls(f"The server's response can't be used: {why}.", hint=hint)


class UnsupportedByServerError(RemoteError, code="unsupported_by_server", http_status=501, exit_code=5):
    """The hosted service lacks a feature that a self-hosted server has."""

    hint = "use a server of your own (`afterwords serve`), or do without."


class HubError(RemoteError, code="hub"):
    """The model hub can't be reached or refused a download, or its response can't be used."""

    hint = "try again; if it persists, check that HF_ENDPOINT, if set, is a complete mirror."
    codes: ClassVar[Mapping[str, Code]] = {
        "hub_unreachable": Code(503),
        "hub_refused": Code(exit_code=3),
        "hub_missing": Code(
            404, 4, hint="check that HF_ENDPOINT, if set, is a complete mirror; `--update` takes another revision."
        ),
        "hub_busy": Code(503, 6),
    }

    @classmethod
    def for_url(cls, url: str, why: str, *, code: str = "", hint: str = "") -> Self:
        return cls(f"The model hub {url} {why}.", code=code, hint=hint)


class JobError(AfterwordsError, code="job_error", exit_code=7):
    """A job on a server has no audio.

    Attributes:
        job_id: ID of the job.
        reason: The server's code for the failure of the job.
    """

    codes: ClassVar[Mapping[str, Code]] = {
        "job_cancelled": Code(hint="nothing was charged; request it again if you need it.")
    }

    def __init__(
        self, message: str = "", *, code: str = "", hint: str = "", job_id: str | None = None, reason: str = ""
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.job_id = job_id
        self.reason = reason


class JobFailedError(JobError, code="job_failed"):
    """A job failed."""


class JobTimeoutError(JobError, code="job_timeout", http_status=504, exit_code=9):
    """A job is still pending after the time that the caller would wait; it continues."""


class ServerSetupError(AfterwordsError, code="server_setup", exit_code=2):
    """A server can't start with these settings."""

    codes: ClassVar[Mapping[str, Code]] = {
        "insecure_server": Code(),
        "server_running": Code(
            message="A running server uses the database that would be replaced.", hint="stop it, then run this again."
        ),
        "server_not_empty": Code(hint="back it up, then add --replace; or set AFTERWORDS_HOME to another folder."),
        "opened_twice": Code(
            message="A router is opened twice: it is included twice, or its application runs twice.",
            hint="call router(settings) once for each place, each with a data folder of its own.",
        ),
        "address_in_use": Code(exit_code=8, hint="choose another port with --port."),
        "newer_database": Code(exit_code=1),
        "older_database": Code(exit_code=1, hint="set AFTERWORDS_DATABASE_URL to it, then run: afterwords db migrate"),
        "database_refused": Code(hint="correct AFTERWORDS_DATABASE_URL, or what it names in Postgres."),
        "storage_refused": Code(hint="correct AFTERWORDS_STORAGE_URL, or the bucket that it names."),
    }


def error_from_code(
    code: str,
    message: str = "",
    *,
    hint: str = "",
    http_status: int | None = None,
    param: str | None = None,
    limit: int | None = None,
    retry_after_s: int | None = None,
    request_id: str | None = None,
) -> AfterwordsError:
    """Return the error that a server or another process reported: an instance of the class that has the code.

    An unknown code makes an InvalidRequestError for an HTTP status of 4xx, and a ServiceError otherwise. The other
    arguments are the attributes of AfterwordsError; what is missing has the defaults of the code.
    """
    kind = _classes().get(code) or (InvalidRequestError if 400 <= (http_status or 500) < 500 else ServiceError)
    error = kind(message, code=code, hint=hint, http_status=http_status, param=param, limit=limit)
    error.retry_after_s = retry_after_s
    error.request_id = request_id
    return error


def error_type(http_status: int) -> str:
    """Return the `type` of an error in the API, which follows from its status."""
    kinds = {401: "authentication", 402: "permission", 403: "permission", 404: "not_found", 429: "rate_limit"}
    return f"{kinds.get(http_status) or ('invalid_request' if http_status < 500 else 'server')}_error"


@cache
def _classes() -> dict[str, type[AfterwordsError]]:
    """Return the class of each code that another process may report."""
    found: dict[str, type[AfterwordsError]] = {}
    client_side = (RemoteError, JobError, ServerSetupError)  # raised only where they are found
    waiting = [kind for kind in AfterwordsError.__subclasses__() if kind not in client_side]
    for kind in waiting:
        for code in (kind.code, *vars(kind).get("codes", ())):
            found.setdefault(code, kind)
        waiting += (sub for sub in kind.__subclasses__() if sub.__module__ == __name__)
    return found


def pip_install(extra: str = "", *, options: str = "") -> str:
    """Return the command that installs afterwords or one of its extras, ready to paste into a shell.

    pip records the origin of a package that did not come from an index (PEP 610, `direct_url.json`). A copy that was
    installed from a folder or from Git is installed from there again, since no index may have it.
    """
    import json
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        recorded = distribution("afterwords").read_text("direct_url.json")
    except PackageNotFoundError:
        recorded = None
    origin = json.loads(recorded or "{}")
    command = f"pip install {options}".rstrip()
    extras = f"[{extra}]" if extra else ""
    if "dir_info" not in origin:
        vcs = f"{origin['vcs_info']['vcs']}+" if "vcs_info" in origin else ""
        place = f" @ {vcs}{origin['url']}" if origin else ""
        return f'{command} "afterwords{extras}{place}"'
    from pathlib import Path
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    folder = Path(url2pathname(urlsplit(origin["url"]).path))
    if not folder.is_dir():
        return f'{command} ".{extras}" in a clone of the afterwords repository'
    editable = "--editable " if origin["dir_info"].get("editable") else ""
    return f'{command} {editable}"{folder}{extras}"'


def _quote(value: object) -> str:
    """Return a value in quotation marks without escapes; `_escape` escapes the whole message."""
    return f"'{value}'" if isinstance(value, str) else repr(value)


def _escape(text: str) -> str:
    """Escape characters that a terminal would act on."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
