"""The types that the SDK, the CLI, the server and the engines share.

The description of a field becomes API documentation. A Voice has no owner and no key, so it can't leak one; texts and
transcripts are in no repr.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, Literal, Self
from uuid import uuid4

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from afterwords.errors import InvalidOptionError

NAME_MAX_CHARS = 200
LEXICON_MAX_ENTRIES, LEXICON_MAX_BYTES = 1000, 128 * 1024
ID_PATTERN = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""Pattern of an ID: a UUID in lower case."""
_ID = re.compile(ID_PATTERN)
EMOTION_PATTERN = r"(?=.{1,30}$)[a-z]+(?:-[a-z]+)*"
"""Pattern of the name of an emotion."""
_EMOTION = re.compile(EMOTION_PATTERN)
BUNDLE_TYPE = "application/vnd.afterwords.voice+zip"
"""Media type of a voice as one file; it stands here so that clients need not import `library.bundle`."""


def new_id() -> str:
    """Return a new ID, a random UUID."""
    return str(uuid4())


def is_id(value: str) -> bool:
    """Return whether a value has the form of an ID, and so is safe as a file name."""
    return _ID.fullmatch(value) is not None


def parse_id(value: str) -> str | None:
    """Return a value as an ID in lower case, or None if it is not a UUID."""
    lowered = value.lower()
    return lowered if is_id(lowered) else None


def now() -> datetime:
    """Return the current UTC time, truncated to milliseconds as in the API."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # the offset leads outside of the years 1 to 9999
        raise ValueError("it must be within the years 1 to 9999 in UTC") from None


UtcTime = Annotated[
    AwareDatetime,
    AfterValidator(_in_utc),
    PlainSerializer(
        lambda moment: moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        return_type=str,
        when_used="json",
    ),
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Model(BaseModel):
    """Base of all models: frozen, without unknown fields, and with errors that do not repeat the value."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class ConsentKind(StrEnum):
    """Why a voice may be cloned."""

    SELF = "self"
    GRANTED = "granted"
    PUBLIC_DOMAIN = "public-domain"
    SYNTHETIC = "synthetic"


ConsentName = Literal["self", "granted", "public-domain", "synthetic"]
"""The values of `ConsentKind`, for editors and type checkers."""


class Consent(Model):
    """The statement that a voice may be cloned."""

    kind: ConsentKind = Field(
        description="Why the voice may be cloned: own voice, permission granted, public domain, or synthetic."
    )
    stated_at: UtcTime = Field(description="Time of the statement, UTC.")


class ReferenceInfo(Model):
    """Facts about the reference recording of a voice."""

    sha256: Sha256 = Field(description="SHA-256 of the prepared reference, a canonical WAV file.")
    duration_s: float = Field(gt=0, description="Length of the prepared reference in seconds.")
    sample_rate: int = Field(gt=0, description="Sample rate of the prepared reference in Hz.")
    grade: str | None = Field(
        default=None, pattern=r"^[A-F]$", description="Quality for cloning, A (best) to F; absent if not graded."
    )


class Provenance(Model):
    """Where a voice comes from, with a seal that detects later changes."""

    original_sha256: Sha256 = Field(description="SHA-256 of the untouched original recording.")
    window_start_s: float = Field(ge=0, description="Start of the reference in the original recording, in seconds.")
    software: str = Field(description="Program and version that prepared the voice.")
    sealed_at: UtcTime = Field(description="Time at which the reference and the consent were sealed, UTC.")
    seal: Sha256 = Field(
        description="SHA-256 over reference, original, consent and time; detects a change of any of them."
    )


class VoiceStatus(StrEnum):
    """Whether a server has prepared a voice for its backend. Either way, the voice can speak."""

    PREPARING = "preparing"
    READY = "ready"


class LexiconEntry(Model):
    """How a voice pronounces a word: by an alias that is spoken instead, by its sounds, or both."""

    word: str = Field(
        min_length=1, max_length=100, repr=False, description="The word as written; in lower case, it matches any case."
    )
    alias: str | None = Field(
        default=None, min_length=1, max_length=200, repr=False, description="What is spoken instead."
    )
    ipa: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        repr=False,
        description="Its sounds, in IPA, for engines that read it.",
    )


