"""A voice as the talker knows it: codes of its reference, the words in them, and its speaker embedding.

Made once a voice by `Engine.prepare`, kept beside it as safetensors, and read for every utterance, so that a request
touches no recording. It is a cache: one of another model, of another recording, or damaged is refused and made anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from afterwords.audio.effects import resample
from afterwords.audio.wav import Samples
from afterwords.backends import qwen3
from afterwords.backends.base import InvalidPromptError

if TYPE_CHECKING:
    from afterwords.backends.qwen3.codec_config import CodecConfig
    from afterwords.backends.qwen3.config import ModelConfig

SILENCE_S: Final = 0.5
"""Laid behind a reference before it is encoded: without it the last sound of the reference begins what is spoken."""
MAX_BYTES: Final = 1 << 20
"""More than the codes of half an hour."""


class CodeEncoder(Protocol):
    """A codec's encoder: samples of shape (n,), float32 at its rate, to codes of shape (n_frames, n_codebooks)."""

    @property
    def sample_rate(self) -> int: ...

    def encode(self, samples: Samples) -> NDArray[np.uint16]: ...


class SpeakerEmbedder(Protocol):
    """A speaker encoder: samples of shape (n,), float32 at its rate, to an embedding of shape (speaker_width,)."""

    @property
    def sample_rate(self) -> int: ...

    def embed(self, samples: Samples) -> Samples: ...


class StalePromptError(InvalidPromptError):
    """A prompt that can't be used here, and has to be made anew from the reference."""

    def __init__(self, why: str) -> None:
        super().__init__(f"not a prompt for this model: {why}")


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """What the prompts of one model look like.

    Attributes:
        model: says whose weights they are, for example a backend and its revision.
        speaker_width: of its speaker embeddings.
        n_codebooks: codes of a frame.
        codebook_size: how many codes there are.
        text_vocab: how many tokens of text there are.
    """

    model: str
    speaker_width: int
    n_codebooks: int
    codebook_size: int
    text_vocab: int = 1 << 31

    @classmethod
    def of(cls, model: str, config: ModelConfig, codec: CodecConfig) -> PromptFormat:
        """The form for a checkpoint and its codec."""
        codebook_size, text_vocab = codec.decoder.codebook_size, config.talker.text_vocab
        return cls(model, config.speaker.width, codec.n_codebooks, codebook_size, text_vocab)


@dataclass(frozen=True, slots=True, eq=False)
class ReferencePrompt:
    """All that the talker needs to speak with a voice.

    Attributes:
        speaker: the speaker embedding, float32 of shape (speaker_width,).
        codes: of the reference and the silence behind it, uint16 of shape (n_frames, n_codebooks); None where its words
            are not known, and the embedding alone has to do.
        text_ids: tokens of what is said in it; empty where there are no codes.
        recording: SHA-256 of the reference, as `recording_digest`.
    """

    speaker: Samples = field(repr=False)
    codes: NDArray[np.uint16] | None = field(repr=False)
    text_ids: tuple[int, ...] = field(repr=False)
    recording: str

    def to_bytes(self, format: PromptFormat) -> bytes:
        """The bytes to keep beside the voice, about 400 of them for a second of the reference."""
        tensors: dict[str, NDArray[Any]] = {"speaker": self.speaker}
        if self.codes is not None:
            codes = np.ascontiguousarray(self.codes)  # safetensors writes memory as it lies, whatever its order
            tensors |= {"codes": codes, "text_ids": np.array(self.text_ids, np.int32)}
        facts = {"encoder": qwen3.ENCODER_VERSION, "model": format.model, "recording": self.recording}
        return save(tensors, metadata=facts | {"digest": _digest(facts, tensors)})

    @classmethod
    def from_bytes(cls, content: bytes, format: PromptFormat, *, recording: str | None = None) -> ReferencePrompt:
        """Read a prompt that was kept.

        Args:
            content: as `to_bytes` wrote it.
            form: of the model that is to speak.
            recording: the digest of the voice's reference, where it is at hand.

        Raises:
            StalePromptError: it is of another version, model or recording, or damaged.
        """
        facts, tensors = _read(content)
        _check_facts(facts, {"encoder": qwen3.ENCODER_VERSION, "model": format.model}, recording)
        if facts.get("digest") != _digest({k: v for k, v in facts.items() if k != "digest"}, tensors):
            raise StalePromptError("it is damaged")
        _check_tensors(tensors, format)
        codes = tensors.get("codes")
        text_ids = tuple(tensors["text_ids"].tolist()) if codes is not None else ()
        return cls(tensors["speaker"], codes, text_ids, facts["recording"])


