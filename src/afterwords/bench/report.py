"""What a measuring process is asked and what it answers, lines of JSON over its pipes; and the rows of the result."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from afterwords.errors import AfterwordsError
from afterwords.models import Model

N_RUNS = 3
"""Utterances that are measured, after one to warm up."""
LOOK = "afterwords --debug bench shows what its process printed."
"""The hint where an engine failed in a way that nobody foresaw."""


class Order(Model):
    """One measurement: a sentence, a voice, and who shall speak."""

    voice_id: str = Field(description="The voice, one of this library.")
    text: str = Field(repr=False, description="The sentence, already checked.")
    lang: str = Field(description="Language of the sentence, two letters.")
    backend: str | None = Field(default=None, description="The backend that speaks here; absent: a server speaks.")
    server: str | None = Field(default=None, description="Address of the server that speaks; absent: this machine.")
    profile: str | None = Field(default=None, description="The login to use there; absent: the one that is set up.")
    prepare_s: float | None = Field(
        default=None, ge=0, description="Seconds that another process took to prepare the voice; absent: none had to."
    )

    @property
    def name(self) -> str:
        """What is measured, in a word."""
        return self.backend or self.server or "auto"


class Figures(Model):
    """What was measured. Times of speech are medians."""

    backend: str | None = Field(description="The backend that spoke; absent: a server did not tell.")
    first_audio_ms: float = Field(ge=0, description="Time to first audio, in milliseconds.")
    real_time_factor: float = Field(ge=0, description="Seconds of work for each second of audio; below 1 is fast.")
    audio_s: float = Field(gt=0, description="Length of the audio in seconds.")
    similarity: float | None = Field(default=None, description="Cosine of speaker embeddings: speech and reference.")
    similarity_by: str | None = Field(default=None, description="The speaker encoder that judged.")
    similarity_note: str | None = Field(default=None, description="Why it is missing, or how far to trust it.")
    memory_mib: float | None = Field(default=None, description="Peak resident memory of the process, in MiB.")
    device_memory_mib: float | None = Field(default=None, description="Peak memory held on a GPU, in MiB.")
    load_s: float | None = Field(default=None, ge=0, description="Seconds to load the weights; absent: on a server.")
    prepare_s: float | None = Field(
        default=None, ge=0, description="Seconds to prepare the voice; 0: it was prepared before; absent: on a server."
    )


class Failure(Model):
    """An error, as it travels from one process to another."""

    error: str = Field(description="Its code.")
    reason: str = Field(description="What happened, in a sentence.")
    fix: str = Field(description="How to mend it.")
    exit_code: int = Field(description="What a command that ends by it exits with.")

    @classmethod
    def of(cls, error: AfterwordsError) -> Failure:
        return cls(error=error.code, reason=error.message, fix=error.hint, exit_code=error.exit_code)


class Told(Model):
    """A line of a measuring process: how far it is, or how it ended, and then one of the last three is there."""

    fraction: float | None = Field(default=None, description="How far it is, from 0 to 1.")
    step: str = Field(default="", description="What is being done, in a few words.")
    prepare_s: float | None = Field(default=None, description="Seconds to prepare the voice, which is all it did.")
    figures: Figures | None = Field(default=None, description="What was measured.")
    failure: Failure | None = Field(default=None, description="Why nothing was measured.")


class Row(Model):
    """One line of the result: figures, or why there are none."""

    backend: str | None = Field(description="The backend; absent: a server's, which was not learned.")
    server: str | None = Field(description="Address of the server that spoke; absent: this machine.")
    figures: Figures | None = Field(default=None, description="What was measured.")
    failure: Failure | None = Field(default=None, description="Why nothing was measured.")

    def facts(self) -> dict[str, Any]:
        """All of it as one flat object; the keys are always the same."""
        measured = self.figures.model_dump() if self.figures else dict.fromkeys(Figures.model_fields)
        failed = self.failure.model_dump() if self.failure else dict.fromkeys(Failure.model_fields)
        return {"backend": self.backend, "server": self.server, **{**measured, **failed, "backend": self.backend}}
