"""The types that the SDK, the command line, the server and the engines share.

All are frozen, every field is described (the text becomes API documentation), times are aware and in UTC.
A Voice has no owner and no key, so it cannot leak one; text and transcripts stay out of every repr.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from afterwords.errors import InvalidOptionError

NAME_MAX_CHARS = 200
ID_PATTERN = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""What an identifier looks like: a UUID in lower case."""
_ID = re.compile(ID_PATTERN)
BUNDLE_TYPE = "application/vnd.afterwords.voice+zip"
"""The media type of a voice as one file, see `bundle`, which clients don't load."""


def new_id() -> str:
    """Make an identifier: a random UUID in its usual form."""
    return str(uuid4())


def is_id(value: str) -> bool:
    """Whether it could be an identifier; what is not need not be looked for, and names no file."""
    return _ID.fullmatch(value) is not None


def as_id(value: str) -> str | None:
    """Return the identifier that a value is, in lower case; None if it is none. Both cases name the same UUID."""
    lowered = value.lower()
    return lowered if is_id(lowered) else None


def now() -> datetime:
    """The present moment, aware, in UTC, cut to the millisecond that the API shows."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # an offset that leads out of the years 1 to 9999
        raise ValueError("it must be within the years 1 to 9999 in UTC") from None


UtcTime = Annotated[
    AwareDatetime,
    AfterValidator(_in_utc),
    PlainSerializer(_iso, when_used="json"),
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Model(BaseModel):
    """The base of all: immutable, closed to unknown fields, and silent about the values it refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class ConsentKind(StrEnum):
    """By what right a voice may be cloned."""

    SELF = "self"
    GRANTED = "granted"
    PUBLIC_DOMAIN = "public-domain"
    SYNTHETIC = "synthetic"


ConsentName = Literal["self", "granted", "public-domain", "synthetic"]
"""The values of `ConsentKind`, for editors and type checkers."""


class Consent(Model):
    """The statement that a voice may be cloned."""

    kind: ConsentKind = Field(description="By what right: one's own voice, leave given, public domain, or no person.")
    stated_at: UtcTime = Field(description="When it was stated, UTC.")


class ReferenceInfo(Model):
    """What is known of the recording that a voice speaks from, without the recording."""

    sha256: Sha256 = Field(description="SHA-256 of the prepared reference, a canonical WAV file.")
    duration_s: float = Field(gt=0, description="Length of the prepared reference in seconds.")
    sample_rate: int = Field(gt=0, description="Sample rate of the prepared reference in Hz.")
    grade: str | None = Field(
        default=None, pattern=r"^[A-F]$", description="How good it is for cloning: A (best) to F; absent: not graded."
    )


class Provenance(Model):
    """Where a voice came from: enough to tell later that nothing was exchanged."""

    original_sha256: Sha256 = Field(description="SHA-256 of the untouched original recording.")
    window_start_s: float = Field(ge=0, description="Where in the original the reference begins, in seconds.")
    software: str = Field(description="The program and version that prepared the voice.")
    sealed_at: UtcTime = Field(description="When the reference and the consent were bound together, UTC.")
    seal: Sha256 = Field(description="SHA-256 over reference, original, consent and time: a change in any is found.")


class Voice(Model):
    """A voice: a name, a reference recording, its transcript and language, and the right to use it."""

    voice_id: str = Field(default_factory=new_id, description="Identifier of the voice, a UUID.")
    name: str = Field(min_length=1, max_length=NAME_MAX_CHARS, description="What its owner calls it.")
    backend: str = Field(description="The backend that speaks it unless another is asked for.")
    lang: str = Field(default="en", description="Language of the reference, two letters.")
    ref_text: str | None = Field(default=None, repr=False, description="Transcript of the reference, if known.")
    family: str | None = Field(default=None, description="Groups voices of one speaker, for example by language.")
    reference: ReferenceInfo | None = Field(
        default=None,
        description="The prepared reference recording; absent: a server did not tell. At home it is known.",
    )
    consent: Consent | None = Field(default=None, description="The statement that it may be cloned.")
    provenance: Provenance | None = Field(default=None, description="Where it came from.")
    created_at: UtcTime = Field(default_factory=now, description="When it was made, UTC.")
    metadata: dict[str, Any] = Field(default_factory=dict, repr=False, description="Free fields of its owner.")

    @property
    def ref_sha256(self) -> str | None:
        """SHA-256 of the prepared reference, where it is known: voices that share it are the same voice."""
        return self.reference.sha256 if self.reference else None


class JobStatus(StrEnum):
    """Where a job stands. All but `pending` are final."""

    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self is not JobStatus.PENDING


class Job(Model):
    """One request to speak that a server accepted."""

    job_id: str | None = Field(
        default=None, description="Identifier of the job, a UUID; absent: it was spoken before, so no job was needed."
    )
    voice_id: str | None = Field(default=None, description="The voice that speaks.")
    status: JobStatus = Field(description="Where the job stands.")
    audio_url: str | None = Field(default=None, description="Where the audio is, once the job is ready.")
    error: str | None = Field(default=None, description="Why the job failed, if it did.")
    step: str | None = Field(default=None, description="What is done for a pending job now, where the server says it.")
    progress: float | None = Field(
        default=None, ge=0, le=1, description="How much of the step is done, where the server says it."
    )
    created_at: UtcTime | None = Field(default=None, description="When it was accepted, UTC.")
    completed_at: UtcTime | None = Field(default=None, description="When it reached its final state, UTC.")
    char_count: int | None = Field(default=None, ge=0, description="Characters that were charged.")

    @model_validator(mode="after")
    def _is_consistent(self) -> Job:
        if self.audio_url is not None and self.status is not JobStatus.READY:
            raise ValueError("only a ready job has audio")
        if self.error is not None and self.status is not JobStatus.FAILED:
            raise ValueError("only a failed job has an error")
        if self.job_id is None and self.status is not JobStatus.READY:
            raise ValueError("only speech that was made before needs no job")
        return self


