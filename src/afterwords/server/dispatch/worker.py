"""All that a machine that speaks does: a piece of work in, PCM out.

Apart so that a server's own processes and machines far away run the very same thing. Knows no pipe, no request and no
database: whoever calls it brings the work, and carries the sound and a new prompt to where they belong.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from afterwords.audio.wav import pcm16, read_wav
from afterwords.backends import registry
from afterwords.backends.base import Engine, Progress, Reference, ResumableEngine, SaveCheckpoint, ignore_progress
from afterwords.models import SpeechResult, SpeechTask
from afterwords.speech import speak


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One utterance to be made, everything decided.

    Attributes:
        lang: of the text, two letters.
        voice_id: for caches of engines.
        speed: 0.25 to 4.
        prompt: what the backend made of the reference before; None where it has to be made.
        checkpoint: how far it was with that when it was interrupted, if it was and that is known.
        is_fast: make the prompt in less time, for less likeness.
        reference: the recording, a WAV; needed where there is no prompt.
        ref_text: its transcript, if there is one.
        ref_lang: its language.
    """

    text: str = field(repr=False)
    lang: str
    backend: str
    voice_id: str
    speed: float = 1.0
    seed: int | None = None
    prompt: bytes | None = field(default=None, repr=False)
    checkpoint: bytes | None = field(default=None, repr=False)
    is_fast: bool = False
    reference: bytes | None = field(default=None, repr=False)
    ref_text: str | None = field(default=None, repr=False)
    ref_lang: str = "en"

    def __post_init__(self) -> None:
        if self.prompt is None and self.reference is None:
            raise ValueError("work needs a prompt or a reference")


class Worker:
    """The engines of this process, and what is spoken with them. Its methods may be called from several threads."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}

    def engine(self, backend: str) -> Engine:
        """The engine that runs a backend.

        Raises:
            InvalidBackendError, BackendUnavailableError: it can't run here.
        """
        if backend not in self._engines:  # looking through what is installed takes milliseconds
            self._engines[backend] = registry.engine_for(registry.choose(backend))
        return self._engines[backend]

    def load(self, backend: str, progress: Progress = ignore_progress) -> Engine:
        """Load the weights of a backend, so that its first utterance does not wait for them.

        Raises:
            InvalidBackendError, BackendUnavailableError: it can't run here.
            ModelFileError: a weight file is missing or altered.
        """
        engine = self.engine(backend)
        engine.load(backend, progress)
        return engine

    def begin(
        self, work: Work, progress: Progress = ignore_progress, save: SaveCheckpoint = lambda _checkpoint: None
    ) -> Utterance:
        """Make the prompt, if it is not known, and return the utterance, which is spoken while it is read.

        Args:
            work: what to say, and as whom.
            progress: told how far the making of the prompt is; what it raises ends it.
            save: given checkpoints of it, where the engine makes any.

        Raises:
            RecordingError: the reference can't be used.
            InvalidBackendError, BackendUnavailableError: the backend can't run here.
            InvalidPromptError: the prompt is none of this engine's.
        """
        engine = self.engine(work.backend)
        if work.prompt is not None:
            engine.describe(work.prompt)  # it may have come from anyone, with a voice
        new_prompt = _prepared(engine, work, progress, save) if work.prompt is None else None
        prompt = new_prompt if work.prompt is None else work.prompt
        assert prompt is not None
        task = SpeechTask(
            text=work.text,
            lang=work.lang,
            backend=work.backend,
            voice_id=work.voice_id,
            prompt=prompt,
            seed=work.seed,
        )
        return Utterance(engine, task, speed=work.speed, new_prompt=new_prompt)


class Utterance:
    """Speech while it is made: iterate over it, once, for 16-bit little-endian mono PCM.

    Attributes:
        sample_rate: in Hz.
        new_prompt: what was made of the reference and is worth keeping; None where the prompt was known.
        result: what came of it, once all was read.
    """

    def __init__(self, engine: Engine, task: SpeechTask, *, speed: float, new_prompt: bytes | None) -> None:
        self.sample_rate = engine.sample_rate
        self.new_prompt = new_prompt
        self.result: SpeechResult | None = None
        self._backend = task.backend
        self._chunks = speak(engine, task, speed, ignore_progress)

    def __iter__(self) -> Iterator[bytes]:
        """The PCM as it is made.

        Raises:
            SynthesisError: the engine could not speak.
            NonFiniteAudioError: it made samples that are no numbers.
        """
        n_frames, work_s, first_audio_ms = 0, 0.0, None
        began = time.perf_counter()
        for chunk in self._chunks:
            pcm = pcm16(chunk.samples)
            work_s += time.perf_counter() - began
            if first_audio_ms is None:
                first_audio_ms = round(work_s * 1000)
            n_frames += len(chunk.samples)
            yield pcm
            began = time.perf_counter()  # the reader's time is not counted
        work_s += time.perf_counter() - began
        self.result = SpeechResult(
            backend=self._backend,
            sample_rate=self.sample_rate,
            duration_s=n_frames / self.sample_rate,
            synth_ms=round(work_s * 1000),
            first_audio_ms=first_audio_ms,
        )

    def close(self) -> None:
        """Stop speaking; the engine's other utterances go on."""
        self._chunks.close()


def _prepared(engine: Engine, work: Work, progress: Progress, save: SaveCheckpoint) -> bytes:
    if isinstance(engine, ResumableEngine) and not work.is_fast:
        return engine.resume(_reference(work), progress, checkpoint=work.checkpoint, save=save)
    return engine.prepare(_reference(work), progress, fast=work.is_fast)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that memory ran out: here, or on a device."""
    while error is not None:
        # torch.cuda.OutOfMemoryError is told by its name, so that torch need not be there; ONNX Runtime has no class
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "bad_alloc" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reference(work: Work) -> Reference:
    assert work.reference is not None, "Work sees to it"
    samples, sample_rate = read_wav(work.reference, source="the reference")
    return Reference(samples, sample_rate, work.ref_text, work.ref_lang)
