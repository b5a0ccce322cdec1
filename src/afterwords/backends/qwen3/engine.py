"""The plug-ins: Qwen3-TTS behind the Engine protocol, one engine for each size of the model.

On an NVIDIA GPU it speaks many utterances at once and faster than speech; on a CPU it is slow, and says so.
"""

from __future__ import annotations

import random
import threading
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Final

from afterwords import checkpoints
from afterwords.backends.base import Available, Chunk, Progress, Reference, Unavailable, ignore_progress
from afterwords.errors import AfterwordsError, MissingExtraError, SynthesisError

if TYPE_CHECKING:
    from afterwords.backends.qwen3.loop import Finish, Loop, Samples, Turn
    from afterwords.backends.qwen3.model import Model, VoiceOnDevice
    from afterwords.models import SpeechTask

NEEDS: Final = ("torch", "safetensors", "tokenizers")
"""What the extra `cuda` installs."""
LANGS: Final = frozenset({"zh", "en", "ja", "ko", "de", "fr", "ru", "pt", "es", "it"})
ENCODER_VERSION: Final = "1"  # of prompts; `reference_prompt` has the same
PIECE_CHARS: Final = 280
"""Longest piece spoken at once: beyond some 20 s, the model drifts. Source: QwenLM/Qwen3-TTS issues 68 and 239."""
AHEAD: Final = 3
"""Pieces of one text that are spoken before they are asked for."""
PAUSE_S: Final = 0.15
FRAMES_PER_TOKEN, FRAMES_MORE = 6, 50
"""An utterance of more frames than 6 a token and 4 s does not end by itself any more. Source: measured upstream."""
TRIES: Final = 3
"""Utterances that run away without having been heard are spoken again, with another seed."""
GPU_ROWS, CPU_ROWS = 64, 4
POSITIONS: Final = 2048
VOICES_KEPT: Final = 16
"""Voices whose codec stands ready on the device: 4 MB each."""


class Qwen3Engine:
    """One checkpoint of Qwen3-TTS, loaded when it is first needed."""

    name = "cuda"
    backends: tuple[str, ...]
    sample_rate = 24_000
    max_concurrent = GPU_ROWS

    def __init__(self) -> None:
        # of the encoder, and of the weights: another revision hears otherwise
        self.prompt_version = f"{ENCODER_VERSION}-{_revision(self.backends[0])}"
        self._lock = threading.Lock()
        self._model: Model | None = None
        self._loop: Loop | None = None
        self._voices: OrderedDict[bytes, VoiceOnDevice] = OrderedDict()

    def languages(self, backend: str) -> frozenset[str]:  # noqa: ARG002 - all sizes speak the same
        return LANGS

    def availability(self) -> Available | Unavailable:
        missing = [name for name in NEEDS if find_spec(name) is None]
        if missing:
            return Unavailable(f"{', '.join(missing)} is not installed", 'pip install "afterwords[cuda]"')
        try:
            checkpoints.locate(self.backends[0])
        except AfterwordsError as error:
            return Unavailable(error.message.rstrip("."), error.hint.rstrip("."))
        if _has_gpu():
            return Available("NVIDIA GPU, 24 kHz, ten languages")
        return Available("CPU, slowly: no NVIDIA GPU is here; 24 kHz, ten languages", is_slow=True)

    def load(self, backend: str, progress: Progress = ignore_progress) -> None:  # noqa: ARG002 - one backend
        progress(0.0, "loading the model")
        self._loaded(progress)
        progress(1.0, "done")

    def prepare(self, reference: Reference, progress: Progress = ignore_progress, *, fast: bool = False) -> bytes:  # noqa: ARG002 - it takes a second
        progress(0.0, "loading the model")
        model, _ = self._loaded(lambda done, step: progress(0.8 * done, step))
        progress(0.8, "listening")
        prompt = model.hear(reference).to_bytes(model.form)
        progress(1.0, "done")
        return prompt

    def describe(self, prompt: bytes) -> dict[str, float | str]:
        from safetensors.numpy import load

        way = "in context" if "codes" in load(prompt) else "speaker embedding alone: its transcript is not known"
        return {"speaks": way}

    def synthesize(self, task: SpeechTask) -> Generator[Chunk, None, None]:
        from afterwords.text import chunks

        model, loop = self._loaded()
        voice = self._voice(model, task.prompt)
        yield from _Speech(model, loop, voice, task, chunks(task.text, max_chars=PIECE_CHARS)).chunks()

    def close(self) -> None:
        with self._lock:
            loop, self._loop, self._model = self._loop, None, None
            self._voices.clear()
        if loop is not None:
            loop.close()

    def _loaded(self, progress: Progress = ignore_progress) -> tuple[Model, Loop]:
        with self._lock:
            if self._model is None or self._loop is None:
                self._model, self._loop = self._make(progress)
            return self._model, self._loop

    def _make(self, progress: Progress) -> tuple[Model, Loop]:
        if find_spec("torch") is None:
            raise MissingExtraError("cuda", purpose="Speaking with Qwen3-TTS")
        import torch

        from afterwords.backends.qwen3.loop import Loop
        from afterwords.backends.qwen3.model import Model

        backend = self.backends[0]
        folder = checkpoints.locate(backend)
        is_gpu = torch.cuda.is_available()
        model = Model(
            folder,
            name=f"{backend} {_revision(backend)}",
            device=torch.device("cuda" if is_gpu else "cpu"),
            dtype=torch.bfloat16 if is_gpu else torch.float32,
            progress=progress,
        )
        rows = GPU_ROWS if is_gpu else CPU_ROWS
        positions = min(POSITIONS, model.config.talker.max_positions)
        return model, Loop(model.talker, model.decoder, n_rows=rows, n_positions=positions)

    def _voice(self, model: Model, prompt: bytes) -> VoiceOnDevice:
        """The voice of a prompt, on the device; the last few are kept there."""
        from afterwords.backends.qwen3.reference_prompt import ReferencePrompt, StalePromptError

        with self._lock:
            if prompt not in self._voices:
                try:
                    kept = ReferencePrompt.from_bytes(prompt, model.form)
                except StalePromptError as error:
                    raise SynthesisError(self.backends[0], why=str(error)) from error
                self._voices[prompt] = model.place(kept)
                while len(self._voices) > VOICES_KEPT:
                    self._voices.popitem(last=False)
            self._voices.move_to_end(prompt)
            return self._voices[prompt]


