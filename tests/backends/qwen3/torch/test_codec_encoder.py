"""The encoder of the codec gives the codes of the reference package, for clips of any length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from afterwords.backends.qwen3.codec_config import read_codec_config
from afterwords.backends.qwen3.torch import codec_encoder
from afterwords.backends.qwen3.torch.codec_encoder import CodecEncoder
from afterwords.backends.qwen3.torch.weights import Weights
from scripts.make_qwen3_sound_goldens import clip
from tests.backends.qwen3.conftest import GOLDENS

WINDOW_FRAMES = 125  # 250 steps at 25 Hz: from where a window in the transformer would have an effect


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> CodecEncoder:
    folder = checkpoint / "speech_tokenizer"
    with Weights.open(folder, device="cpu", dtype=torch.float32) as weights:
        return CodecEncoder(read_codec_config(folder), weights)


@pytest.mark.parametrize("name", ["short", "odd", "long"])
def test_codes_equal_the_reference_package(encoder: CodecEncoder, name: str) -> None:
    with np.load(GOLDENS / "sound.npz") as goldens:
        expected = goldens[f"codes_{name}"]
    codes = encoder.encode(clip(name))
    assert np.array_equal(codes, expected)
    assert len(np.unique(expected)) > 50  # or an encoder that always says the same would pass
    assert name != "long" or len(expected) > WINDOW_FRAMES


def test_chunks_give_the_same_codes(encoder: CodecEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = clip("odd")
    whole = encoder.encode(sound)
    monkeypatch.setattr(codec_encoder, "CHUNK_FRAMES", 1)  # a constant: a clip of minutes would take too long
    assert np.array_equal(encoder.encode(sound), whole)


@pytest.mark.parametrize("n_samples", [1, 959, 960, 961, 1919, 1920, 1921, 3840])
def test_partial_frame_is_encoded(encoder: CodecEncoder, n_samples: int) -> None:
    codes = encoder.encode(np.full(n_samples, 0.1, np.float32))
    assert codes.shape == (-(-n_samples // 1920), 16)
    assert codes.dtype == np.uint16


def test_later_audio_does_not_change_earlier_codes(encoder: CodecEncoder) -> None:
    sound = clip("short")
    assert np.array_equal(encoder.encode(sound[: 20 * 1920]), encoder.encode(sound)[:20])
