"""How alike `lite` sounds: enrolled on the first half of the reader's recording, judged on the second.

Beside it the nearest stock voice as it is, `--fast` enrolment, and two halves of the same person as the ceiling.
GE2E and a kin of the MFCC divergence take part in enrolment; Whisper features take part in nothing.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from afterwords.audio import decode
from afterwords.backends.base import Reference
from afterwords.backends.lite.engine import LiteEngine
from afterwords.backends.lite.g2p import tokens
from afterwords.backends.lite.kokoro import SAMPLE_RATE, Kokoro, model_file
from afterwords.backends.lite.profile import Profile
from afterwords.backends.lite.search import trim
from afterwords.backends.lite.speaker import embed
from afterwords.backends.lite.styles import style_space
from afterwords.config import load_config
from afterwords.models import SpeechTask
from benchmarks.judges import cosine, mfcc_divergence, mfcc_stats, quality, whisper_features, word_errors

SENTENCES = (
    "The birch canoe slid on the smooth planks.",
    "Glue the sheet to the dark blue background.",
    "It's easy to tell the depth of a well.",
    "These days a chicken leg is a rare dish.",
    "The box was thrown beside the parked truck.",
    "Four hours of steady work faced us.",
    "A large size in stockings is hard to sell.",
    "The small pup gnawed a hole in the sock.",
    "Kick the ball straight and follow through.",
    "A pot of tea helps to pass the evening.",
)
"""Harvard sentences of lists 1 to 3; the calibration of enrolment uses others."""

Array = NDArray[np.float32]
Row = tuple[str, float, float, float, float, float]


def measure() -> list[Row]:
    """Rows of name, GE2E cosine, Whisper cosine, MFCC divergence, word error rate, DNSMOS."""
    recording = decode(files("afterwords").joinpath("data/reader.wav").read_bytes())
    half = len(recording.samples) // 2
    first, second = recording.samples[:half], recording.samples[half:]
    reference = Reference(first, recording.sample_rate)
    engine = LiteEngine()
    stock_voices = _stock_voices()
    common = np.mean([whisper_features(np.concatenate(said), SAMPLE_RATE) for said in stock_voices.values()], axis=0)
    full, fast = (engine.prepare(reference, fast=is_fast) for is_fast in (False, True))
    nearest = Profile.from_bytes(full).nearest_stock

    def judged(name: str, said: list[Array], rate: int) -> Row:
        speech = np.concatenate(said)
        errors = [word_errors(text, piece, rate) for text, piece in zip(SENTENCES, said, strict=len(said) > 1)]
        return (
            name,
            float(embed(speech, rate) @ embed(second, recording.sample_rate)),
            cosine(
                whisper_features(speech, rate) - common, whisper_features(second, recording.sample_rate) - common
            ),
            mfcc_divergence(mfcc_stats(speech, rate), mfcc_stats(second, recording.sample_rate)),
            sum(e for e, _ in errors) / max(1, sum(n for _, n in errors)),
            float(np.mean([quality(piece, rate) for piece in said])),
        )

    rows = [judged(f"nearest stock voice ({nearest})", _say_stock(nearest), SAMPLE_RATE)]
    for name, prompt in (("lite --fast", fast), ("lite", full)):
        said = [
            np.concatenate([chunk.samples for chunk in engine.synthesize(_task(text, prompt))]) for text in SENTENCES
        ]
        rows.append(judged(name, said, engine.sample_rate))
    row = judged("the same person (ceiling)", [first], recording.sample_rate)
    rows.append((*row[:4], float("nan"), row[5]))
    return rows


def _task(text: str, prompt: bytes) -> SpeechTask:
    return SpeechTask(text=text, lang="en", backend="lite", voice_id="reader", prompt=prompt)


def _say_stock(name: str, sentences: tuple[str, ...] = SENTENCES) -> list[Array]:
    space = style_space()
    table = space.voices[space.names.index(name)]
    config = load_config()
    kokoro = Kokoro(model_file(config.home / "models", config.kokoro_onnx))
    written = [tokens(text) for text in sentences]
    return [trim(kokoro.speak(ids, table[len(ids) - 1]).samples) for ids in written]


def _stock_voices() -> dict[str, list[Array]]:
    """Eight stock voices saying two sentences: what is common to speech, for the Whisper features."""
    names = ("af_heart", "af_nicole", "af_sky", "bf_emma", "am_adam", "am_michael", "am_puck", "bm_george")
    return {name: _say_stock(name, SENTENCES[:3]) for name in names}


def table() -> list[str]:
    """The rows as Markdown."""
    lines = [
        "| | GE2E cosine | Whisper features | MFCC divergence | WER | DNSMOS |",
        "|---|---|---|---|---|---|",
    ]
    for name, ge2e, whisper, mfcc, wer, mos in measure():
        errors = "" if np.isnan(wer) else f"{wer:.1%}"
        lines.append(f"| {name} | {ge2e:.3f} | {whisper:.3f} | {mfcc:.3f} | {errors} | {mos:.2f} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