class Reading(Model):
    """How a text is read: words that are pronounced in another way, and names in brackets that are tags."""

    lexicon: tuple[LexiconEntry, ...] = Field(default=(), repr=False, description="Entries of the voice's lexicon.")
    emotions: tuple[str, ...] = Field(default=(), description="Names of takes.")

    @property
    def is_empty(self) -> bool:
        return not (self.lexicon or self.emotions)


class Voice(Model):
    """A voice: a name, a reference recording, its transcript and language, and the consent to use it."""

    voice_id: str = Field(default_factory=new_id, description="ID of the voice, a UUID.")
    name: str = Field(
        min_length=1, max_length=NAME_MAX_CHARS, description="Name of the voice, unique in its account or library."
    )
    backend: str = Field(description="Default backend of the voice.")
    lang: str = Field(default="en", description="Language of the reference, a two-letter code.")
    ref_text: str | None = Field(default=None, repr=False, description="Transcript of the reference, if known.")
    family: str | None = Field(
        default=None, description="Label that groups voices, for example those of one speaker in several languages."
    )
    reference: ReferenceInfo | None = Field(
        default=None,
        description="The prepared reference recording; absent if the server does not report it.",
    )
    consent: Consent | None = Field(default=None, description="Consent to clone the voice.")
    provenance: Provenance | None = Field(default=None, description="Origin and seal of the voice.")
    created_at: UtcTime = Field(default_factory=now, description="Creation time, UTC.")
    metadata: dict[str, Any] = Field(default_factory=dict, repr=False, description="Free-form fields of the owner.")
    status: VoiceStatus | None = Field(
        default=None,
        description="Whether the server has prepared the voice for its backend; absent if it does not report it.",
    )

    @property
    def ref_sha256(self) -> str | None:
        """SHA-256 of the prepared reference, if known; equal hashes mean the same voice."""
        return self.reference.sha256 if self.reference else None

    @property
    def emotion(self) -> str | None:
        """Emotion of the recording, `metadata["emotion"]`: this voice is a take of the speaker who is its family."""
        return read_emotion(self.metadata, self.family)

    @property
    def lexicon(self) -> tuple[LexiconEntry, ...]:
        """How this voice pronounces words, `metadata["lexicon"]`."""
        return read_lexicon(self.metadata)


def read_emotion(metadata: Mapping[str, Any], family: str | None) -> str | None:
    """Return the emotion in the metadata of a voice, which anyone may have written.

    Returns:
        None if it has no family, so that it is no take, or if it is no word that a tag can be.
    """
    emotion = metadata.get("emotion")
    return emotion if isinstance(emotion, str) and _EMOTION.fullmatch(emotion) and family else None


def read_lexicon(metadata: Mapping[str, Any]) -> tuple[LexiconEntry, ...]:
    """Return the lexicon in the metadata of a voice, which anyone may have written; invalid entries are left out."""
    entries = metadata.get("lexicon")
    found = []
    for entry in entries[:LEXICON_MAX_ENTRIES] if isinstance(entries, list) else ():
        with suppress(ValidationError):
            found.append(LexiconEntry.model_validate(entry))
    return tuple(found)


class Alias(Model):
    """A further name of a voice, for programs that send names of their own."""

    alias: str = Field(description="The name that programs send, for example alloy.")
    voice_id: str = Field(description="ID of the voice that speaks.")
    voice: str = Field(description="Name of the voice.")


class JobStatus(StrEnum):
    """State of a job; all but `pending` are final."""

    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self is not JobStatus.PENDING


