"""Prompts of voices: made from a recording, serialized, and refused if they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afterwords.backends import qwen3
from afterwords.backends.qwen3.codec_config import read_codec_config
from afterwords.backends.qwen3.config import read_config
from afterwords.backends.qwen3.reference_prompt import (
    PromptFormat,
    ReferencePrompt,
    StalePromptError,
    make_prompt,
    recording_digest,
)
from afterwords.backends.qwen3.torch.codec_encoder import CodecEncoder
from afterwords.backends.qwen3.torch.speaker import SpeakerEncoder
from afterwords.backends.qwen3.torch.weights import Weights
from scripts.make_qwen3_sound_goldens import clip
from tests.backends.qwen3.conftest import GOLDENS

WORDS = (5, 260, 7)


@pytest.fixture(scope="module")
def encoders(checkpoint: Path) -> dict[str, Any]:
    """Load the encoders as arguments of `make_prompt`."""
    folder = checkpoint / "speech_tokenizer"
    with Weights.open(folder, device="cpu", dtype=torch.float32) as weights:
        codec = CodecEncoder(read_codec_config(folder), weights)
    with Weights.open(checkpoint, device="cpu", dtype=torch.float32) as weights:
        speaker = SpeakerEncoder(read_config(checkpoint).speaker, weights)
    rates = {"encode_rate": codec.sample_rate, "embed_rate": speaker.sample_rate}
    return {"encode": codec.encode, "embed": speaker.embed, **rates}


@pytest.fixture(scope="module")
def format(checkpoint: Path) -> PromptFormat:
    return PromptFormat.of("tiny@1", read_config(checkpoint), read_codec_config(checkpoint / "speech_tokenizer"))


@pytest.fixture(scope="module")
def prompt(encoders: dict[str, Any]) -> ReferencePrompt:
    return make_prompt(clip("short"), 24_000, text_ids=WORDS, **encoders)


def test_codes_include_half_a_second_of_silence(prompt: ReferencePrompt) -> None:
    assert prompt.codes is not None
    assert prompt.codes.dtype == np.uint16
    assert prompt.codes.shape == (37, 16)  # 2.4 s and 0.5 s, at 12.5 frames a second
    with np.load(GOLDENS / "sound.npz") as goldens:
        assert np.array_equal(prompt.codes[:30], goldens["codes_short"])
        assert np.abs(prompt.speaker - goldens["speaker_short"]).max() < 1e-4


def test_resampled_recording_gives_reference_codes(encoders: dict[str, Any]) -> None:
    made = make_prompt(clip("slow"), 16_000, text_ids=WORDS, **encoders)
    assert made.codes is not None
    with np.load(GOLDENS / "sound.npz") as goldens:
        assert np.array_equal(made.codes[:30], goldens["codes_slow"])


def test_no_transcript_gives_an_embedding_alone(encoders: dict[str, Any], format: PromptFormat) -> None:
    made = make_prompt(clip("short"), 24_000, **encoders)
    read = ReferencePrompt.from_bytes(made.to_bytes(format), format)
    assert read.codes is None
    assert read.text_ids == ()
    assert np.array_equal(read.speaker, made.speaker)


def test_prompt_round_trips(prompt: ReferencePrompt, format: PromptFormat) -> None:
    content = prompt.to_bytes(format)
    read = ReferencePrompt.from_bytes(content, format, recording=recording_digest(clip("short"), 24_000))
    assert np.array_equal(read.speaker, prompt.speaker)
    assert read.codes is not None
    assert prompt.codes is not None
    assert np.array_equal(read.codes, prompt.codes)
    assert (read.text_ids, read.recording) == (WORDS, prompt.recording)
    assert len(content) < 3000


@pytest.mark.parametrize(
    "other",
    [{"model": "tiny@2"}, {"speaker_width": 64}, {"n_codebooks": 8}, {"codebook_size": 8}],
    ids=lambda other: next(iter(other)),
)
def test_prompt_of_another_model_is_refused(
    prompt: ReferencePrompt, format: PromptFormat, other: dict[str, Any]
) -> None:
    with pytest.raises(StalePromptError):
        ReferencePrompt.from_bytes(prompt.to_bytes(format), replace(format, **other))


def test_prompt_of_another_recording_is_refused(prompt: ReferencePrompt, format: PromptFormat) -> None:
    with pytest.raises(StalePromptError, match="its recording is"):
        ReferencePrompt.from_bytes(prompt.to_bytes(format), format, recording=recording_digest(clip("odd"), 24_000))


def test_prompt_of_an_older_encoder_is_refused(
    prompt: ReferencePrompt, format: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = prompt.to_bytes(format)
    monkeypatch.setattr(qwen3, "ENCODER_VERSION", "2")  # a constant, and the next one is not yet written
    with pytest.raises(StalePromptError, match="its encoder is '1', not '2'"):
        ReferencePrompt.from_bytes(content, format)


def test_any_changed_byte_is_detected(prompt: ReferencePrompt, format: PromptFormat) -> None:
    content = prompt.to_bytes(format)
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x20
        try:
            read = ReferencePrompt.from_bytes(bytes(damaged), format)
        except StalePromptError:
            continue
        assert np.array_equal(read.speaker, prompt.speaker)
        assert (read.text_ids, read.recording) == (WORDS, prompt.recording)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 8, b"RIFF of some sound", b"\x02" + b"\0" * 7 + b"{}", b"\xff" * 64, b"\0" * (2 << 20)],
    ids=["empty", "zeros", "wav", "no tensors", "ones", "large"],
)
def test_other_bytes_are_refused(content: bytes, format: PromptFormat) -> None:
    with pytest.raises(StalePromptError):
        ReferencePrompt.from_bytes(content, format)


def test_truncated_prompt_is_refused(prompt: ReferencePrompt, format: PromptFormat) -> None:
    content = prompt.to_bytes(format)
    for size in range(0, len(content), 97):
        with pytest.raises(StalePromptError):
            ReferencePrompt.from_bytes(content[:size], format)


def test_codes_of_another_model_are_refused(prompt: ReferencePrompt, format: PromptFormat) -> None:
    assert prompt.codes is not None
    for odd in (
        replace(prompt, codes=prompt.codes + np.uint16(64)),
        replace(prompt, codes=prompt.codes[:0]),
        replace(prompt, text_ids=()),
        replace(prompt, speaker=np.full_like(prompt.speaker, np.nan)),
    ):
        with pytest.raises(StalePromptError):
            ReferencePrompt.from_bytes(odd.to_bytes(format), format)


@pytest.mark.parametrize(
    "samples",
    [np.zeros(0, np.float32), np.zeros((2, 9000), np.float32), np.full(9000, np.nan, np.float32)],
    ids=["none", "stereo", "not finite"],
)
def test_invalid_recording_is_refused(
    encoders: dict[str, Any], samples: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    with pytest.raises(ValueError, match="not a mono recording"):
        make_prompt(samples, 24_000, **encoders)