def make_prompt(
    samples: Samples,
    sample_rate: int,
    *,
    text_ids: Sequence[int] = (),
    encoder: CodeEncoder,
    speaker: SpeakerEmbedder,
) -> ReferencePrompt:
    """Make the prompt of a voice.

    Args:
        samples: of the reference, shape (n_samples,), float32 mono in [-1, 1], at least 0.1 s.
        sample_rate: of them, in Hz.
        text_ids: tokens of all that is said in it, and of nothing else: with more or less, what is spoken falls apart.
            Empty where it is not known.
        encoder: makes the codes, unless there are no `text_ids`.
        speaker: makes the embedding.

    Raises:
        ValueError: the samples are none, of another shape, or not finite.
    """
    if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
        raise ValueError(f"samples of shape {samples.shape} are no mono recording of finite numbers")
    embedding = speaker.embed(_sound(samples, sample_rate, speaker.sample_rate))
    codes = None
    if text_ids:
        sound = _sound(samples, sample_rate, encoder.sample_rate)
        codes = encoder.encode(np.pad(sound, (0, round(SILENCE_S * encoder.sample_rate))))
    return ReferencePrompt(embedding, codes, tuple(text_ids), recording_digest(samples, sample_rate))


def recording_digest(samples: Samples, sample_rate: int) -> str:
    """Tell recordings apart: SHA-256 of the rate in Hz and the samples, as hexadecimal digits."""
    return sha256(f"{sample_rate} ".encode() + samples.astype("<f4").tobytes()).hexdigest()


def _sound(samples: Samples, from_rate: int, to_rate: int) -> Samples:
    return np.ascontiguousarray(resample(samples, from_rate, to_rate), np.float32)


def _digest(facts: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape} ".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _read(content: bytes) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """The facts and the tensors of a safetensors file, whose header is JSON behind its length in 8 bytes."""
    if len(content) > MAX_BYTES:
        raise StalePromptError(f"it has {len(content)} bytes")
    try:
        tensors = load(content)
        facts = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StalePromptError("it can't be read") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("recording"), str):
        raise StalePromptError("it does not say what recording it was made of")
    return facts, tensors


def _check_facts(facts: Mapping[str, str], expected: Mapping[str, str], recording: str | None) -> None:
    if recording is not None:
        expected = {**expected, "recording": recording}
    for name, value in expected.items():
        if facts.get(name) != value:
            raise StalePromptError(f"its {name} is {facts.get(name)!a}, not {value!a}")


def _check_tensors(tensors: Mapping[str, NDArray[Any]], format: PromptFormat) -> None:
    """Refuse what the talker could not take, though it was written so."""
    speaker, codes = tensors.get("speaker"), tensors.get("codes")
    if speaker is None or speaker.shape != (format.speaker_width,) or speaker.dtype != np.float32:
        raise StalePromptError("its speaker embedding has another form")
    if not np.isfinite(speaker).all():
        raise StalePromptError("its speaker embedding is not finite")
    if codes is None:
        return
    if codes.ndim != 2 or codes.shape[1] != format.n_codebooks or codes.dtype != np.uint16 or not len(codes):
        raise StalePromptError("its codes have another form")
    if codes.max() >= format.codebook_size or not tensors.get("text_ids", np.empty(0)).size:
        raise StalePromptError("its codes are beyond the codebooks, or without words")
    words = tensors["text_ids"]
    if words.ndim != 1 or words.dtype != np.int32 or words.min() < 0 or words.max() >= format.text_vocab:
        raise StalePromptError("its words are no tokens of this model")
