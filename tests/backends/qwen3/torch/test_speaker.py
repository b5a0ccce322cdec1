"""The speaker encoder gives the embedding of the reference package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from afterwords.backends.qwen3.config import read_config
from afterwords.backends.qwen3.torch.speaker import SpeakerEncoder
from afterwords.backends.qwen3.torch.weights import Weights
from scripts.make_qwen3_sound_goldens import clip
from tests.backends.qwen3.conftest import GOLDENS


@pytest.fixture(scope="module")
def speaker(checkpoint: Path) -> SpeakerEncoder:
    with Weights.open(checkpoint, device="cpu", dtype=torch.float32) as weights:
        return SpeakerEncoder(read_config(checkpoint).speaker, weights)


@pytest.mark.parametrize("name", ["short", "odd", "long"])
def test_embedding_equals_the_reference_package(speaker: SpeakerEncoder, name: str) -> None:
    with np.load(GOLDENS / "sound.npz") as goldens:
        expected = goldens[f"speaker_{name}"]
    embedding = speaker.embed(clip(name))
    assert np.abs(embedding - expected).max() < 1e-4
    assert expected.std() > 0.1


def test_embeddings_differ_between_sounds(speaker: SpeakerEncoder) -> None:
    one, other = (speaker.embed(clip(name)) for name in ("short", "odd"))
    assert np.abs(one - other).max() > 1e-3


def test_tone_is_loudest_in_its_band(speaker: SpeakerEncoder) -> None:
    time = torch.arange(24_000) / 24_000
    low, high = (speaker.mel_frames(torch.sin(2 * torch.pi * hertz * time)).mean(dim=1) for hertz in (300, 6000))
    assert low.shape == (128,)
    assert low.argmax() < 15
    assert 95 < high.argmax() < 110


def test_silence_gives_the_floor(speaker: SpeakerEncoder) -> None:
    assert speaker.mel_frames(torch.zeros(24_000)).max() < -7
    assert np.isfinite(speaker.embed(np.zeros(24_000, np.float32))).all()
