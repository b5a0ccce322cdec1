"""The engine protocol of plug-ins under the entry points `afterwords.engines`, and its types.

An engine knows no files, libraries or requests: it turns a reference into a prompt, and a task into chunks of speech.
`afterwords.testing.EngineContract` tests an engine against this protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from afterwords.errors import pip_install

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from afterwords.models import SpeechTask, WordTiming

Progress = Callable[[float, str], None]
"""Callback for the progress of long work: a fraction in [0, 1] and the current step in a few words."""


def ignore_progress(fraction: float, step: str) -> None:
    """Ignore progress."""


class InvalidPromptError(ValueError):
    """The engine can't use these bytes as a prompt; the caller prepares the reference again.

    Prompts are untrusted: they come with imported voices. An engine raises this from `describe`, or as the cause of a
    SynthesisError.
    """


@dataclass(frozen=True, slots=True)
class Reference:
    """A prepared recording to clone a voice from.

    Attributes:
        samples: Shape (n_samples,), float32 mono in [-1, 1].
        sample_rate: In Hz.
        text: Transcript of exactly these samples, if known.
        lang: Two-letter language code.
    """

    samples: NDArray[np.float32] = field(repr=False)
    sample_rate: int
    text: str | None = field(default=None, repr=False)
    lang: str = "en"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of speech.

    Attributes:
        samples: Shape (n_samples,), float32 mono in [-1, 1], at the rate of the engine.
        words: The words that this chunk speaks, in order, with times from the start of the utterance, if the engine
            knows them. A word that two chunks share is in the first one. Its attribute `has_timing` must be True.
    """

    samples: NDArray[np.float32] = field(repr=False)
    words: tuple[WordTiming, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Available:
    """The engine can run here.

    Attributes:
        note: One line on what it uses, such as the device.
        is_slow: Slower than real time: `auto` selects it only if no other engine can run.
    """

    note: str = ""
    is_slow: bool = False


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The engine can't run here.

    Attributes:
        reason: Why it can't run.
        fix: The command or action that makes it run.
        is_foreign: It is for other machines; the reason of another engine is more useful.
    """

    reason: str
    fix: str
    is_foreign: bool = False


def not_installed(packages: Sequence[str], *, extra: str) -> Unavailable:
    """Return the state of an engine without packages (by import name) that an extra of afterwords installs."""
    names = [name.replace("_", "-") for name in packages]
    listed = f"{', '.join(names[:-1])} and {names[-1]} are" if len(names) > 1 else f"{names[0]} is"
    return Unavailable(f"{listed} not installed", pip_install(extra))


def unspoken(engine: Engine, text: str) -> list[str]:
    """Return the words of a text that an engine skips, by its optional method `unspoken(text)`.

    Raises:
        TextError: The engine would skip all words.
    """
    find = getattr(engine, "unspoken", None)
    return list(find(text)) if find is not None else []


FEATURES: Final = ("has_timing", "reads_ipa", "continues_recording")
"""Optional attributes of engines, each false by default."""


def features(engine: Engine) -> frozenset[str]:
    """Return the FEATURES of an engine."""
    return frozenset(name for name in FEATURES if getattr(engine, name, False))


def reads_ipa(engine: Engine) -> bool:
    """Return whether an engine speaks `SpeechTask.pronunciations`, by its optional attribute `reads_ipa`."""
    return bool(getattr(engine, "reads_ipa", False))


def has_timing(engine: Engine) -> bool:
    """Return whether the chunks of an engine have words with times, by its optional attribute `has_timing`."""
    return bool(getattr(engine, "has_timing", False))


def continues_recording(engine: Engine) -> bool:
    """Return whether speech has the emotion of the reference, by an engine's optional attribute of that name."""
    return bool(getattr(engine, "continues_recording", False))


def timbre_only(backend: str) -> str:
    """Return the notice for a take with a backend that does not continue the recording."""
    return f"{backend} keeps the timbre of a take, but not its emotion."


@runtime_checkable
class Engine(Protocol):
    """A plug-in that runs one or more backends on this machine.

    Attributes:
        name: Name of the engine, such as "lite".
        backends: Public IDs of its models.
        sample_rate: Rate of all chunks in Hz.
        max_concurrent: Utterances that it synthesizes at once; further calls wait.
        prompt_version: Changes when older prompts become unusable.
    """

    name: str
    backends: tuple[str, ...]
    sample_rate: int
    max_concurrent: int
    prompt_version: str

    def languages(self, backend: str) -> frozenset[str]:
        """Return the two-letter codes of the languages of a backend. Needs no weights."""
        ...

    def availability(self) -> Available | Unavailable:
        """Return whether the engine can run here. Quick; loads no weights, never raises."""
        ...

    def load(self, backend: str, progress: Progress = ignore_progress) -> None:
        """Load the weights before the first utterance.

        Args:
            backend: One of `backends`. Loading it again does nothing.
            progress: Called with the progress.

        Raises:
            ModelError: A weights file is missing or changed.
        """
        ...

    def prepare(self, reference: Reference, progress: Progress = ignore_progress, *, fast: bool = False) -> bytes:
        """Derive the prompt of a voice from its reference. A prompt is a cache, never the voice itself.

        Args:
            reference: The prepared recording.
            progress: Called with the progress.
            fast: Trade similarity for time, if the engine can.

        Raises:
            RecordingError: Too little of the recording is voiced speech.
        """
        ...

    def describe(self, prompt: bytes) -> dict[str, float | str]:
        """Return facts about a prompt for its owner, such as the similarity; may be empty.

        `clone` shows the sentence in `notice`, if there is one.

        Raises:
            InvalidPromptError: The engine can't use these untrusted bytes.
        """
        ...

    def synthesize(self, task: SpeechTask) -> Generator[Chunk, None, None]:
        """Synthesize one utterance and yield chunks as they are ready.

        May be called from several threads. Closing the generator cancels only this utterance.

        Raises:
            SynthesisError: Synthesis failed.
        """
        ...

    def close(self) -> None:
        """Release memory and threads. A closed engine loads again on its next use."""
        ...


SaveCheckpoint = Callable[[bytes], None]
"""Callback that stores the state of a preparation; each state replaces the one before."""


@runtime_checkable
class CachingEngine(Engine, Protocol):
    """An engine that keeps voices in memory between utterances."""

    def forget_voices(self) -> None:
        """Remove all voices from memory, because one of them was deleted. Utterances in progress continue."""
        ...


@runtime_checkable
class ResumableEngine(Engine, Protocol):
    """An engine whose long preparation can resume after an interruption, even in another process.

    Servers use it. Synthesis goes on during a preparation, which must not block the engine for more than 2 s at a time.
    """

    def resume(
        self,
        reference: Reference,
        progress: Progress = ignore_progress,
        *,
        checkpoint: bytes | None,
        save: SaveCheckpoint,
    ) -> bytes:
        """Derive the same prompt as `prepare`, from a checkpoint if there is one.

        Args:
            reference: The prepared recording of the checkpoint.
            progress: Called with the progress.
            checkpoint: The last state passed to `save` with this `prompt_version`; invalid bytes are ignored.
            save: Called every few seconds of work.

        Raises:
            RecordingError: Too little of the recording is voiced speech.
        """
        ...