class Job(Model):
    """A synthesis request that a server accepted."""

    job_id: str | None = Field(
        default=None, description="ID of the job, a UUID; absent if the audio came from the cache."
    )
    voice_id: str | None = Field(default=None, description="ID of the voice.")
    status: JobStatus = Field(description="State of the job.")
    audio_url: str | None = Field(default=None, description="URL of the audio, once the job is ready.")
    error: str | None = Field(default=None, description="Error code of a failed job.")
    step: str | None = Field(default=None, description="Current step of a pending job, if the server reports it.")
    progress: float | None = Field(
        default=None, ge=0, le=1, description="Progress of the step from 0 to 1, if the server reports it."
    )
    created_at: UtcTime | None = Field(default=None, description="Time at which the job was accepted, UTC.")
    completed_at: UtcTime | None = Field(
        default=None, description="Time at which the job reached its final state, UTC."
    )
    char_count: int | None = Field(default=None, ge=0, description="Characters that were charged.")

    @model_validator(mode="after")
    def _is_consistent(self) -> Job:
        if self.audio_url is not None and self.status is not JobStatus.READY:
            raise ValueError("only a ready job has audio")
        if self.error is not None and self.status is not JobStatus.FAILED:
            raise ValueError("only a failed job has an error")
        if self.job_id is None and self.status is not JobStatus.READY:
            raise ValueError("only a ready job may have no ID")
        return self


class SpeechFormat(StrEnum):
    """Audio formats of speech, all mono.

    `opus` is Opus in Ogg, `webm` is Opus in WebM, `aac` is a stream of ADTS frames, `pcm` is raw little-endian 16-bit,
    `mulaw` and `alaw` are raw G.711 at 8 kHz, for telephony.
    """

    WAV = "wav"
    MP3 = "mp3"
    OPUS = "opus"
    FLAC = "flac"
    PCM = "pcm"
    AAC = "aac"
    WEBM = "webm"
    MULAW = "mulaw"
    ALAW = "alaw"


FormatName = Literal["wav", "mp3", "opus", "flac", "pcm", "aac", "webm", "mulaw", "alaw"]
"""The values of `SpeechFormat`, for editors and type checkers."""

