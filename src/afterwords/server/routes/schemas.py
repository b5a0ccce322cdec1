"""What goes over the wire: the bodies that are taken and given, as the contract of the API has them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict

from afterwords.models import (
    NAME_MAX_CHARS,
    Consent,
    ConsentKind,
    JobStatus,
    Provenance,
    Seed,
    SpeechFormat,
    Speed,
    UtcTime,
)
from afterwords.server.records import Scope


class Taken(BaseModel):
    """A body that is taken. Fields of other versions of the API are ignored, and no error shows a value."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", hide_input_in_errors=True)


class Given(BaseModel):
    """A body that is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorDetail(Given):
    """What went wrong."""

    code: str = Field(description="What it is, for programs; docs/api.md lists all.")
    message: str = Field(description="What happened, in one sentence that names the rule and never repeats the input.")
    type: str = Field(description="The kind of error.")
    param: str | None = Field(description="The field that is wrong, where it is one.")
    request_id: str = Field(description="Names this request in the server's log.")


class ErrorBody(Given):
    """Every error has this shape."""

    error: ErrorDetail = Field(description="What went wrong.")


class NewKeyBody(Taken):
    """What a key shall be."""

    label: str | None = Field(default=None, max_length=NAME_MAX_CHARS, description="What its owner calls it.")
    scopes: list[Annotated[Scope, Strict(False)]] = Field(
        default=[], max_length=8, description="What it may do; empty: everything."
    )
    character_limit: int | None = Field(
        default=None, ge=0, lt=2**53, description="Characters it may spend in a calendar month; absent: any number."
    )
    account_id: str | None = Field(
        default=None, max_length=36, description="The account that it is for; absent: a new one, or that of `for_key`."
    )
    for_key: str | None = Field(default=None, max_length=36, description="Identifier of a key whose account it is for.")


class RotateBody(Taken):
    """How a key is replaced."""

    overlap_s: float = Field(
        default=0, ge=0, le=30 * 86_400, allow_inf_nan=False, description="Seconds that the old key stays valid."
    )


class VoiceCreated(Given):
    """A voice that was registered."""

    voice_id: str = Field(description="Identifier of the voice, a UUID.")
    name: str = Field(description="What its owner calls it.")
    backend: str = Field(description="The backend that speaks it unless another is asked for.")
    created_at: UtcTime = Field(description="When it was registered, UTC.")


class VoiceListed(VoiceCreated):
    """A voice in a list."""

    lang: str = Field(description="Language of the reference, two letters.")


class VoiceShown(VoiceListed):
    """All that is kept of a voice but its owner."""

    ref_text: str | None = Field(description="Transcript of the reference, if known.")
    family: str | None = Field(description="Groups voices of one speaker.")
    ref_audio_key: str = Field(description="Where the reference lies in the storage.")
    metadata: dict[str, Any] = Field(description="Free fields of its owner.")
    ref_sha256: str = Field(description="SHA-256 of the reference, a canonical WAV file.")
    ref_duration_s: float = Field(description="Length of the reference in seconds.")
    ref_sample_rate: int = Field(description="Sample rate of the reference in Hz.")
    ref_grade: str | None = Field(
        description="How good the recording is for cloning, A (best) to F; null: it was not graded."
    )
    consent: Consent | None = Field(description="The statement that it may be cloned.")
    provenance: Provenance | None = Field(description="Where it came from, if it came as a bundle.")


class VoicePatch(Taken):
    """What shall become of a voice; what is absent stays."""

    name: str | None = Field(default=None, description="What its owner calls it.")
    backend: str | None = Field(default=None, description="The backend that speaks it unless another is asked for.")
    lang: str | None = Field(default=None, description="Language of the reference, two letters.")
    ref_text: str | None = Field(default=None, description="Transcript of the reference.")
    family: str | None = Field(default=None, description="Groups voices of one speaker.")
    metadata: dict[str, Any] | None = Field(default=None, description="Free fields, at most 16 KiB as JSON.")


class SynthesizeBody(Taken):
    """What shall be spoken."""

    voice_id: str = Field(description="The voice to speak with: its identifier or its exact name.")
    text: str = Field(description="What it shall say: 1 to 5,000 code points.")
    lang: str | None = Field(default=None, description="Language of the text; absent: the voice's.")
    backend: str | None = Field(default=None, description="The backend to use; absent: the voice's.")
    speed: Speed = Field(default=1.0, description="Speaking rate, 1 = as the voice speaks; the pitch is kept.")
    seed: Seed | None = Field(default=None, description="Makes a sampled result repeatable.")
    response_format: SpeechFormat = Field(default=SpeechFormat.WAV, strict=False, description="Format of the audio.")
    stream: bool = Field(default=False, description="Send the audio while it is made.")
    webhook_url: str | None = Field(default=None, description="Told when the job is final; https and public.")


class JobAccepted(Given):
    """A job that was accepted."""

    job_id: str = Field(description="Identifier of the job, a UUID.")
    status: JobStatus = Field(description="Where it stands.")


class JobShown(JobAccepted):
    """Where a job stands."""

    audio_url: str | None = Field(default=None, description="Where the audio is, once the job is ready.")
    error: str | None = Field(default=None, description="Why it failed, if it did: an error code.")
    step: str | None = Field(
        default=None, description="What is done for a pending job now: `waiting`, `loading`, `preparing`, `speaking`."
    )
    progress: float | None = Field(default=None, description="How much of the step is done, 0 to 1, where it is known.")


class JobListed(JobShown):
    """A job in a list."""

    voice_id: str = Field(description="The voice that speaks.")
    created_at: UtcTime = Field(description="When it was accepted, UTC.")
    completed_at: UtcTime | None = Field(default=None, description="When it became final, UTC.")
    char_count: int = Field(description="Characters that were charged.")


class CompleteBody(Taken):
    """What a worker brings: audio or an error."""

    job_id: str = Field(description="The job, as in the path.")
    voice_id: str | None = Field(default=None, description="Ignored: the job knows its voice.")
    cache_key: str | None = Field(default=None, description="Ignored: the job knows its key.")
    wav_b64: str | None = Field(default=None, description="The audio, a WAV file in base64.")
    error: str | None = Field(default=None, description="Why it could not be spoken.")


class Completed(Given):
    """That a result was taken."""

    status: str = Field(description="`ok`.")


CONSENTS = ", ".join(ConsentKind)
