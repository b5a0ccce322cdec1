"""Measure the engine `pocket` at full size with random weights, next to the package pocket-tts called directly.

Both load the same checkpoint in this process, and their requests alternate. Sentences never end by themselves, so both
generate the same number of frames. CPU time of all threads is what a busy machine disturbs least.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from afterwords.audio.audio import decode
from afterwords.backends.base import Reference
from afterwords.backends.memory import resident_bytes
from afterwords.backends.pocket.engine import PocketEngine
from afterwords.models import SpeechTask
from tests.conftest import READER

PAIRS: Final = 5
REQUESTS: Final = 50
SENTENCE: Final = "The harbour was quiet when they arrived."
TEXT: Final = f"{SENTENCE} Only the gulls seemed to notice."


@dataclass(frozen=True)
class Cost:
    """What one utterance took: seconds to its first audio, and wall and CPU seconds for each second of speech."""

    first_s: float
    wall: float
    cpu: float


def measure(speak: Callable[[], Iterator[int]]) -> Cost:
    """Measure speech that yields numbers of samples."""
    started, cpu_started = time.perf_counter(), time.process_time()
    chunks = speak()
    n_samples = next(chunks)
    first_s = time.perf_counter() - started
    n_samples += sum(chunks)
    speech_s = n_samples / 24_000
    return Cost(first_s, (time.perf_counter() - started) / speech_s, (time.process_time() - cpu_started) / speech_s)


def load_package(folder: Path) -> Any:
    """Return the model that the package loads from the files of the engine."""
    import yaml
    from pocket_tts import TTSModel

    weights = next(folder.rglob("model.safetensors"))
    config = yaml.safe_load(weights.with_name("config.yaml").read_text("utf-8"))
    path = folder / "package.yaml"
    path.write_text(yaml.safe_dump({**config, "weights_path": str(weights)}), "utf-8")
    return TTSModel.load_model(config=path)


def table() -> Iterator[str]:
    """Yield the figures as Markdown."""
    import torch

    from scripts.make_pocket_tiny import make_checkpoint

    logging.getLogger("afterwords.backends.pocket.utterance").setLevel(logging.ERROR)  # each sentence is cut
    logging.getLogger("pocket_tts").setLevel(logging.ERROR)
    recording = decode(READER)
    samples = recording.samples[: 10 * recording.sample_rate]
    with (
        tempfile.TemporaryDirectory() as models,
        patch.dict(os.environ, {"AFTERWORDS_MODELS": models}),
        patch("afterwords.backends.pocket.utterance.split_again", lambda text, _: [text]),  # as the package
    ):
        folder = make_checkpoint(Path(models) / "pocket", is_full=True, ends=False)
        engine = PocketEngine()
        prompt = engine.prepare(Reference(samples, recording.sample_rate), fast=True)
        package = load_package(folder)
        torch.set_num_threads(1)
        state = package.get_state_for_audio_prompt(torch.from_numpy(np.ascontiguousarray(samples))[None])
        task = SpeechTask(text=SENTENCE, lang="en", backend="pocket", voice_id="me", prompt=prompt, seed=1)

        def speak(text: str) -> Iterator[int]:
            return (len(chunk.samples) for chunk in engine.synthesize(task.model_copy(update={"text": text})))

        def speak_directly(text: str) -> Iterator[int]:
            return (len(chunk) for chunk in package.generate_audio_stream(state, text))

        loads = [os.getloadavg()[0]]
        yield from ("| what | ours | the package | ratio | target |", "|---|---|---|---|---|")
        for name, text in (("one sentence", SENTENCE), ("two sentences", TEXT)):
            pair = (partial(speak, text), partial(speak_directly, text))
            pairs = [(measure(pair[0]), measure(pair[1])) for _ in range(PAIRS + 1)][1:]  # the first one warms up
            loads.append(os.getloadavg()[0])
            yield row(f"{name}: real-time factor", [(a.wall, b.wall) for a, b in pairs], "≤ 1.05")
            yield row(f"{name}: CPU seconds per second", [(a.cpu, b.cpu) for a, b in pairs], "")
            yield row(f"{name}: seconds to first audio", [(a.first_s, b.first_s) for a, b in pairs], "≤ 1.1")
        resident = []
        for _ in range(REQUESTS):
            for _ in speak("Yes."):
                pass
            resident.append((resident_bytes(os.getpid()) or 0) / 1e6)
        engine.close()
    half = REQUESTS // 2
    before, after = statistics.median(resident[:half]), statistics.median(resident[half:])
    yield (
        f"| resident memory, requests {half + 1} to {REQUESTS} / 1 to {half} | {after:.0f} MB | {before:.0f} MB (ours) "
        f"| {after / before:.3f} | no growth |"
    )
    yield f"\nLoad {', '.join(f'{load:.1f}' for load in loads)}."


def row(name: str, pairs: list[tuple[float, float]], target: str) -> str:
    """Return the medians of both, and the median of the ratios of pairs."""
    ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return f"| {name} | {ours:.2f} | {theirs:.2f} | {ratio:.2f} | {target} |"


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
