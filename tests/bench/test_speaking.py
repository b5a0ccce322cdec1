"""Similarity of speech to its reference, and the memory of a GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from afterwords.audio.audio import decode
from afterwords.audio.wav import Samples, canonical_wav
from afterwords.bench.speaking import Utterance, compare, device_peak_mib
from tests.conftest import READER


def utterance(samples: Samples, sample_rate: int) -> Utterance:
    return Utterance("any", 0.0, 0.0, samples, sample_rate)


def test_voice_is_more_similar_to_itself_than_a_tone() -> None:
    recording = decode(READER)
    rate = recording.sample_rate
    reference = canonical_wav(recording.samples[: 5 * rate], rate)
    tone = (0.2 * np.sin(2 * np.pi * 300 * np.arange(2 * rate) / rate)).astype(np.float32)
    speech = recording.samples[6 * rate : 8 * rate]

    same, other = (compare([utterance(samples, rate)], reference) for samples in (speech, tone))

    assert same.keys() == {"similarity", "similarity_by"}
    assert same["similarity_by"] == "GE2E"
    assert same["similarity"] > 0.7 > other["similarity"]


def test_reference_that_cannot_be_compared_says_why() -> None:
    fields = compare([utterance(np.zeros(24_000, np.float32), 24_000)], b"RIFF")

    assert fields.keys() == {"similarity_note"}
    assert fields["similarity_note"]


USED_BY_TORCH = SimpleNamespace(
    cuda=SimpleNamespace(is_initialized=lambda: True, max_memory_reserved=lambda: 512 * 2**20)
)
USED_BY_MLX = SimpleNamespace(
    gpu="gpu", default_device=lambda: SimpleNamespace(type="gpu"), get_peak_memory=lambda: 512 * 2**20
)


@pytest.mark.parametrize(("name", "module"), [("torch", USED_BY_TORCH), ("mlx.core", USED_BY_MLX)])
def test_gpu_memory_is_read_only_if_an_engine_uses_a_gpu(
    name: str, module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in ("torch", "mlx.core"):
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    assert device_peak_mib() is None
    monkeypatch.setitem(sys.modules, name, module)  # few test machines have a GPU
    assert device_peak_mib() == 512
