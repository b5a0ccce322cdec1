"""The judge of likeness, and what a process tells of its memory."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from afterwords.audio.audio import decode
from afterwords.audio.wav import canonical_wav
from afterwords.bench.judge import device_peak_mib, likeness, peak_mib
from tests.conftest import READER


def test_a_voice_is_more_like_itself_than_a_tone() -> None:
    recording = decode(READER)
    rate = recording.sample_rate
    reference = canonical_wav(recording.samples[: 5 * rate], rate)
    tone = (0.2 * np.sin(2 * np.pi * 300 * np.arange(2 * rate) / rate)).astype(np.float32)
    said = recording.samples[6 * rate : 8 * rate]

    same, other = (likeness([one], rate, reference, backend="any") for one in (said, tone))

    assert (same.similarity_by, same.similarity_note) == ("GE2E", None)
    assert (same.similarity or 0) > 0.7 > (other.similarity or 0)


def test_what_cannot_be_judged_says_why() -> None:
    alike = likeness([np.zeros(24_000, np.float32)], 24_000, b"RIFF", backend="any")

    assert (alike.similarity, alike.similarity_by) == (None, None)
    assert alike.similarity_note


USED_BY_TORCH = SimpleNamespace(
    cuda=SimpleNamespace(is_initialized=lambda: True, max_memory_reserved=lambda: 512 * 2**20)
)
USED_BY_MLX = SimpleNamespace(
    gpu="gpu", default_device=lambda: SimpleNamespace(type="gpu"), get_peak_memory=lambda: 512 * 2**20
)


@pytest.mark.parametrize(("name", "module"), [("torch", USED_BY_TORCH), ("mlx.core", USED_BY_MLX)])
def test_memory_of_this_process_is_known_and_that_of_a_gpu_where_one_is_used(
    name: str, module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in ("torch", "mlx.core"):
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    assert (peak_mib() or 0) > 10
    assert device_peak_mib() is None
    monkeypatch.setitem(sys.modules, name, module)  # few machines that test have a GPU
    assert device_peak_mib() == 512