class Qwen3Large(Qwen3Engine):
    """1.7 billion parameters."""

    backends: tuple[str, ...] = ("qwen3-1.7b",)


class Qwen3Small(Qwen3Engine):
    """0.6 billion parameters."""

    backends: tuple[str, ...] = ("qwen3-0.6b",)


class _Speech:
    """One text on its way through the loop, piece by piece; some pieces are spoken before they are asked for."""

    def __init__(self, model: Model, loop: Loop, voice: VoiceOnDevice, task: SpeechTask, pieces: Sequence[str]) -> None:
        self._model, self._loop, self._voice, self._task = model, loop, voice, task
        self._pieces = pieces
        self._seed = random.getrandbits(63) if task.seed is None else task.seed

    def chunks(self) -> Iterator[Chunk]:
        """The sound of all pieces in order."""
        import numpy as np

        turns: deque[Turn] = deque()
        pause = np.zeros(round(PAUSE_S * Qwen3Engine.sample_rate), np.float32)
        try:
            for number in range(len(self._pieces)):
                while len(turns) <= AHEAD and number + len(turns) < len(self._pieces):
                    turns.append(self._handed_in(number + len(turns), attempt=0))
                if number:
                    yield Chunk(pause)
                yield from self._heard(number, turns.popleft())
        finally:
            for turn in turns:
                turn.is_cancelled = True

    def _heard(self, number: int, turn: Turn) -> Iterator[Chunk]:
        """The sound of a piece. While none of it was heard, a bad one is spoken again, with another seed.

        Raises:
            SynthesisError: it went wrong every time, or after it was heard.
        """
        finish: Finish | None = None
        for attempt in range(TRIES):
            if attempt:
                turn = self._handed_in(number, attempt=attempt)
            sound = self._loop.sound_of(turn)
            try:
                first = next(sound, None)
                if first is None or (turn.finish is not None and turn.finish is not turn.finish.STOP):
                    finish = turn.finish
                    continue
                yield Chunk(first)
                finish = yield from _rest(sound)
            finally:
                sound.close()
            if finish is not finish.STOP:
                break
            return
        raise SynthesisError(self._task.backend, why=f"the speech did not come to its end ({finish})")

    def _handed_in(self, number: int, *, attempt: int) -> Turn:
        from afterwords.backends.qwen3.loop import Turn

        piece = self._pieces[number]
        seed = (self._seed + 1_000_003 * number + 7_919 * attempt) % 2**63  # each piece and try draws its own
        turn = Turn(
            self._model.prompt(self._voice, piece, self._task.lang),
            self._voice.primed,
            max_frames=FRAMES_PER_TOKEN * self._model.n_tokens(piece) + FRAMES_MORE,
            sampling=replace(self._model.config.sampling, seed=seed),
        )
        self._loop.hand_in(turn)
        return turn


def _rest(sound: Generator[Samples, None, Finish]) -> Generator[Chunk, None, Finish]:
    """What is left of a turn, as chunks."""
    while True:
        try:
            yield Chunk(next(sound))
        except StopIteration as end:
            finish: Finish = end.value
            return finish


def _revision(backend: str) -> str:
    """Which weights these are: the commit that was pulled, or that a person put them there."""
    try:
        return (checkpoints.standing(backend).revision or "local")[:12]
    except AfterwordsError:
        return "none"


def _has_gpu() -> bool:
    """Whether there is an NVIDIA driver, without loading torch, which takes seconds."""
    return Path("/proc/driver/nvidia/version").exists() or which("nvidia-smi") is not None