class SpeechFormat(StrEnum):
    """The audio formats that speech is written in; `pcm` is raw little-endian 16-bit mono."""

    WAV = "wav"
    MP3 = "mp3"
    OPUS = "opus"
    FLAC = "flac"
    PCM = "pcm"


FormatName = Literal["wav", "mp3", "opus", "flac", "pcm"]
"""The values of `SpeechFormat`, for editors and type checkers."""

SPEED_MIN, SPEED_MAX = 0.25, 4.0
Speed = Annotated[float, Field(ge=SPEED_MIN, le=SPEED_MAX, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
_OPTION_RULES = {
    "speed": f"a number from {SPEED_MIN:g} to {SPEED_MAX:g}",
    "seed": "a whole number from 0 to 2^63 - 1",
}


class SpeechOptions(Model):
    """How to speak a text."""

    lang: str | None = Field(default=None, description="Language of the text; absent: the voice's.")
    backend: str | None = Field(default=None, description="Backend to use; absent: the voice's.")
    speed: Speed = Field(default=1.0, description="Speaking rate, 1 = the voice's own; the pitch is kept.")
    seed: Seed | None = Field(default=None, description="Makes a sampled result repeatable.")

    @classmethod
    def check(cls, **options: Any) -> SpeechOptions:
        """Return valid options.

        Raises:
            InvalidOptionError: An option has another type or is out of range.
        """
        try:
            return cls(**options)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            allowed = _OPTION_RULES.get(name, "a string")
            raise InvalidOptionError.for_option(name, value=options[name], allowed=allowed) from None


class SpeechTask(Model):
    """What an engine is given: everything decided, one utterance."""

    text: str = Field(min_length=1, repr=False, description="What to say, already checked.")
    lang: str = Field(description="Language of the text, two letters, one that the backend speaks.")
    backend: str = Field(description="Which of the engine's backends speaks.")
    voice_id: str = Field(description="The voice, for logs and caches.")
    prompt: bytes = Field(repr=False, description="What the engine's own `prepare` made of the reference.")
    seed: Seed | None = Field(default=None, description="Makes a sampled result repeatable.")


class SpeechResult(Model):
    """What came of a task, without the audio."""

    backend: str = Field(description="The backend that spoke.")
    sample_rate: int = Field(gt=0, description="Sample rate of the audio in Hz.")
    duration_s: float = Field(ge=0, description="Length of the audio in seconds.")
    synth_ms: int = Field(ge=0, description="Time that synthesis took, in milliseconds.")
    first_audio_ms: int | None = Field(default=None, ge=0, description="Time to first audio, in milliseconds.")

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for each second of audio; below 1 is faster than speech."""
        return self.synth_ms / 1000 / self.duration_s if self.duration_s else float("inf")


class Usage(Model):
    """Characters spoken in a billing period."""

    characters: int = Field(ge=0, description="Characters charged in the period.")
    limit: int | None = Field(default=None, ge=0, description="Characters allowed in the period; absent: no limit.")
    period_start: UtcTime = Field(description="First moment of the period, UTC.")
    period_end: UtcTime = Field(description="First moment after the period, UTC.")


class ApiKey(Model):
    """An API key as it may be shown: never the key itself."""

    key_id: str = Field(description="Identifier of the key, a UUID.")
    label: str | None = Field(default=None, description="What its owner calls it.")
    scopes: tuple[str, ...] = Field(default=(), description="What it may do; empty: everything.")
    created_at: UtcTime = Field(description="When it was made, UTC.")
    expires_at: UtcTime | None = Field(default=None, description="When it stops working; absent: never.")
    revoked_at: UtcTime | None = Field(default=None, description="When it was revoked, if it was.")
    character_limit: int | None = Field(default=None, ge=0, description="Characters it may spend in a period.")
    account_id: str | None = Field(default=None, description="The account that owns what is made with it.")
    prefix: str | None = Field(default=None, description="How the key begins, to find it in a program's settings.")
    used_at: UtcTime | None = Field(default=None, description="When it was last used, UTC, to the minute.")
    characters: int | None = Field(
        default=None, ge=0, description="Characters spent this calendar month, by it and those it replaced."
    )


class Account(Model):
    """What one account of a server has and has spent, for the admin."""

    account_id: str = Field(description="Identifier of the account, a UUID.")
    created_at: UtcTime = Field(description="When it was made, UTC.")
    keys: int = Field(ge=0, description="Keys that are valid.")
    voices: int = Field(ge=0, description="Voices.")
    characters: int = Field(ge=0, description="Characters spent this calendar month, UTC.")
    storage_bytes: int = Field(ge=0, description="Size of its recordings, job audio and cache.")


class NewApiKey(Model):
    """An API key just made: the one time that it is shown."""

    api_key: str = Field(repr=False, description="The key. It is not kept, and can't be shown again.")
    label: str | None = Field(default=None, description="What its owner calls it.")
    created_at: UtcTime = Field(description="When it was made, UTC.")
    key_id: str | None = Field(default=None, description="Identifier of the key; absent: the server does not tell.")
    account_id: str | None = Field(default=None, description="The account that owns what is made with it.")
    webhook_secret: str | None = Field(
        default=None, repr=False, description="What webhooks of its jobs are signed with (Standard Webhooks)."
    )


class Health(Model):
    """That a server answers, and what it speaks."""

    status: str = Field(description="`ok`.")
    backends: tuple[str, ...] = Field(description="Backends that can be asked for, best first.")
    version: str | None = Field(default=None, description="Version of afterwords; absent: the hosted service.")
