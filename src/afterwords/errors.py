"""Every error that afterwords raises on purpose.

A class is what a caller catches, and its `code` tells the causes apart. Each error carries what the CLI, the server and
the SDK need: `message` and `hint` for people, `code` and `http_status` for the API, `exit_code` for the shell. Messages
never repeat text to speak, a transcript or a key.

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
    ├── StreamConsumedError         a stream was read twice
    ├── LibraryError                the voice library on this disk (exit 1)
    │   └── CorruptVoiceError · StorageFullError
    ├── ServiceError                a server refused a request, or failed (exit 8)
    │   ├── InvalidRequestError · InvalidBundleError
    │   ├── UnauthorizedError · InsufficientScopeError
    │   ├── LimitError
    │   │   └── QuotaExceededError
    │   ├── ConflictError
    │   │   └── StaleAttemptError
    │   ├── AudioMissingError
    │   └── ServiceUnavailableError
    │       └── DatabaseUnavailableError · StorageUnavailableError
    ├── RemoteError                 a server or the model hub could not be reached or understood (exit 8)
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
from pathlib import Path
from typing import ClassVar, Final, NamedTuple, Self


class Code(NamedTuple):
    """What one code of an error class changes: None and empty fields keep the defaults of the class."""

    http_status: int | None = None
    exit_code: int | None = None
    message: str = ""
    hint: str = ""


class AfterwordsError(Exception):
    """Base class: catch it to catch everything that afterwords raises on purpose.

    Attributes:
        code: Identifier of the cause, stable across versions.
        message: What happened, in one sentence. Safe to print: control characters are escaped.
        hint: How to fix it. Safe to print.
        http_status: Status of the server's response.
        exit_code: Exit status of the CLI.
        param: Request field that is wrong.
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
    param: str | None = None
    retry_after_s: int | None = None
    request_id: str | None = None
    headers: Mapping[str, str] = {}
    codes: ClassVar[Mapping[str, Code]] = {}

    def __init__(
        self,
        message: str = "",
        *,
        code: str = "",
        hint: str = "",
        http_status: int | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        request_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.code = code or self.code
        details = self.codes.get(self.code, Code())
        self.message = _escape(message or details.message or self.message)
        self.hint = _escape(hint or details.hint or self.hint)
        self.http_status = http_status or details.http_status or self.http_status
        self.exit_code = details.exit_code or self.exit_code
        self.param = param or self.param
        self.retry_after_s = self.retry_after_s if retry_after_s is None else retry_after_s
        self.request_id = request_id
        self.headers = headers or {}
        super().__init__(self.message)


# -- inputs ---------------------------------------------------------------------------------------------------


class InvalidInputError(AfterwordsError):
    """An input can't be used."""

    code = "invalid_input"
    http_status = 422
    exit_code = 5
    codes: ClassVar[Mapping[str, Code]] = {
        "invalid_backend": Code(hint="`afterwords backends` lists them."),
        "invalid_name": Code(hint="use 1 to 200 letters, digits, spaces or punctuation."),
        "invalid_config": Code(),
        "invalid_backup": Code(hint="use another backup; nothing was changed here."),
        "invalid_format": Code(hint="add --format wav."),
        "voice_required": Code(exit_code=2),
    }

    @classmethod
    def for_backend(cls, backend: str | None, *, offered: Iterable[str]) -> Self:
        names = ", ".join(offered) or "none"
        which = "such backend" if backend is None else f"backend {_quote(backend)}"
        return cls(f"There is no {which} here; offered: {names}.", code="invalid_backend")

    @classmethod
    def for_backup(cls, path: Path | str, why: str) -> Self:
        return cls(f"{str(path)!a} can't be restored: {why}.", code="invalid_backup")

    @classmethod
    def for_format(cls, given: str, *, formats: Iterable[str]) -> Self:
        known = ", ".join(formats)
        return cls(f"{_quote(given)} is not a format that can be written; known: {known}.", code="invalid_format")

    @classmethod
    def voice_required(cls, *, names: Sequence[str]) -> Self:
        message = f"There are {len(names)} voices and none was named." if names else "There is no voice yet."
        hint = (
            f"add --voice NAME ({', '.join(names[:5])}), or choose one for good with `afterwords voices default NAME`."
            if names
            else "make one: afterwords clone me.wav --name me (or try `afterwords demo`)."
        )
        return cls(message, code="voice_required", hint=hint)


class InvalidOptionError(InvalidInputError):
    """An option of a function, a command or the configuration has an invalid value."""

    code = "invalid_option"

    @classmethod
    def for_option(cls, option: str, *, value: object, allowed: str) -> Self:
        return cls(f"{option} is {_quote(value)}, and must be {allowed}.", hint=f"give {option} as {allowed}.")


class ConsentRequiredError(InvalidInputError):
    """A voice was to be cloned without a statement of consent."""

    code = "consent_required"
    message = "Whose voice this is, and that they agree, has not been stated."
    hint = "add --consent self (it is your own voice), granted (the speaker agreed), public-domain or synthetic."


class UnsupportedLangError(InvalidInputError):
    """A backend does not speak the language."""

    code = "unsupported_lang"

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
        """Describe the languages there are.

        Args:
            lang: Language code, or None if the message must not repeat it.
            supported: Languages that the backend speaks.
            backend: Name of the backend, or empty for all of them.
            others: Backends that run here and speak the language.
            unavailable: Backends that speak the language but can't run here.
        """
        who = f"The backend {backend}" if backend else "afterwords"
        spoken = ", ".join(sorted(supported))
        if others:
            hint = f"use --backend {others[0]}, which speaks it."
        elif unavailable:
            names = " and ".join(unavailable[:2])
            hint = f"no backend that runs here speaks it; {names} would: `afterwords backends` shows what is missing."
        else:
            hint = f"choose one of: {spoken}."
        what = "that language" if lang is None else _quote(lang)
        return cls(f"{who} does not speak {what}; it speaks {spoken}.", hint=hint)


class VoiceExistsError(InvalidInputError):
    """Another voice has the name."""

    code = "voice_exists"
    http_status = 409

    @classmethod
    def for_name(cls, name: str, *, where: str = "`afterwords clone --replace`") -> Self:
        return cls(
            f"There is already another voice named {_quote(name)}.",
            hint=f"choose another name, or let {where} take its place.",
        )


class FileError(InvalidInputError):
    """A file can't be read or written."""

    code = "unreadable_file"
    hint = "check the path and its permissions."
    codes: ClassVar[Mapping[str, Code]] = {
        "unwritable_output": Code(hint="name a file in a folder that exists and is yours.")
    }

    @classmethod
    def unreadable(cls, path: Path | str, why: str, *, hint: str = "") -> Self:
        return cls(f"{path} can't be read: {why}.", hint=hint)

    @classmethod
    def unwritable(cls, path: Path | str, why: str, *, hint: str = "") -> Self:
        return cls(f"{path} can't be written: {why}.", code="unwritable_output", hint=hint)


class RecordingError(InvalidInputError):
    """A recording can't be used."""

    code = "invalid_audio"
    codes: ClassVar[Mapping[str, Code]] = {
        "unsupported_audio": Code(hint="give a wav, flac, mp3, ogg, opus, m4a, aac or webm file."),
        "damaged_audio": Code(
            hint="copy or download it again; if it was just recorded, let the program finish saving it."
        ),
        "empty_data": Code(hint="record it again, or give another file."),
        "too_short": Code(hint="record a longer sample, or join clips into one."),
        "too_long": Code(hint="cut it to the part where the voice is clearest."),
        "file_too_large": Code(hint="cut the recording, or save it as 16-bit mono."),
        "silent_audio": Code(hint="check the microphone and record again."),
        "non_finite_audio": Code(hint="export it again as 16-bit PCM."),
        "no_voice": Code(hint="record at least 10 s of one person speaking, near the microphone and without music."),
        "poor_recording": Code(),
    }

    @classmethod
    def unsupported(cls, source: str, *, codec: str | None = None) -> Self:
        if codec is None:
            return cls(f"{source} is not audio that any decoder here knows.", code="unsupported_audio")
        return cls(
            f"{source} holds sound, but in {codec}, which can't be decoded here.",
            code="unsupported_audio",
            hint="convert it to wav, flac, mp3 or m4a with the program that made it, and give that file.",
        )

    @classmethod
    def damaged(cls, source: str) -> Self:
        return cls(f"{source} is damaged or incomplete: none of its sound can be read.", code="damaged_audio")

    @classmethod
    def no_audio(cls, source: str) -> Self:
        return cls(f"{source} holds no audio.", code="empty_data")

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
        return cls(
            f"{source} has {size_bytes:,} bytes, but at most {maximum_bytes:,} are taken.", code="file_too_large"
        )

    @classmethod
    def non_finite(cls, source: str) -> Self:
        return cls(f"{source} holds samples that are not numbers (NaN or infinity).", code="non_finite_audio")

    @classmethod
    def no_voice(cls, source: str, *, voiced_s: float, minimum_s: float) -> Self:
        return cls(
            f"{source} holds {voiced_s:.1f} s of voiced speech, but {minimum_s:g} s are needed.", code="no_voice"
        )


class RecordingWarning(UserWarning):
    """A recording was taken, but something about it should be known, such as that its file is damaged."""


class MalformedWavError(RecordingError):
    """A WAV file has a structure that can't be used."""

    code = "malformed_wav"
    hint = "export it again as a 16-bit PCM WAV."
    codes: ClassVar[Mapping[str, Code]] = dict.fromkeys(
        (
            "not_wav",
            "no_fmt",
            "truncated",
            "empty_data",
            "too_many_chunks",
            "bad_channels",
            "bad_bits",
            "bad_block_align",
            "unsupported_encoding",
        ),
        Code(),
    ) | {
        "bad_sample_rate": Code(
            hint="save it at 44,100 or 48,000 Hz, for example with `ffmpeg -i FILE -ar 48000 NEW.wav`."
        )
    }

    @classmethod
    def for_source(
        cls, source: str, problem: str = "its chunks are out of order or cut", *, code: str = "malformed_wav"
    ) -> Self:
        return cls(f"{source} is not a well-formed WAV file: {problem}.", code=code)

    @classmethod
    def bad_sample_rate(cls, source: str, *, sample_rate: int, minimum: int, maximum: int) -> Self:
        return cls(
            f"{source} has a sample rate of {sample_rate:,} Hz, and {minimum:,} to {maximum:,} Hz are taken.",
            code="bad_sample_rate",
        )


class TextError(InvalidInputError):
    """A text can't be spoken. The message never repeats the text."""

    code = "invalid_text"
    codes: ClassVar[Mapping[str, Code]] = {
        "empty_text": Code(
            message="The text holds nothing that can be spoken.", hint="give at least one letter or digit."
        ),
        "unspeakable_text": Code(
            hint="choose the language of the text, and a backend that speaks it, for example "
            "--lang ru --backend qwen3-1.7b; `afterwords backends` lists them."
        ),
        "control_character": Code(hint="remove it; text copied from a terminal often carries some."),
        "invalid_unicode": Code(message="The text is not valid Unicode.", hint="save or send the text as UTF-8."),
        "text_too_long": Code(hint="split it and speak the parts one by one."),
    }

    @classmethod
    def unspeakable(cls, backend: str) -> Self:
        return cls(f"The backend {backend} can't read the script that the text is written in.", code="unspeakable_text")

    @classmethod
    def invalid_unicode(cls, *, position: int) -> Self:
        return cls(f"The text is not valid Unicode at position {position}.", code="invalid_unicode")

    @classmethod
    def too_long(cls, *, length: int, maximum: int) -> Self:
        return cls(
            f"The text has {length:,} characters, and at most {maximum:,} are taken at once.", code="text_too_long"
        )


class TextWarning(UserWarning):
    """A text is spoken without some of its words. The message never repeats the text."""


class UnknownSettingWarning(UserWarning):
    """An environment variable is named like a setting of afterwords but is not one; it may be misspelled."""


# -- what does not exist --------------------------------------------------------------------------------------


class NotFoundError(AfterwordsError):
    """A route, job, key or model does not exist."""

    code = "not_found"
    message = "There is nothing at this address."
    hint = "see the reference of the API."
    http_status = 404
    exit_code = 4
    codes: ClassVar[Mapping[str, Code]] = {
        "job_not_found": Code(message="There is no such job.", hint="`GET /v1/jobs` lists those there are."),
        "job_not_ready": Code(hint="wait until its status is ready."),
        "key_not_found": Code(message="There is no such key.", hint="`afterwords keys list` shows those there are."),
        "unknown_model": Code(),
    }


class VoiceNotFoundError(NotFoundError):
    """A voice does not exist."""

    code = "voice_not_found"
    message = "There is no such voice."
    hint = "`afterwords voices list` shows what there is."

    @classmethod
    def for_name(cls, name: str, *, nearest: Sequence[str] = (), where: str = "`afterwords voices list`") -> Self:
        near = " or ".join(_quote(n) for n in nearest)
        return cls(
            f"There is no voice {_quote(name)}.",
            hint=f"did you mean {near}?" if near else f"{where} shows what there is.",
        )


# -- this machine ---------------------------------------------------------------------------------------------


class UnavailableError(AfterwordsError):
    """This machine lacks something that the work needs."""

    code = "unavailable"
    http_status = 503
    codes: ClassVar[Mapping[str, Code]] = {
        "no_audio_device": Code(),
        "transcriber_unavailable": Code(
            hint="type the transcript with --text, or point AFTERWORDS_WHISPER at a faster-whisper model folder."
        ),
    }

    @classmethod
    def for_audio_device(cls, purpose: str, why: str) -> Self:
        hint = "write to a file instead: -o hello.wav."
        if purpose != "Playing":
            hint = "give a recorded file instead of --record."
        return cls(f"{purpose} needs a sound device, and none answers ({why}).", code="no_audio_device", hint=hint)

    @classmethod
    def for_transcriber(cls, why: str) -> Self:
        return cls(f"The recording could not be transcribed: {why}.", code="transcriber_unavailable")


class MissingExtraError(UnavailableError):
    """An optional dependency is not installed."""

    code = "missing_extra"

    @classmethod
    def for_extra(cls, extra: str, *, purpose: str) -> Self:
        return cls(f"{purpose} needs the extra {_quote(extra)}, which is not installed.", hint=pip_install(extra))


class BackendUnavailableError(UnavailableError):
    """A backend can't run on this machine."""

    code = "backend_unavailable"

    @classmethod
    def for_backend(cls, backend: str, *, reason: str, fix: str) -> Self:
        return cls(f"The backend {backend} can't run here: {reason}.", hint=fix)


class ModelError(AfterwordsError):
    """The weights of a model are missing or damaged, or can't be loaded."""

    code = "model_file"
    codes: ClassVar[Mapping[str, Code]] = {
        "model_not_here": Code(503),
        "too_little_memory": Code(503),
        "offline": Code(503),
        "model_busy": Code(503, hint="wait for it to end, or end it."),
        "precision": Code(503, hint="unset AFTERWORDS_PRECISION."),
        "foreign_model": Code(hint="change or remove that folder yourself."),
    }

    @classmethod
    def for_file(cls, name: Path | str, why: str, *, hint: str) -> Self:
        return cls(f"The model file {name} {why}.", hint=hint)

    @classmethod
    def not_downloaded(cls, name: str, *, why: str = "is not on this machine") -> Self:
        return cls(f"The model {name} {why}.", code="model_not_here", hint=f"afterwords models pull {name}")

    @classmethod
    def too_little_memory(cls, name: str, *, needed_bytes: int, room_bytes: int, fitting: Sequence[str]) -> Self:
        return cls(
            f"The model {name} needs {needed_bytes / 1e9:.1f} GB of memory; this machine can give it "
            f"{room_bytes / 1e9:.1f} GB.",
            code="too_little_memory",
            hint=f"use {' or '.join(fitting) or 'the backend lite, which needs 1 GB'}.",
        )

    @classmethod
    def not_managed(cls, path: Path) -> Self:
        return cls(f"The model in {path} was not pulled by afterwords, and is left alone.", code="foreign_model")


class SynthesisError(AfterwordsError):
    """An engine could not speak a text."""

    code = "synthesis_failed"
    hint = "try a shorter text or another --seed; --debug shows where it failed."
    exit_code = 7
    codes: ClassVar[Mapping[str, Code]] = {
        "runaway_audio": Code(422, hint="try again, or with another seed."),
        "measurement_timeout": Code(504, 9, hint="give it longer: --timeout SECONDS."),
    }

    @classmethod
    def for_backend(cls, backend: str, why: str) -> Self:
        return cls(f"The backend {backend} could not speak: {why}.")

    @classmethod
    def runaway(cls, *, duration_s: float, maximum_s: float) -> Self:
        return cls(
            f"The speech lasts {duration_s:.1f} s, and its text may last at most {maximum_s:.0f} s.",
            code="runaway_audio",
        )


class StreamConsumedError(AfterwordsError):
    """A stream of speech was read a second time."""

    code = "speech_read"
    message = "This speech was read before, and what was read is not kept."
    hint = "call stream again, or keep say's Audio."


class LibraryError(AfterwordsError):
    """The voice library on this disk can't be used."""

    code = "library"
    codes: ClassVar[Mapping[str, Code]] = {
        "newer_library": Code(),
        "library_busy": Code(503, hint="wait for it to end, then try again."),
    }

    @classmethod
    def busy(cls, home: Path, *, waited_s: float) -> Self:
        return cls(f"Another process has held the library in {home} for {waited_s:g} s.", code="library_busy")


class CorruptVoiceError(LibraryError):
    """The folder of a voice is damaged."""

    code = "corrupt_voice"
    hint = "restore that folder from a backup, or move it away; the other voices are not affected."

    @classmethod
    def for_folder(cls, entry: Path, why: str) -> Self:
        return cls(f"The voice in {entry} is damaged: {why}.")


class StorageFullError(LibraryError):
    """A disk is full."""

    code = "storage_full"
    http_status = 507
    hint = "free some space; nothing was changed or lost."

    @classmethod
    def for_path(cls, path: Path | str, *, needed_bytes: int = 0, free_bytes: int = 0) -> Self:
        lacks = (
            f"has {free_bytes / 1e9:.1f} GB free, and {needed_bytes / 1e9:.1f} GB are needed"
            if needed_bytes
            else "is full"
        )
        return cls(f"The disk that holds {path} {lacks}.")


# -- what a server refuses, or could not do -------------------------------------------------------------------


class ServiceError(AfterwordsError):
    """A server refused a request, or failed. Messages name the rule; they never echo what was sent."""

    code = "internal_error"
    message = "The server failed, and wrote down why."
    hint = "try again; if it fails again, give the request id to the person who runs the server."
    exit_code = 8
    codes: ClassVar[Mapping[str, Code]] = {
        "not_opened": Code(
            503,
            message="The server was not opened: the lifespan of its router did not run.",
            hint="run the application with its lifespan, or enter app.router.lifespan_context(app) of a mounted one "
            "in the lifespan of yours (docs/server.md).",
        )
    }


class InvalidRequestError(ServiceError):
    """A request is malformed, or has a field that can't be used."""

    code = "bad_request"
    hint = "see the reference of the API."
    http_status = 400
    exit_code = 5
    codes: ClassVar[Mapping[str, Code]] = {
        "missing_field": Code(),
        "invalid_json": Code(
            message="The body is not a JSON object: it can't be parsed.", hint="send one JSON object in UTF-8."
        ),
        "invalid_multipart": Code(hint="send multipart/form-data."),
        "invalid_host": Code(
            message="This server does not answer to the name in the Host header.",
            hint="use its own address, or name yours in AFTERWORDS_PUBLIC_URL or AFTERWORDS_ALLOWED_HOSTS.",
        ),
        "method_not_allowed": Code(405),
        "request_timeout": Code(408, 8, hint="send it again."),
        "request_too_large": Code(413, hint="send less at once."),
        "range_not_satisfiable": Code(416, hint="ask for one range within it."),
        "invalid_field": Code(422),
        "bad_content_type": Code(422),
        "invalid_webhook_url": Code(422, hint="give an https:// URL of a public host."),
    }

    @classmethod
    def missing_field(cls, param: str) -> Self:
        return cls(f"The field {param} is missing.", code="missing_field", hint=f"send {param}.", param=param)

    @classmethod
    def invalid_field(cls, param: str, rule: str) -> Self:
        return cls(
            f"The field {param} can't be used: {rule}.",
            code="invalid_field",
            hint=f"see the reference of the API for {param}.",
            param=param,
        )

    @classmethod
    def invalid_form(cls, why: str) -> Self:
        return cls(f"The body is not the form that was expected: {why}.", code="invalid_multipart")

    @classmethod
    def invalid_webhook_url(cls, why: str) -> Self:
        return cls(f"The webhook URL can't be used: {why}.", code="invalid_webhook_url", param="webhook_url")

    @classmethod
    def too_large(cls, *, maximum_bytes: int) -> Self:
        return cls(f"The body has more than {maximum_bytes:,} bytes.", code="request_too_large")

    @classmethod
    def timed_out(cls, *, waited_s: float) -> Self:
        return cls(f"The body did not arrive: nothing came for {waited_s:g} s.", code="request_timeout")

    @classmethod
    def method_not_allowed(cls, *, allowed: Sequence[str]) -> Self:
        methods = ", ".join(allowed)
        return cls(
            f"This address takes {methods}.",
            code="method_not_allowed",
            hint=f"use {methods}.",
            headers={"Allow": methods},
        )

    @classmethod
    def range_not_satisfiable(cls, *, size_bytes: int) -> Self:
        return cls(
            f"The audio has {size_bytes:,} bytes, and no such range.",
            code="range_not_satisfiable",
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )


class InvalidBundleError(ServiceError):
    """A bundle can't be imported."""

    code = "invalid_bundle"
    hint = "export the voice again."
    http_status = 422
    exit_code = 5

    @classmethod
    def for_reason(cls, why: str) -> Self:
        return cls(f"The bundle can't be used: {why}.")


class UnauthorizedError(ServiceError):
    """A request has no valid key."""

    code = "unauthorized"
    message = "The key is missing, unknown, expired or revoked."
    hint = "send `Authorization: Bearer` and a valid key."
    http_status = 401
    exit_code = 3
    codes: ClassVar[Mapping[str, Code]] = {
        "admin_required": Code(
            message="Only the admin secret of the server opens this; a key was sent.",
            hint="set AFTERWORDS_ADMIN_SECRET to the server's; a key without scopes and limit can make keys with "
            "scopes for its own account.",
        ),
        "not_logged_in": Code(),
    }

    @classmethod
    def not_logged_in(cls, url: str, *, what: str = "key") -> Self:
        hints = {
            "key": "afterwords login, or set AFTERWORDS_API_KEY.",
            "admin secret": "set AFTERWORDS_ADMIN_SECRET.",
        }
        return cls(f"There is no {what} for {url}.", code="not_logged_in", hint=hints[what])


class InsufficientScopeError(ServiceError):
    """The key is valid but lacks a scope."""

    code = "insufficient_scope"
    http_status = 403
    exit_code = 3

    @classmethod
    def for_scope(cls, scope: str) -> Self:
        return cls(f"The key lacks the scope {scope}.", hint=f"use a key with the scope {scope}.")


class LimitError(ServiceError):
    """A limit of use is reached.

    Attributes:
        limit: The limit, in requests, jobs or characters, where it is known.
    """

    code = "limit_reached"
    http_status = 429
    exit_code = 6
    limit: int | None = None
    codes: ClassVar[Mapping[str, Code]] = {
        "rate_limited": Code(),
        "too_many_auth_failures": Code(),
        "too_many_concurrent_requests": Code(hint="wait until some have ended."),
        "queue_full": Code(hint="try again later."),
    }

    @classmethod
    def rate_limited(cls, *, limit: int, retry_after_s: int) -> Self:
        return cls._for_limit(
            f"The key has used up its {limit:,} requests.",
            code="rate_limited",
            hint=f"wait {retry_after_s} s.",
            limit=limit,
            retry_after_s=retry_after_s,
        )

    @classmethod
    def too_many_auth_failures(cls, *, limit: int, retry_after_s: int) -> Self:
        return cls._for_limit(
            f"More than {limit:,} keys or secrets from this address were wrong within a minute.",
            code="too_many_auth_failures",
            hint=f"wait {retry_after_s} s, and check the key.",
            limit=limit,
            retry_after_s=retry_after_s,
        )

    @classmethod
    def too_many_concurrent(cls, *, limit: int, doing: str = "jobs waiting", retry_after_s: int = 1) -> Self:
        return cls._for_limit(
            f"The account has {limit:,} {doing} already, the most there may be.",
            code="too_many_concurrent_requests",
            limit=limit,
            retry_after_s=retry_after_s,
        )

    @classmethod
    def queue_full(cls, *, limit: int, retry_after_s: int = 5) -> Self:
        return cls._for_limit(
            f"The server has {limit:,} jobs waiting already, the most there may be.",
            code="queue_full",
            limit=limit,
            retry_after_s=retry_after_s,
        )

    @classmethod
    def _for_limit(cls, message: str, *, limit: int, retry_after_s: int, code: str = "", hint: str = "") -> Self:
        error = cls(message, code=code, hint=hint, retry_after_s=retry_after_s)
        error.limit = limit
        return error


class QuotaExceededError(LimitError):
    """The characters or the storage of an account are used up."""

    code = "quota_exceeded"
    hint = "wait for the next period, or ask for a higher limit."
    codes: ClassVar[Mapping[str, Code]] = {
        "storage_quota_exceeded": Code(
            507, hint="delete a voice with its audio and cache, or have AFTERWORDS_STORAGE_PER_ACCOUNT_MB raised."
        )
    }

    @classmethod
    def for_characters(cls, *, limit: int, used: int, asked: int, retry_after_s: int) -> Self:
        return cls._for_limit(
            f"The key has spent {used:,} of its {limit:,} characters, and this text has {asked:,}.",
            limit=limit,
            retry_after_s=retry_after_s,
        )

    @classmethod
    def for_storage(cls, *, stored_bytes: int, quota_bytes: int) -> Self:
        return cls(
            f"The account may store {quota_bytes / 1e6:,.0f} MB and has {stored_bytes / 1e6:,.1f} MB.",
            code="storage_quota_exceeded",
        )


class ConflictError(ServiceError):
    """The request conflicts with the state of the resource."""

    code = "conflict"
    http_status = 409
    exit_code = 5
    codes: ClassVar[Mapping[str, Code]] = {
        "idempotency_conflict": Code(
            message="This Idempotency-Key came before with another request.", hint="use a new key for a new request."
        ),
        "job_final": Code(hint="nothing is left to cancel."),
        "ambiguous_voice_name": Code(
            message="Several voices have this name.", hint="use the voice_id; GET /v1/voices lists them."
        ),
        "key_replaced": Code(
            message="This key was replaced and is valid only until its overlap ends, so it can't replace or revoke "
            "others.",
            hint="use the key that replaced it; `afterwords keys list` shows both.",
        ),
        "home_voice": Code(
            message="This voice belongs to the library on the server's machine and can't be changed over HTTP.",
            hint="run `afterwords voices rename` or `afterwords voices rm` on that machine.",
        ),
    }

    @classmethod
    def job_final(cls, status: str) -> Self:
        return cls(f"The job is {status} already, and can't be cancelled.", code="job_final")


class StaleAttemptError(ConflictError):
    """The result of a worker is not wanted any more: the job was taken over, or its voice was deleted."""

    code = "stale_attempt"
    message = "Another attempt has taken this job over."
    hint = "drop this result."
    codes: ClassVar[Mapping[str, Code]] = {
        "voice_deleted": Code(410, 4, message="The voice was deleted, and the job with it.")
    }


class AudioMissingError(ServiceError):
    """Stored audio is missing or altered."""

    code = "audio_lost"
    message = "The audio is missing from storage or was altered."
    hint = "synthesize it again."
    codes: ClassVar[Mapping[str, Code]] = {
        "reference_missing": Code(
            message="The reference recording is missing from storage or was altered.", hint="register the voice again."
        )
    }


class ServiceUnavailableError(ServiceError):
    """The server can't do this at the moment; nothing was changed."""

    code = "service_unavailable"
    message = "The server is stopping; nothing was changed."
    hint = "try again in a moment."
    http_status = 503
    retry_after_s = 1


class DatabaseUnavailableError(ServiceUnavailableError):
    """The server's database does not respond."""

    code = "database_unavailable"
    message = "The database does not answer; nothing was changed."


class StorageUnavailableError(ServiceUnavailableError):
    """The server's audio storage does not respond."""

    code = "storage_unavailable"
    message = "The storage does not answer; nothing was changed."


# -- on the way to a server -----------------------------------------------------------------------------------


class RemoteError(AfterwordsError):
    """A server or the model hub could not be reached, or its response can't be used."""

    code = "remote"
    http_status = 502
    exit_code = 8
    codes: ClassVar[Mapping[str, Code]] = {"network_setting": Code(503)}

    @classmethod
    def for_network_setting(cls, variable: str, why: str, *, hint: str) -> Self:
        return cls(f"The network can't be used as {variable} says: {why}.", code="network_setting", hint=hint)


class UnreachableError(RemoteError):
    """No connection was made; nothing was sent."""

    code = "unreachable"
    http_status = 503

    @classmethod
    def for_url(cls, url: str, *, why: str, check: str = "") -> Self:
        also = f", and that {check}" if check else ""
        return cls(
            f"There is no connection to {url}: {why}.",
            hint=f"see that the address is right and the server runs{also}; `afterwords whoami` shows which one is "
            "asked.",
        )


class ConnectionLostError(RemoteError):
    """The connection ended before the response did. Whether the server carried the request out is unknown."""

    code = "connection_lost"
    hint = "look whether it was done (`afterwords jobs list`), then try again."

    @classmethod
    def for_url(cls, url: str, *, why: str = "it was closed") -> Self:
        return cls(f"The connection to {url} was lost: {why}.")


class ServerTimeoutError(ConnectionLostError):
    """The server sent nothing for too long."""

    code = "server_silent"
    hint = "try again, or give it more time."
    http_status = 504
    exit_code = 9


class InvalidResponseError(RemoteError):
    """A response does not follow the API, or holds other bytes than were meant."""

    code = "strange_answer"
    hint = "see that the address is that of an afterwords server, and that no proxy answers for it."

    @classmethod
    def for_reason(cls, why: str, *, hint: str = "") -> Self:
        return cls(f"The server's answer can't be used: {why}.", hint=hint)


class UnsupportedByServerError(RemoteError):
    """The hosted service lacks a feature that a self-hosted server has."""

    code = "unsupported_by_server"
    hint = "ask a server of your own (`afterwords serve`), or do without."
    http_status = 501
    exit_code = 5

    @classmethod
    def for_feature(cls, what: str) -> Self:
        return cls(f"This server does not know {what}.")


class HubError(RemoteError):
    """The model hub refused a download, or its response can't be used."""

    code = "hub"
    hint = "try again; if it stays, see that HF_ENDPOINT, if set, is a whole mirror."
    codes: ClassVar[Mapping[str, Code]] = {
        "hub_unreachable": Code(503),
        "hub_refused": Code(exit_code=3),
        "hub_missing": Code(
            404, 4, hint="see that HF_ENDPOINT, if set, is a whole mirror; `--update` takes another revision."
        ),
        "hub_busy": Code(503, 6),
    }

    @classmethod
    def for_url(cls, url: str, why: str, *, code: str = "", hint: str = "") -> Self:
        return cls(f"The model hub {url} {why}.", code=code, hint=hint)

    @classmethod
    def unreachable(cls, url: str, *, why: str, check: str = "") -> Self:
        also = f", that {check}," if check else ""
        hint = f"see that there is a network{also} and pull again, it goes on where it was; HF_ENDPOINT names a mirror."
        return cls.for_url(url, f"can't be reached: {why}", code="hub_unreachable", hint=hint)

    @classmethod
    def refused(cls, url: str, *, what: str, has_token: bool) -> Self:
        hint = "set HF_TOKEN to a token that may read it."
        if has_token:
            hint = "see that HF_TOKEN is valid and may read it, or unset it."
        return cls.for_url(url, f"does not hand out {what}", code="hub_refused", hint=hint)

    @classmethod
    def busy(cls, url: str, *, retry_after_s: int | None) -> Self:
        wait = "later" if retry_after_s is None else f"in {retry_after_s} s"
        hint = f"pull again {wait}; HF_TOKEN raises the limit."
        return cls.for_url(url, "gets too many requests from here", code="hub_busy", hint=hint)


class JobError(AfterwordsError):
    """A job on a server has no audio; the job itself is not lost.

    Attributes:
        job_id: ID of the job.
    """

    code = "job_error"
    exit_code = 7
    job_id: str | None = None
    codes: ClassVar[Mapping[str, Code]] = {"job_cancelled": Code(hint="nothing was charged; ask again if you want it.")}

    @classmethod
    def cancelled(cls, job_id: str | None) -> Self:
        error = cls(f"The job {job_id} was cancelled.", code="job_cancelled")
        error.job_id = job_id
        return error


_JOB_FAILURES: Final = {
    "synthesis_failed": ("the engine could not speak the text", ""),
    "worker_lost": ("the process that spoke it ended in every attempt", ""),
    "out_of_memory": ("the server has too little memory for it", ""),
    "runaway_audio": ("the engine did not find the end of the text", ""),
    "reference_missing": ("the recording of the voice is missing from the storage", ""),
    "audio_lost": ("its audio is missing from the storage, or was changed", ""),
    "loading_timed_out": (
        "loading the model made no progress for too long",
        "try again; the setting of the server is AFTERWORDS_START_ALLOWANCE_S.",
    ),
    "preparing_timed_out": (
        "preparing the voice made no progress for too long",
        "try again: it goes on where it was. The setting of the server is AFTERWORDS_START_ALLOWANCE_S.",
    ),
    "speaking_timed_out": (
        "speaking made no sound for too long",
        "try again; the setting of the server is AFTERWORDS_STALL_S.",
    ),
}
"""What each code of a failed job means, and what to do about it. docs/api.md lists the codes."""


class JobFailedError(JobError):
    """A job failed.

    Attributes:
        reason: The server's code for the failure.
    """

    code = "job_failed"
    reason: str = ""

    @classmethod
    def for_job(cls, job_id: str | None, *, reason: str) -> Self:
        meaning, fix = _JOB_FAILURES.get(reason, ("", ""))
        why = f"{meaning} ({reason})" if meaning else reason.rstrip(".")
        fix = fix or "try again; if it fails again, ask the person who runs the server."
        error = cls(f"The job {job_id} failed: {why}.", hint=f"nothing was charged; {fix}")
        error.job_id, error.reason = job_id, reason
        return error


class JobTimeoutError(JobError):
    """A job is still pending after the time that the caller would wait; it goes on."""

    code = "job_timeout"
    http_status = 504
    exit_code = 9

    @classmethod
    def for_job(cls, job_id: str | None, *, waited_s: float) -> Self:
        error = cls(
            f"The job {job_id} is still pending after {waited_s:g} s.",
            hint=f"it goes on; wait for it again: afterwords jobs wait {job_id}",
        )
        error.job_id = job_id
        return error


class ServerSetupError(AfterwordsError):
    """A server can't start with these settings."""

    code = "server_setup"
    exit_code = 2
    codes: ClassVar[Mapping[str, Code]] = {
        "insecure_server": Code(),
        "server_running": Code(
            message="A server uses the database that would be replaced.", hint="stop it, then run this again."
        ),
        "server_not_empty": Code(hint="back it up, then add --replace; or set AFTERWORDS_HOME to another folder."),
        "opened_twice": Code(
            message="One router is opened twice: it is included twice, or its application runs twice.",
            hint="make one with router(settings) for each place, each with a data folder of its own.",
        ),
        "address_in_use": Code(exit_code=8, hint="choose another with --port."),
        "newer_database": Code(exit_code=1),
    }

    @classmethod
    def not_empty(cls, why: str) -> Self:
        return cls(f"There is a server here already: {why}.", code="server_not_empty")


# -- errors from codes, and text for people -------------------------------------------------------------------


def error_from_code(
    code: str,
    message: str = "",
    *,
    hint: str = "",
    http_status: int | None = None,
    param: str | None = None,
    retry_after_s: int | None = None,
    request_id: str | None = None,
) -> AfterwordsError:
    """Return the error that another process or a server reported: an instance of the class that carries the code.

    Args:
        code: Code of the error. One that is unknown here becomes an InvalidRequestError for an HTTP status of 4xx, and
            a ServiceError otherwise.
        message: What happened; the default message of the code if empty.
        hint: How to fix it; the default hint of the code if empty.
        http_status: Status of the response; the default of the code if None.
        param: Request field that is wrong.
        retry_after_s: Seconds to wait before a retry, where the response states it.
        request_id: ID of the request in the server's log.
    """
    fallback = InvalidRequestError if 400 <= (http_status or 500) < 500 else ServiceError
    kind = _classes().get(code, fallback)
    error = kind(message, code=code, hint=hint, http_status=http_status, param=param, request_id=request_id)
    error.retry_after_s = retry_after_s
    return error


@cache
def _classes() -> dict[str, type[AfterwordsError]]:
    """Return the class of each code that another process may report."""
    found: dict[str, type[AfterwordsError]] = {}
    client_side = (RemoteError, JobError, ServerSetupError)  # raised only where they are found
    waiting = [kind for kind in AfterwordsError.__subclasses__() if kind not in client_side]
    for kind in waiting:
        for code in (kind.code, *kind.codes):
            found.setdefault(code, kind)
        waiting += (sub for sub in kind.__subclasses__() if sub.__module__ == __name__)
    return found


def pip_install(extra: str = "", *, options: str = "") -> str:
    """Return the command that installs afterwords or one of its extras, ready to paste into a shell.

    pip records the origin of a package that did not come from an index (PEP 610, `direct_url.json`). A copy that was
    installed from a folder or from Git is installed from there again, since no index may have it.

    Args:
        extra: Name of the extra, or empty for the package alone.
        options: Further options of `pip install`, for example `--upgrade`.
    """
    extras = f"[{extra}]" if extra else ""
    command = " ".join(filter(None, ("pip install", options)))
    origin = _origin()
    url = str(origin.get("url", ""))
    if not url:
        return f'{command} "afterwords{extras}"'
    if "vcs_info" in origin:
        return f'{command} "afterwords{extras} @ {origin["vcs_info"]["vcs"]}+{url}"'
    if "dir_info" not in origin:
        return f'{command} "afterwords{extras} @ {url}"'
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    folder = Path(url2pathname(urlsplit(url).path))
    if not folder.is_dir():
        return f'{command} ".{extras}" in a clone of the repository of afterwords'
    editable = "--editable " if origin["dir_info"].get("editable") else ""
    return f'{command} {editable}"{folder}{extras}"'


def _origin() -> dict[str, dict[str, str]]:
    """Return where pip installed afterwords from; empty for an index or a source tree."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        recorded = distribution("afterwords").read_text("direct_url.json")
    except PackageNotFoundError:
        return {}
    origin: dict[str, dict[str, str]] = json.loads(recorded) if recorded else {}
    return origin


def _quote(value: object) -> str:
    """Return a value in quotation marks without escapes; `_escape` escapes the whole message."""
    return f"'{value}'" if isinstance(value, str) else repr(value)


def _escape(text: str) -> str:
    """Escape characters that a terminal would act on."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
