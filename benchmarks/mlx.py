"""Our MLX engine against mlx-audio's own `generate`, on the same weights in the same process, as ratios of pairs.

Both speak the same texts in the same voice, streamed in chunks of 8 frames; runs alternate. Random weights end an
utterance by chance and the two draw differently, so times are per decoded frame. A frame is 80 ms.
`python -m benchmarks.mlx` makes a tiny checkpoint; `python -m benchmarks.mlx FOLDER` takes a published one.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np

from afterwords.audio.wav import Samples, read_wav
from afterwords.backends.base import Reference
from afterwords.backends.qwen3 import long_text
from afterwords.backends.qwen3.mlx.engine import MlxLarge
from afterwords.backends.qwen3.mlx.thread import device_thread
from afterwords.errors import SynthesisError
from afterwords.models import SpeechTask

TEXTS: Final = (
    "The harbor was quiet when they arrived.",
    "Every morning she walked along the river to the old mill.",
    "No one had warned him that the bridge was closed.",
)
REFERENCE_S: Final = 10
ROUNDS: Final = 8
CHUNK_FRAMES: Final = 8
FRAME_SAMPLES: Final = 1920
Run = tuple[float, float, int]
"""Seconds to the first audio, total seconds, and frames."""


def timed(sounds: Iterator[Samples]) -> Run:
    """Read all audio."""
    started, first, n_samples = time.perf_counter(), 0.0, 0
    try:
        for sound in sounds:
            first = first or time.perf_counter() - started
            n_samples += len(sound)
    except SynthesisError:  # random weights: it did not end by itself, and was decoded up to its limit
        pass
    return first, time.perf_counter() - started, max(1, n_samples // FRAME_SAMPLES)


class Ours:
    """Our engine, with the voice prepared."""

    def __init__(self, engine: MlxLarge, reference: Reference) -> None:
        self._engine, self._prompt = engine, engine.prepare(reference)

    def speak(self, text: str, seed: int | None) -> Iterator[Samples]:
        task = SpeechTask(
            text=text, lang="en", backend="qwen3-1.7b", voice_id="benchmark", prompt=self._prompt, seed=seed
        )
        return (chunk.samples for chunk in self._engine.synthesize(task))


class Theirs:
    """mlx-audio's `generate` on the modules and the thread of our engine."""

    def __init__(self, engine: MlxLarge, reference: Reference, folder: Path) -> None:
        from transformers import AutoTokenizer

        logging.getLogger("transformers").setLevel(logging.ERROR)
        model: Any = engine._ensure_loaded()[0]
        self._network: Any = model.network
        self._network.load_speech_tokenizer(model._codec)
        self._network.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self._network.load_generate_config({})
        self._samples, self._text = device_thread().run(lambda: mx.array(reference.samples)), reference.text

    def speak(self, text: str, seed: int | None, *, max_frames: int) -> Iterator[Samples]:
        def make() -> Any:
            mx.random.seed(seed or 0)
            return self._network.generate(
                text,
                ref_audio=self._samples,
                ref_text=self._text,
                lang_code="english",
                stream=True,
                streaming_interval=CHUNK_FRAMES * 0.08,
                max_tokens=max_frames,
            )

        results = device_thread().run(make)
        while (sound := device_thread().run(lambda: self._next(results))) is not None:
            yield sound

    def _next(self, results: Any) -> Samples | None:
        result = next(results, None)
        return None if result is None else np.array(result.audio)


def table(folder: Path) -> list[str]:
    """Yield the figures as Markdown."""
    data = files("afterwords") / "data"
    samples, rate = read_wav((data / "reader.wav").read_bytes())
    reference = Reference(samples[: REFERENCE_S * rate], rate, (data / "reader.txt").read_text("utf-8")[:150])
    with tempfile.TemporaryDirectory() as models:
        (Path(models) / "qwen3-1.7b-bf16").symlink_to(folder)
        os.environ["AFTERWORDS_MODELS"] = models
        engine = MlxLarge()
        ours, theirs = Ours(engine, reference), Theirs(engine, reference, folder)
        pairs = list(_pairs(engine, ours, theirs))
        lines = ["| what | ours | `generate` | ratio (median of pairs) | to reach |", "|---|---|---|---|---|"]
        lines.append(_line("a frame, whole utterance", [(a[1] / a[2], b[1] / b[2]) for a, b in pairs], "≤ 1.05"))
        lines.append(_line("first sound", [(a[0], b[0]) for a, b in pairs], "-"))
        lines.append(_batch(ours, [a for a, _ in pairs]))
        lines.append(_memory(ours))
        engine.close()
    return lines


def _pairs(engine: MlxLarge, ours: Ours, theirs: Theirs) -> Iterator[tuple[Run, Run]]:
    model, _ = engine._ensure_loaded()
    for number in range(-1, ROUNDS):  # the first pair warms up
        text = TEXTS[number % len(TEXTS)]
        ceiling = long_text.FRAMES_PER_TOKEN * model.n_tokens(text) + long_text.FRAMES_MORE
        pair = timed(ours.speak(text, number + 10)), timed(theirs.speak(text, number + 10, max_frames=ceiling))
        if number >= 0:
            yield pair


def _line(what: str, pairs: Sequence[tuple[float, float]], goal: str) -> str:
    own, other = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return f"| {what} | {own:.1f} ms | {other:.1f} ms | {ratio:.2f} | {goal} |"


def _batch(ours: Ours, alone: Sequence[Run]) -> str:
    """Measure a text of several segments without a seed, which are decoded as a batch."""
    text = " ".join(TEXTS * 8)
    runs = [timed(ours.speak(text, None)) for _ in range(4)][1:]  # the first compiles for so many rows
    single = statistics.median(run[1] / run[2] for run in alone)
    each = statistics.median(run[1] / run[2] for run in runs)
    return f"| the same, pieces side by side | {1000 * each:.1f} ms | - | {each / single:.2f} of one alone | - |"


def _memory(ours: Ours) -> str:
    used = []
    for seed in range(52):
        timed(ours.speak(TEXTS[0], seed))
        used.append(mx.get_active_memory())
    grown = (max(used[2:]) - max(used[:2])) / 2**20
    return f"| memory after 50 requests | {used[-1] / 2**20:.0f} MiB | - | {grown:+.1f} MiB | no growth |"


def main() -> None:
    if len(sys.argv) > 1:
        print(*table(Path(sys.argv[1]).absolute()), sep="\n")
        return
    from scripts.make_mlx_tiny import make_mlx_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        print(*table(make_mlx_checkpoint(Path(folder) / "tiny")), sep="\n")


if __name__ == "__main__":
    main()
