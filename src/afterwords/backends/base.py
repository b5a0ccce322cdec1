"""What an engine is: the protocol every plug-in under `afterwords.engines` keeps, and the types it speaks in.

Engines are found by the registry, prepared and driven by the studio here and by workers on servers. They
know nothing of files, libraries or requests: a reference in, a prompt out; a task in, chunks out.
`afterwords.testing.EngineContract` holds an engine to all that stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from afterwords.install import pip_install

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from afterwords.models import SpeechTask

Progress = Callable[[float, str], None]
"""Told how far long work is: a fraction in [0, 1] and what is being done, in a few words."""


def ignore_progress(fraction: float, step: str) -> None:
    """The Progress of a caller who does not look."""


class InvalidPromptError(ValueError):
    """Bytes are no prompt that this engine can use: it is made again from the reference.

    A prompt may come from anyone, in the file of a voice. An engine raises this from `describe` or as the cause of a
    SynthesisError.
    """


@dataclass(frozen=True, slots=True)
class Reference:
    """The prepared recording that a voice is made from.

    Attributes:
        samples: shape (n_samples,), float32 mono in [-1, 1].
        sample_rate: in Hz.
        text: transcript of exactly these samples; None where it is not known.
        lang: two letters.
    """

    samples: NDArray[np.float32] = field(repr=False)
    sample_rate: int
    text: str | None = field(default=None, repr=False)
    lang: str = "en"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of speech: samples of shape (n_samples,), float32 mono in [-1, 1], at the engine's rate."""

    samples: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Available:
    """The engine can run here.

    Attributes:
        note: one line on what it will use, for example the device.
        is_slow: it takes longer to speak than to listen, so it is chosen only by name, or where nothing else can run.
    """

    note: str = ""
    is_slow: bool = False


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The engine can't run here.

    Attributes:
        reason: why.
        fix: the command or action that mends it.
        is_foreign: it is made for other machines than this one, so another engine's reason is the one to tell.
    """

    reason: str
    fix: str
    is_foreign: bool = False


def not_installed(packages: Sequence[str], *, extra: str) -> Unavailable:
    """Return what to say of an engine whose packages, named as they are imported, come with an extra of afterwords."""
    names = [name.replace("_", "-") for name in packages]
    listed = f"{', '.join(names[:-1])} and {names[-1]} are" if len(names) > 1 else f"{names[0]} is"
    return Unavailable(f"{listed} not installed", pip_install(extra))


def unspoken(engine: Engine, text: str) -> list[str]:
    """Return the words of a text that an engine leaves out, as its method `unspoken(text)` says, if it has one.

    Raises:
        UnspeakableTextError: it would leave out all of them.
    """
    find = getattr(engine, "unspoken", None)
    return list(find(text)) if find is not None else []


@runtime_checkable
class Engine(Protocol):
    """A plug-in that speaks one or more backends on this machine.

    Attributes:
        name: of the engine, for example "lite".
        backends: public ids of the models it runs.
        sample_rate: of every chunk, in Hz.
        max_concurrent: utterances it speaks at once; further calls wait.
        prompt_version: changes whenever prompts made before must be made again.
    """

    name: str
    backends: tuple[str, ...]
    sample_rate: int
    max_concurrent: int
    prompt_version: str

    def languages(self, backend: str) -> frozenset[str]:
        """Which languages a backend speaks, as two-letter codes. Needs no weights."""
        ...

    def availability(self) -> Available | Unavailable:
        """Whether it can run here. Quick: loads no weights, raises nothing."""
        ...

    def load(self, backend: str, progress: Progress = ignore_progress) -> None:
        """Load the weights now, so that the first utterance does not wait for them.

        Args:
            backend: one of the engine's own. Loading it again changes nothing.
            progress: told how far it is.

        Raises:
            ModelFileError: a weight file is missing or altered.
        """
        ...

    def prepare(self, reference: Reference, progress: Progress = ignore_progress, *, fast: bool = False) -> bytes:
        """Make the prompt of a voice, once. It is a cache that can be made again, never the voice itself.

        Args:
            reference: the prepared recording.
            progress: told how far it is.
            fast: give up likeness for time, where the engine has such a choice.

        Raises:
            UnvoicedReferenceError: too little of it is a voice.
        """
        ...

    def describe(self, prompt: bytes) -> dict[str, float | str]:
        """What is known of a prompt and worth telling its owner, for example how alike it sounds; may be empty.

        `notice`, if it is there, is a sentence that `clone` tells.

        Raises:
            InvalidPromptError: these bytes are no prompt of this engine. They may come from anyone.
        """
        ...

    def synthesize(self, task: SpeechTask) -> Generator[Chunk, None, None]:
        """Speak one utterance, yielding chunks as they are ready.

        May be called from several threads. Closing the iterator cancels this utterance alone.

        Raises:
            SynthesisError: it could not speak.
        """
        ...

    def close(self) -> None:
        """Give back memory and threads. A closed engine may be used again; it loads anew."""
        ...


SaveCheckpoint = Callable[[bytes], None]
"""Given what a preparation has found so far; the latest replaces those before."""


@runtime_checkable
class ResumableEngine(Engine, Protocol):
    """An engine whose preparation takes long, and can go on where another process was interrupted.

    Servers use it where they find it. Others speak meanwhile: it must not keep the engine to itself for more than a
    second or two at a time.
    """

    def resume(
        self,
        reference: Reference,
        progress: Progress = ignore_progress,
        *,
        checkpoint: bytes | None,
        save: SaveCheckpoint,
    ) -> bytes:
        """Make the same prompt as `prepare` does, from a checkpoint if there is one.

        Args:
            reference: the prepared recording, the same for every checkpoint of it.
            progress: told how far it is.
            checkpoint: what `save` was given last, with this `prompt_version`; bytes that are no checkpoint count as
                none.
            save: call it whenever a few seconds of work would be lost otherwise.

        Raises:
            UnvoicedReferenceError: too little of it is a voice.
        """
        ...