SPEED_MIN, SPEED_MAX = 0.25, 4.0
Speed = Annotated[float, Field(ge=SPEED_MIN, le=SPEED_MAX, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
_OPTION_RULES = {
    "speed": f"a number from {SPEED_MIN:g} to {SPEED_MAX:g}",
    "seed": "a whole number from 0 to 2^63 - 1",
}


class SpeechOptions(Model):
    """Options of a synthesis."""

    lang: str | None = Field(default=None, description="Language of the text; defaults to that of the voice.")
    backend: str | None = Field(default=None, description="Backend to use; defaults to that of the voice.")
    speed: Speed = Field(default=1.0, description="Speaking rate relative to the voice; the pitch is kept.")
    seed: Seed | None = Field(default=None, description="Seed that makes sampling reproducible.")

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
    """One utterance for an engine, with every choice made."""

    text: str = Field(min_length=1, repr=False, description="Validated text to speak.")
    lang: str = Field(description="Language of the text, a two-letter code that the backend speaks.")
    backend: str = Field(description="Backend of the engine to use.")
    voice_id: str = Field(description="ID of the voice, for logs and caches.")
    prompt: bytes = Field(repr=False, description="Result of the engine's `prepare` for the reference.")
    seed: Seed | None = Field(default=None, description="Seed that makes sampling reproducible.")
    lexicon: tuple[LexiconEntry, ...] = Field(
        default=(), repr=False, description="Words of the voice; they are replaced before an engine gets the task."
    )
    emotions: tuple[str, ...] = Field(
        default=(), description="Names in brackets that are tags of the text, and not text, as for `lexicon`."
    )
    pronunciations: dict[str, str] = Field(
        default={}, repr=False, description="IPA of words that stand in the text for others; see `Engine.reads_ipa`."
    )


class SpeechResult(Model):
    """Facts about finished speech, without the audio."""

    backend: str = Field(description="Backend that spoke.")
    sample_rate: int = Field(gt=0, description="Sample rate of the audio in Hz.")
    duration_s: float = Field(ge=0, description="Length of the audio in seconds.")
    synth_ms: int = Field(ge=0, description="Synthesis time in milliseconds.")
    first_audio_ms: int | None = Field(default=None, ge=0, description="Time to the first audio in milliseconds.")

    @property
    def real_time_factor(self) -> float:
        """Synthesis time divided by audio duration; below 1 is faster than real time."""
        return self.synth_ms / 1000 / self.duration_s if self.duration_s else float("inf")


UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Scripts without spaces, Thai to Han, as ranges for a pattern."""
_RUN = re.compile(rf"[{UNSPACED}][^\w\s]*|[^\s{UNSPACED}—…]+")
_MARKS = ".,;:!?\"'()[]{}“”‘’«»‹›„…—–-¡¿、。，．！？：；・「」『』（）【】《》"


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return start and end of each word of a text without the punctuation around it.

    In scripts without spaces each character is a word.
    """
    spans = []
    for run in _RUN.finditer(text):
        if word := run[0].strip(_MARKS):
            start = run.start() + run[0].index(word)
            spans.append((start, start + len(word)))
    return spans


class WordTiming(Model):
    """When a word is spoken."""

    text: str = Field(min_length=1, repr=False, description="The word as written, without punctuation around it.")
    start: int = Field(ge=0, description="Position of its first character in the text, in code points.")
    start_s: float = Field(ge=0, description="Time at which the word starts, in seconds from the start of the audio.")
    end_s: float = Field(ge=0, description="Time at which the word ends.")


class CharacterTimes:
    """Times of the first characters of a text, which become known word by word.

    Attributes:
        start_s, end_s: When each character starts and ends.
    """

    def __init__(self) -> None:
        self.start_s: list[float] = []
        self.end_s: list[float] = []
        self._now_s = 0.0

    def advance(self, end: int, until_s: float) -> None:
        """Give the characters before a position equal shares of the time until a moment."""
        count, length_s = end - len(self.start_s), until_s - self._now_s
        if count > 0 and length_s > 0:
            edges = [self._now_s + length_s * step / count for step in range(count)] + [self._now_s + length_s]
        else:
            edges = [self._now_s] * (count + 1)
        self.start_s.extend(edges[:-1])
        self.end_s.extend(edges[1:])
        self._now_s += max(0.0, length_s)


class Alignment(Model):
    """When each character of a text is spoken. A pause belongs to the spaces and punctuation between two words."""

    characters: Annotated[
        tuple[str, ...], BeforeValidator(lambda text: tuple(text) if isinstance(text, str) else text)
    ] = Field(repr=False, description="The code points of the text.")
    start_s: tuple[float, ...] = Field(
        description="Time at which each character starts, in seconds from the start of the audio; never decreases."
    )
    end_s: tuple[float, ...] = Field(description="Time at which each character ends; never decreases.")
    confidence: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="1 if the engine reported the times; if speech recognition found them, the share of the words that "
        "it recognized. Times of the other words are interpolated.",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not len(self.characters) == len(self.start_s) == len(self.end_s):
            raise ValueError("the lists differ in length")
        times = (self.start_s, self.end_s)
        if any(earlier > later for every in times for earlier, later in pairwise((0.0, *every))):
            raise ValueError("the times decrease")
        if any(start > end for start, end in zip(*times, strict=True)):
            raise ValueError("a character ends before it starts")
        return self

    @classmethod
    def from_words(cls, text: str, words: Iterable[WordTiming], duration_s: float, *, confidence: float = 1.0) -> Self:
        """Return the alignment of a text with timed words; characters within and between words have equal shares.

        Args:
            text: The text.
            words: Words of the text, in order; their times are limited to the duration.
            duration_s: Length of the audio in seconds.
            confidence: Share of the words with reliable times.
        """
        times = CharacterTimes()
        for word in words:
            times.advance(word.start, min(word.start_s, duration_s))
            times.advance(word.start + len(word.text), min(word.end_s, duration_s))
        times.advance(len(text), duration_s)
        start_s, end_s = tuple(times.start_s), tuple(times.end_s)
        return cls(characters=tuple(text), start_s=start_s, end_s=end_s, confidence=confidence)

    @property
    def words(self) -> tuple[WordTiming, ...]:
        """The words of the text with their times."""
        text = "".join(self.characters)
        return tuple(
            WordTiming(text=text[start:end], start=start, start_s=self.start_s[start], end_s=self.end_s[end - 1])
            for start, end in word_spans(text)
        )


class SpeechFault(StrEnum):
    """What is wrong with the speech of a sentence."""

    WORDS = "words"
    MISSING_START = "missing_start"
    MISSING_END = "missing_end"
    REPETITION = "repetition"
    SILENCE = "silence"
    DURATION = "duration"
    SPEAKER = "speaker"


class SpeechAttempt(Model):
    """One attempt at a sentence, compared with its text by speech recognition."""

    seed: int | None = Field(description="Seed of the attempt; absent if none was set.")
    faults: tuple[SpeechFault, ...] = Field(
        description="What is wrong: other words than in the text, missing first or last words, a repeated phrase, a "
        "silence that the text does not ask for, speech that is too long or too short, or another speaker."
    )
    recognized: str = Field(repr=False, description="The words that were recognized.")
    word_error_rate: float = Field(ge=0, description="Words that differ, divided by the words of the sentence.")
    longest_error: int = Field(ge=0, description="Words in the longest run that differs.")
    margin: float = Field(
        ge=0,
        description="How much better the recognized words explain the sound than the text, as a difference of "
        "log-likelihoods; 0 if they are the same, and small if only their spelling differs.",
    )
    excess_s: float = Field(
        description="Longest time that a word takes beyond what its length explains, in seconds: a sound without text."
    )
    longest_silence_s: float = Field(ge=0, description="Longest silence within the sentence, in seconds.")
    s_per_character: float = Field(ge=0, description="Time per character without silences, at a speed of 1.")
    speaker_score: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Cosine similarity of the speaker to the reference; absent for short speech.",
    )


class SentenceVerification(Model):
    """How the speech of a sentence compares with its text."""

    text: str = Field(
        min_length=1, repr=False, description="The sentence as spoken, with aliases, and sounds between slashes."
    )
    start_s: float = Field(ge=0, description="Time at which it starts, in seconds from the start of the audio.")
    end_s: float = Field(ge=0, description="Time at which it ends.")
    attempts: tuple[SpeechAttempt, ...] = Field(min_length=1, description="The attempts, in order.")
    kept: int = Field(ge=0, description="Index of the attempt that is in the audio, the best one.")

    @property
    def faults(self) -> tuple[SpeechFault, ...]:
        """What is wrong with the speech in the audio."""
        return self.attempts[self.kept].faults

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.kept >= len(self.attempts):
            raise ValueError("there is no such attempt")
        return self


class Verification(Model):
    """How speech compares with its text, sentence by sentence."""

    has_passed: bool = Field(description="Whether no sentence has a fault.")
    sentences: tuple[SentenceVerification, ...] = Field(description="The sentences, in order.")

    @classmethod
    def of(cls, sentences: Iterable[SentenceVerification]) -> Self:
        """Return the verification of sentences."""
        checked = tuple(sentences)
        return cls(has_passed=not any(sentence.faults for sentence in checked), sentences=checked)


class DayUsage(Model):
    """Characters spoken on one day."""

    day: date = Field(description="The day, UTC.")
    characters: int = Field(ge=0, description="Characters charged on this day.")


class Usage(Model):
    """Characters spoken in a billing period: of a key with a limit or of its account, whichever has fewer left."""

    characters: int = Field(ge=0, description="Characters charged in the period.")
    limit: int | None = Field(default=None, ge=0, description="Characters allowed in the period; absent if unlimited.")
    plan: str | None = Field(default=None, description="Plan of the account; absent if it has none.")
    period_start: UtcTime = Field(description="Start of the period, UTC.")
    period_end: UtcTime = Field(description="End of the period (exclusive), UTC.")
    days: tuple[DayUsage, ...] = Field(default=(), description="Days of the period with usage, oldest first.")


class Estimate(Model):
    """What speaking a text would take and cost, before anything is spoken."""

    characters: int = Field(ge=0, description="Characters of the text.")
    charged_characters: int = Field(ge=0, description="Characters that would be charged; 0 if the audio is cached.")
    is_cached: bool = Field(description="Whether the audio is in the cache.")
    backend: str = Field(description="Backend that would speak.")
    lang: str = Field(description="Language of the text, a two-letter code.")
    duration_s: float = Field(ge=0, description="Expected length of the audio in seconds.")
    synthesis_s: float | None = Field(
        default=None,
        ge=0,
        description="Expected time to speak the text in seconds, without waiting in the queue, judged by the last "
        "jobs of the backend; absent if it has had none.",
    )
    remaining_characters: int | None = Field(
        default=None, ge=0, description="Characters left of the limit in this period; absent if unlimited."
    )
    is_within_limit: bool = Field(description="Whether these characters suffice.")


class ApiKey(Model):
    """Facts about an API key, without the key."""

    key_id: str = Field(description="ID of the key, a UUID.")
    label: str | None = Field(default=None, description="Label of the key.")
    scopes: tuple[str, ...] = Field(default=(), description="Operations that the key permits; empty permits all.")
    created_at: UtcTime = Field(description="Creation time, UTC.")
    expires_at: UtcTime | None = Field(default=None, description="Expiry time, UTC; absent if the key does not expire.")
    revoked_at: UtcTime | None = Field(default=None, description="Time at which the key was revoked, UTC.")
    character_limit: int | None = Field(
        default=None, ge=0, description="Characters that the key may use in a billing period."
    )
    account_id: str | None = Field(default=None, description="ID of the account of the key.")
    prefix: str | None = Field(default=None, description="First characters of the key, to recognize it.")
    used_at: UtcTime | None = Field(default=None, description="Time of the last use, UTC, to the minute.")
    characters: int | None = Field(
        default=None, ge=0, description="Characters used this billing period by the key and those that it replaced."
    )


class Account(Model):
    """Contents and usage of an account, for the admin."""

    account_id: str = Field(description="ID of the account, a UUID.")
    created_at: UtcTime = Field(description="Creation time, UTC.")
    plan: str | None = Field(default=None, description="Plan of the account; absent if it has none.")
    keys: int = Field(ge=0, description="Number of valid keys.")
    voices: int = Field(ge=0, description="Number of voices.")
    characters: int = Field(ge=0, description="Characters used this billing period.")
    limit: int | None = Field(default=None, ge=0, description="Characters of the plan; absent if unlimited.")
    period_start: UtcTime | None = Field(default=None, description="Start of the billing period, UTC.")
    period_end: UtcTime | None = Field(default=None, description="End of the billing period (exclusive), UTC.")
    storage_bytes: int = Field(ge=0, description="Bytes of stored recordings, job audio and cache.")
    suspended_at: UtcTime | None = Field(
        default=None, description="Time at which its keys stopped working since its subscription ended, UTC."
    )
    closed_at: UtcTime | None = Field(default=None, description="Time at which the account was closed, UTC.")
    customer_id: str | None = Field(default=None, description="ID of its customer at Stripe.")
    subscription: str | None = Field(default=None, description="Status of its subscription at Stripe.")


class NewApiKey(Model):
    """A new API key, shown only once."""

    api_key: str = Field(repr=False, description="The key; it is not stored and can't be shown again.")
    label: str | None = Field(default=None, description="Label of the key.")
    created_at: UtcTime = Field(description="Creation time, UTC.")
    key_id: str | None = Field(default=None, description="ID of the key; absent if the server does not report it.")
    account_id: str | None = Field(default=None, description="ID of the account of the key.")
    webhook_secret: str | None = Field(
        default=None,
        repr=False,
        description="Secret that signs webhooks of jobs created with the key (Standard Webhooks).",
    )


class Health(Model):
    """Status and backends of a server."""

    status: str = Field(description="`ok` if the server responds.")
    backends: tuple[str, ...] = Field(description="Available backends, best first.")
    version: str | None = Field(default=None, description="Version of afterwords; absent on the hosted service.")
