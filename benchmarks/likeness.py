"""Measure the likeness of `lite`: enrolled on the first half of a recording, judged on the second.

    python -m benchmarks.likeness [RECORDING or FOLDER ...]

Without recordings, the shipped one is measured. Compared with the nearest stock voice, with `--fast`, and with the
first half itself as the ceiling. Enrollment uses GE2E and a relative of the MFCC divergence; nothing optimizes
Whisper's features, and DNSMOS and the words of the transcripts are unknown to it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from afterwords.audio.audio import Audio, decode
from afterwords.backends.base import Reference
from afterwords.backends.lite.engine import PIECE_CHARS, SENTENCE_PAUSE_S, LiteEngine
from afterwords.backends.lite.g2p import tokens
from afterwords.backends.lite.kokoro import SAMPLE_RATE, Kokoro, model_file
from afterwords.backends.lite.profile import LiteProfile
from afterwords.backends.lite.search import trim
from afterwords.backends.lite.speaker import embed
from afterwords.backends.lite.styles import style_space
from afterwords.config import load_config
from afterwords.models import SpeechTask
from afterwords.reference.transcription import transcribe
from afterwords.text import split_chunks
from benchmarks.judges import WhisperLikeness, mfcc_divergence, mfcc_stats, quality, whisper_folder, word_errors

SENTENCES = (
    "The birch canoe slid on the smooth planks.",
    "Glue the sheet to the dark blue background.",
    "It's easy to tell the depth of a well.",  # quoted
    "These days a chicken leg is a rare dish.",
    "The box was thrown beside the parked truck.",  # quoted
    "Four hours of steady work faced us.",
)
"""Harvard sentences from list 1; the calibration of enrollment uses others."""
MAX_HALF_S = 16.0
STOCK = ("af_heart", "bf_emma", "am_michael", "bm_george")
"""Voices that say the same words, for the words' part of Whisper's features."""

Array = NDArray[np.float32]


class Row(NamedTuple):
    """A voice and its scores. `errors` is None for a recording, whose text is not certain."""

    name: str
    ge2e: float
    whisper: float
    mfcc: float
    errors: float | None
    mos: float


def measure(recording: Audio) -> list[Row]:
    """Clone, speak the sentences, and score them."""
    rate, half = recording.sample_rate, len(recording.samples) // 2
    first, second = (part[: round(MAX_HALF_S * rate)] for part in np.split(recording.samples, [half]))
    engine = LiteEngine()
    prompts = {
        name: engine.prepare(Reference(first, rate), fast=name.endswith("fast")) for name in ("lite --fast", "lite")
    }
    stock = LiteProfile.from_bytes(prompts["lite"]).nearest_stock
    texts = [transcribe(Audio(part, rate), lang="en", model=whisper_folder()).text for part in (first, second)]
    first_by_stock, second_by_stock = (
        [np.concatenate(_say_stock(name, split_chunks(text, max_chars=PIECE_CHARS))) for name in STOCK]
        for text in texts
    )
    likeness = WhisperLikeness(_sentences_by_stock(), second_by_stock, SAMPLE_RATE)
    likeness_of_halves = WhisperLikeness(first_by_stock, second_by_stock, SAMPLE_RATE)

    def score(name: str, sentences: Sequence[Array]) -> Row:
        speech = np.concatenate(sentences)
        errors, n_words = word_errors(" ".join(SENTENCES), speech, SAMPLE_RATE)
        return Row(
            name,
            float(embed(speech, SAMPLE_RATE) @ embed(second, rate)),
            likeness(speech, SAMPLE_RATE, second, rate),
            mfcc_divergence(mfcc_stats(speech, SAMPLE_RATE), mfcc_stats(second, rate)),
            errors / n_words,
            quality(speech, SAMPLE_RATE),
        )

    ceiling = Row(
        "the same person (ceiling)",
        float(embed(first, rate) @ embed(second, rate)),
        likeness_of_halves(first, rate, second, rate),
        mfcc_divergence(mfcc_stats(first, rate), mfcc_stats(second, rate)),
        None,
        quality(first, rate),
    )
    cloned = [score(name, _say(engine, prompt)) for name, prompt in prompts.items()]
    return [score(f"nearest stock voice ({stock})", _say_stock(stock, SENTENCES)), *cloned, ceiling]


@cache
def _sentences_by_stock() -> list[Array]:
    return [np.concatenate(_say_stock(name, SENTENCES)) for name in STOCK]


def _say(engine: LiteEngine, prompt: bytes) -> list[Array]:
    tasks = [SpeechTask(text=t, lang="en", backend="lite", voice_id="reader", prompt=prompt) for t in SENTENCES]
    return [np.concatenate([chunk.samples for chunk in engine.synthesize(task)]) for task in tasks]


def _say_stock(name: str, sentences: Sequence[str]) -> list[Array]:
    """Speak with an unchanged stock voice of Kokoro, with the engine's pauses."""
    space, config = style_space(), load_config()
    table = space.voices[space.names.index(name)]
    kokoro = _kokoro(model_file(config.home / "models", config.kokoro_onnx))
    pause = np.zeros(round(SENTENCE_PAUSE_S * SAMPLE_RATE), np.float32)
    texts = [tokens(text) for text in sentences]
    return [np.concatenate([trim(kokoro.speak(ids, table[len(ids) - 1]).samples), pause]) for ids in texts]


_kokoro = cache(Kokoro)


def table(recordings: Sequence[Path] = ()) -> list[str]:
    """Return the rows of each recording, and their means, as Markdown."""
    lines = [
        "| recording | voice | GE2E cosine ↑ | Whisper features ↑ | MFCC divergence ↓ | word errors ↓ | DNSMOS ↑ |",
        "|---|---|---|---|---|---|---|",
    ]
    found = {}
    for path in recordings or [Path(str(files("afterwords") / "data" / "reader.wav"))]:
        found[path.stem] = measure(decode(path.read_bytes()))
        lines += [_line(path.stem, row) for row in found[path.stem]]
    if len(found) > 1:
        for rows in zip(*found.values(), strict=True):
            errors = [row.errors for row in rows if row.errors is not None]
            mean = Row(
                rows[0].name.partition(" (")[0],
                float(np.mean([row.ge2e for row in rows])),
                float(np.mean([row.whisper for row in rows])),
                float(np.mean([row.mfcc for row in rows])),
                float(np.mean(errors)) if errors else None,
                float(np.mean([row.mos for row in rows])),
            )
            lines.append(_line("mean", mean))
    return lines


def _line(recording: str, row: Row) -> str:
    errors = "" if row.errors is None else f"{row.errors:.1%}"
    scores = f"{row.ge2e:.3f} | {row.whisper:.3f} | {row.mfcc:.3f} | {errors} | {row.mos:.2f}"
    return f"| {recording} | {row.name} | {scores} |"


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    print("\n".join(table([file for path in given for file in (sorted(path.iterdir()) if path.is_dir() else [path])])))
