"""What a server and its remote workers say to each other, as JSON: both sides use these models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from afterwords.models import JobStatus, SpeechFormat, now
from afterwords.server.records import Claim, StoredJob, StoredVoice

PROTOCOL: Final = 1
"""Raised with every change that workers or servers of the version before don't understand."""
POLL_MAX_S: Final = 25.0
"""Longest wait for a job: shorter than the idle timeouts of proxies."""
PART_MAX_BYTES: Final = 64 << 20
"""Largest prompt or checkpoint."""

VOICES_MAX: Final = 1024
"""Most voices that a worker asks for at once."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A backend, or a prompt version."""
VoiceId = Annotated[str, Field(pattern="^[0-9a-f-]{36}$")]
Lang = Annotated[str, Field(pattern="^[a-z]{2}$")]


class _Part(BaseModel):
    """A part of the protocol. Unknown fields are ignored, and no error shows a value."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class Offer(_Part):
    """A backend that a worker can run.

    Attributes:
        features: What it can do, of `backends.base.FEATURES`. Older workers don't send it, and stream no words.
    """

    languages: frozenset[Lang]
    prompt_version: Annotated[str, Field(max_length=200)]
    features: Annotated[frozenset[Name], Field(max_length=64)] = frozenset()


class Hello(_Part):
    """What a body of any version has."""

    protocol: int
    version: Annotated[str, Field(max_length=64)]


class ClaimBody(Hello):
    """A worker asks for a job.

    Attributes:
        claim_id: Chosen by the worker for each job: if it asks again with the same ID, because an answer was lost or
            its wishes changed, it gets the same job.
        is_repeated: An earlier answer to this ID may have been lost.
        number: Counts the requests of the worker: one that a later request with the same ID has overtaken is ignored.
        offers: All backends of the worker.
        backends: Those that can start a job now. Empty: only return what was claimed with this ID before.
        skip_voices: Voices that it prepares at the moment.
        prepare: Backends for which it can prepare a voice now. Older workers don't send it, and get no preparations.
        wait_s: How long the answer may take.
    """

    worker: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,64}$")]
    claim_id: Annotated[str, Field(pattern=r"^[0-9a-f-]{36}$")]
    is_repeated: bool = False
    number: Annotated[int, Field(ge=0)]
    offers: Annotated[dict[Name, Offer], Field(max_length=64)]
    backends: Annotated[list[Name], Field(max_length=64)]
    skip_voices: Annotated[list[VoiceId], Field(max_length=VOICES_MAX)]
    prepare: Annotated[list[Name], Field(max_length=64)] = []
    wait_s: Annotated[float, Field(ge=0, le=POLL_MAX_S, allow_inf_nan=False)]


class ClaimedJob(_Part):
    """A job for a worker.

    Attributes:
        token: Authorizes everything else that concerns the attempt.
        is_streamed: A client of the server listens to the audio while it is generated.
        traceparent: The span of the request.
        is_preparation: There is no text to speak: the voice is prepared.
        timestamps: When each character is spoken is wanted. Older workers ignore it.
        takes_words: The words may be streamed with the audio, as messages `audio`. Older servers take PCM only.
        verify: The speech is to be compared with the text. Older workers ignore it.
        reading: How the text is read, a `Reading` as JSON. Older workers ignore it.
    """

    token: str = Field(repr=False)
    lease_s: float
    is_streamed: bool
    job_id: str
    attempt: int
    returned: int
    backend: str
    lang: str
    text: str = Field(repr=False)
    speed: float
    seed: int | None
    voice_id: str
    voice_lang: str
    ref_sha256: str
    ref_text: str | None = Field(repr=False)
    traceparent: str | None = None
    is_preparation: bool = False
    timestamps: bool = False
    takes_words: bool = False
    verify: bool = False
    reading: str | None = Field(default=None, repr=False)

    @classmethod
    def from_claim(cls, claim: Claim, *, token: str, lease_s: float, is_streamed: bool) -> ClaimedJob:
        job, voice = claim.job, claim.voice
        return cls(
            token=token,
            lease_s=lease_s,
            is_streamed=is_streamed,
            job_id=job.job_id,
            attempt=job.attempt,
            returned=job.returned,
            backend=job.backend,
            lang=job.lang,
            text=job.text or "",
            speed=job.speed,
            seed=job.seed,
            voice_id=voice.voice_id,
            voice_lang=voice.lang,
            ref_sha256=voice.ref_sha256,
            ref_text=voice.ref_text,
            traceparent=job.traceparent,
            is_preparation=claim.is_preparation,
            timestamps=job.timestamps,
            takes_words=True,
            verify=job.verify,
            reading=job.reading,
        )

    def as_claim(self) -> Claim:
        """Return it as a claim. The worker knows neither the account nor the name of the voice."""
        job = StoredJob(
            job_id=self.job_id,
            account_id="",
            voice_id=self.voice_id,
            status=JobStatus.PENDING,
            lang=self.lang,
            backend=self.backend,
            cache_key="",
            char_count=len(self.text),
            speed=self.speed,
            seed=self.seed,
            response_format=SpeechFormat.WAV,
            attempt=self.attempt,
            created_at=now(),
            text=None if self.is_preparation else self.text,
            returned=self.returned,
            traceparent=self.traceparent,
            timestamps=self.timestamps,
            verify=self.verify,
            reading=self.reading,
        )
        voice = StoredVoice(
            voice_id=self.voice_id,
            account_id="",
            name="",
            backend=self.backend,
            lang=self.voice_lang,
            ref_audio_key="",
            ref_sha256=self.ref_sha256,
            ref_duration_s=0,
            ref_sample_rate=0,
            created_at=now(),
            ref_text=self.ref_text,
        )
        return Claim(job, voice, self.lease_s, self.is_preparation)


class HandedJob(_Part):
    """An attempt that a server hands to a service, whose container fetches the rest with the token.

    Attributes:
        server: Address of the server.
    """

    server: Annotated[str, Field(pattern=r"^https?://[^?#]+$")]
    job_id: Annotated[str, Field(pattern="^[0-9a-f-]{36}$")]
    token: Annotated[str, Field(pattern="^awt_", repr=False)]
    voice_id: str
    backend: Name

    @classmethod
    def from_form(cls, form: Mapping[str, Any]) -> HandedJob:
        """Return the attempt that a request in the hosted dispatch form is about.

        Raises:
            ValueError: A field is missing, or the server sends a shared secret and not the token of an attempt.
        """
        server, _, _ = str(form.get("callback_url")).partition("/v1/jobs/")
        token = str(form.get("callback_secret"))
        if not token.startswith("awt_"):
            raise ValueError("callback_secret is not the token of an attempt: unset AFTERWORDS_CALLBACK_SECRET")
        return cls(
            server=server,
            job_id=form.get("job_id", ""),
            token=token,
            voice_id=form.get("voice_id", ""),
            backend=form.get("backend_name", ""),
        )


class ClaimAnswer(_Part):
    """The answer to a claim. None: no job waits."""

    job: ClaimedJob | None


class WorkerVoices(_Part):
    """Voices that a worker keeps in memory; in the answer, those that have been deleted."""

    voice_ids: Annotated[list[VoiceId], Field(max_length=VOICES_MAX)]


class HeartbeatBody(_Part):
    """A worker reports that it still runs an attempt, and how far it is."""

    step: Literal["waiting", "loading", "preparing", "speaking"]
    fraction: Annotated[float, Field(ge=0, le=1)] | None


class WantedAnswer(_Part):
    """Whether the job is still wanted: the answer to a heartbeat, and to a wait for the end of the job."""

    is_wanted: bool


class EndBody(_Part):
    """The end of an attempt without audio. Preparations are `prepared`, also if it is impossible."""

    outcome: Literal["failed", "retry", "released", "prepared"]
    error: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,63}$")] = "synthesis_failed"
    max_attempts: Annotated[int, Field(ge=1, le=100)] | None = None
