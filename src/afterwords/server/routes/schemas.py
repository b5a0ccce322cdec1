"""Bodies of requests and responses, as the API documents them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

from afterwords.models import (
    NAME_MAX_CHARS,
    Consent,
    JobStatus,
    Provenance,
    Seed,
    SpeechFormat,
    Speed,
    UtcTime,
    VoiceStatus,
)
from afterwords.server.records import CheckoutState, Scope


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("it must not contain NUL characters")
    return value


StorableText = Annotated[str, AfterValidator(_without_nul)]
"""A text without NUL, which Postgres does not store."""


EMOTION: Any = Field(
    default=None,
    max_length=30,
    pattern="^[a-z]+(-[a-z]+)*$",
    description="Speak with the take of the voice for this emotion: a voice of the same family.",
)


class RequestBody(BaseModel):
    """A body of a request. Unknown fields are ignored, and no error shows a value."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", hide_input_in_errors=True)


class ResponseBody(BaseModel):
    """A body of a response, also made of an object with these attributes."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class ErrorDetail(ResponseBody):
    """An error."""

    code: str = Field(description="Stable code of the error, for programs; docs/api.md lists all.")
    message: str = Field(description="The rule that was violated, in one sentence that never repeats the input.")
    type: str = Field(description="Kind of the error.")
    param: str | None = Field(description="The invalid field, if there is one.")
    request_id: str = Field(description="ID of the request in the server log.")


class ErrorBody(ResponseBody):
    """The body of every error."""

    error: ErrorDetail = Field(description="The error.")


class NewKeyBody(RequestBody):
    """Parameters of a new API key."""

    label: StorableText | None = Field(default=None, max_length=NAME_MAX_CHARS, description="Label of the key.")
    scopes: list[Annotated[Scope, Strict(False)]] = Field(
        default=[], max_length=8, description="Scopes of the key; empty: all."
    )
    character_limit: int | None = Field(
        default=None, ge=0, lt=2**53, description="Characters per billing period; omitted: unlimited."
    )
    account_id: StorableText | None = Field(
        default=None, max_length=36, description="Account of the key; omitted: a new one, or that of `for_key`."
    )
    for_key: StorableText | None = Field(
        default=None, max_length=36, description="ID of a key whose account the key joins."
    )
    plan: StorableText | None = Field(
        default=None, max_length=NAME_MAX_CHARS, description="Plan of a new account; omitted: unlimited."
    )


class RotateBody(RequestBody):
    """Parameters of a key rotation."""

    overlap_s: float = Field(
        default=0, ge=0, le=30 * 86_400, allow_inf_nan=False, description="Seconds that the old key stays valid."
    )


class VoiceCreated(ResponseBody):
    """A new voice."""

    voice_id: str = Field(description="ID of the voice, a UUID.")
    name: str = Field(description="Name of the voice.")
    backend: str = Field(description="Default backend of the voice.")
    created_at: UtcTime = Field(description="When the voice was created, UTC.")


class VoiceListed(VoiceCreated):
    """A voice in a list."""

    lang: str = Field(description="Language of the reference, two letters.")
    family: str | None = Field(description="Groups voices of one speaker.")
    emotion: str | None = Field(description="Emotion of the recording, `emotion` in the metadata, if it is a take.")
    status: VoiceStatus = Field(
        description="`preparing` until the voice has been prepared for its backend; it can speak at once."
    )


class VoiceShown(VoiceListed):
    """A voice with all its fields."""

    ref_text: str | None = Field(description="Transcript of the reference, if known.")
    ref_audio_key: str = Field(description="Key of the reference in the storage.")
    metadata: dict[str, Any] = Field(description="Free fields of the client.")
    ref_sha256: str = Field(description="SHA-256 of the reference, a canonical WAV file.")
    ref_duration_s: float = Field(description="Length of the reference in seconds.")
    ref_sample_rate: int = Field(description="Sample rate of the reference in Hz.")
    ref_grade: str | None = Field(
        description="Quality of the recording for cloning, A (best) to F; null: it was not graded."
    )
    consent: Consent | None = Field(description="Statement of consent to clone the voice.")
    provenance: Provenance | None = Field(description="Origin of the voice, if it was imported.")


class VoicePatch(RequestBody):
    """Fields to update; omitted fields are unchanged."""

    name: str | None = Field(default=None, description="Name of the voice.")
    backend: str | None = Field(default=None, description="Default backend of the voice.")
    lang: str | None = Field(default=None, description="Language of the reference, two letters.")
    ref_text: str | None = Field(default=None, description="Transcript of the reference.")
    family: str | None = Field(default=None, description="Groups voices of one speaker.")
    metadata: dict[str, Any] | None = Field(
        default=None, description="Free fields, at most 16 KiB as JSON, besides the lexicon."
    )


class AliasBody(RequestBody):
    """What an alias names."""

    voice: str = Field(description="ID or exact name of the voice.")


class SynthesizeBody(RequestBody):
    """Parameters of a synthesis."""

    voice_id: str = Field(description="ID or exact name of the voice.")
    text: str = Field(description="Text to synthesize, 1 to 5,000 characters.")
    lang: str | None = Field(default=None, description="Language of the text; omitted: that of the voice.")
    backend: str | None = Field(default=None, description="Backend to use; omitted: that of the voice.")
    speed: Speed = Field(default=1.0, description="Speaking rate, 1 is the voice's own; the pitch is unchanged.")
    seed: Seed | None = Field(default=None, description="Makes a sampled result reproducible.")
    response_format: SpeechFormat = Field(default=SpeechFormat.WAV, strict=False, description="Format of the audio.")
    sample_rate: int | None = Field(
        default=None,
        description="Sample rate of the audio in Hz, where the format has it; omitted: that of the backend.",
    )
    stream: bool = Field(default=False, description="Send the audio while it is generated.")
    webhook_url: str | None = Field(default=None, description="URL to call when the job is final; https and public.")
    timestamps: bool = Field(
        default=False,
        description="Find when each character is spoken, for `/v1/jobs/{job_id}/timestamps`. The cache is not used.",
    )
    verify: bool = Field(
        default=False,
        description="Compare the speech of each sentence with the text by speech recognition, speak a faulty one again "
        "with another seed, and report the result in `/v1/jobs/{job_id}/verification`. The cache is not used.",
    )
    emotion: str | None = EMOTION


class JobAccepted(ResponseBody):
    """An accepted job."""

    job_id: str = Field(description="ID of the job, a UUID.")
    status: JobStatus = Field(description="Status of the job.")


class JobShown(JobAccepted):
    """A job."""

    audio_url: str | None = Field(default=None, description="URL of the audio, once the job is ready.")
    error: str | None = Field(default=None, description="Error code, if the job failed.")
    step: str | None = Field(
        default=None,
        description="Current step of a pending job: `waiting`, `loading`, `preparing`, `speaking`.",
    )
    progress: float | None = Field(default=None, description="Progress of the step, 0 to 1, if known.")


class JobListed(JobShown):
    """A job in a list."""

    voice_id: str = Field(description="ID of the voice.")
    created_at: UtcTime = Field(description="When the job was accepted, UTC.")
    completed_at: UtcTime | None = Field(default=None, description="When the job became final, UTC.")
    char_count: int = Field(description="Characters that were charged.")


class CheckoutBody(RequestBody):
    """Parameters of a checkout."""

    email: str = Field(description="Email address of the customer.")
    plan: str | None = Field(default=None, description="Name of the plan; omitted: the first that can be bought.")


class CheckoutStarted(ResponseBody):
    """Where a checkout continues."""

    url: str = Field(
        description="Page of Stripe to pay on; or that of this server which says that the customer has a plan."
    )


class CheckoutReady(ResponseBody):
    """The state of a checkout."""

    ready: bool = Field(description="Whether its page can show the key to the browser that began it.")
    state: CheckoutState = Field(description="What the page shows.")


class EventReceived(ResponseBody):
    """Confirmation of an event."""

    received: bool = Field(description="`true`.")


class CompleteBody(RequestBody):
    """The result of a job: audio or an error."""

    job_id: str = Field(description="ID of the job, as in the path.")
    voice_id: str | None = Field(default=None, description="Ignored.")
    cache_key: str | None = Field(default=None, description="Ignored.")
    wav_b64: str | None = Field(default=None, description="The audio, a WAV file in base64.")
    error: str | None = Field(default=None, description="Why the synthesis failed.")


class Completed(ResponseBody):
    """Confirmation of a result."""

    status: str = Field(description="`ok`.")
