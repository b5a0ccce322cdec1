"""The prompt of a voice: the codes of its reference, the tokens of its transcript, and its speaker embedding.

`Engine.prepare` makes it once per voice; it is stored as safetensors and read for every utterance. It is a cache: a
prompt of another model or recording, or a damaged one, is refused and made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

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
"""Appended to a reference before it is encoded: without it, the speech would start with the reference's last sound."""
MAX_BYTES: Final = 1 << 20
"""More than the codes of half an hour."""


class StalePromptError(InvalidPromptError):
    """A prompt that does not fit, and must be made again from the reference."""

    def __init__(self, why: str) -> None:
        super().__init__(f"not a prompt for this model: {why}")


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """The format of a model's prompts; `model` identifies the weights, for example a backend with a revision."""

    model: str
    speaker_width: int
    n_codebooks: int
    codebook_size: int
    text_vocab: int = 1 << 31

    @classmethod
    def of(cls, model: str, config: ModelConfig, codec: CodecConfig) -> PromptFormat:
        """Return the format for a checkpoint and its codec."""
        codebook_size, text_vocab = codec.decoder.codebook_size, config.talker.text_vocab
        return cls(model, config.speaker.width, codec.n_codebooks, codebook_size, text_vocab)


@dataclass(frozen=True, slots=True, eq=False)
class ReferencePrompt:
    """The prompt of a voice.

    Attributes:
        speaker: Speaker embedding, float32 of shape (speaker_width,).
        codes: Codes of the reference and the silence after it, uint16 of shape (n_frames, n_codebooks); None if the
            transcript is unknown.
        text_ids: Tokens of the transcript; empty without codes.
        recording: `recording_digest` of the reference.
    """

    speaker: Samples = field(repr=False)
    codes: NDArray[np.uint16] | None = field(repr=False)
    text_ids: tuple[int, ...] = field(repr=False)
    recording: str

    def to_bytes(self, format: PromptFormat) -> bytes:
        """Serialize the prompt, in about 400 bytes per second of the reference."""
        tensors: dict[str, NDArray[Any]] = {"speaker": self.speaker}
        if self.codes is not None:
            codes = np.ascontiguousarray(self.codes)  # safetensors writes the memory as it is
            tensors |= {"codes": codes, "text_ids": np.array(self.text_ids, np.int32)}
        facts = {"encoder": qwen3.ENCODER_VERSION, "model": format.model, "recording": self.recording}
        return save(tensors, metadata=facts | {"digest": _digest(facts, tensors)})

    @classmethod
    def from_bytes(cls, content: bytes, format: PromptFormat, *, recording: str | None = None) -> ReferencePrompt:
        """Read a serialized prompt.

        Args:
            content: Bytes from `to_bytes`.
            format: Format of the model's prompts.
            recording: Digest of the voice's reference, if known.

        Raises:
            StalePromptError: The prompt is of another version, model or recording, or damaged.
        """
        if len(content) > MAX_BYTES:
            raise StalePromptError(f"it has {len(content)} bytes")
        try:  # the header of safetensors: JSON after its length in 8 bytes
            tensors = load(content)
            facts = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StalePromptError("it can't be read") from error
        if not isinstance(facts, dict) or not isinstance(facts.get("recording"), str):
            raise StalePromptError("it does not name its recording")
        expected = {"encoder": qwen3.ENCODER_VERSION, "model": format.model}
        for name, value in (expected | ({} if recording is None else {"recording": recording})).items():
            if facts.get(name) != value:
                raise StalePromptError(f"its {name} is {facts.get(name)!a}, not {value!a}")
        if facts.get("digest") != _digest({k: v for k, v in facts.items() if k != "digest"}, tensors):
            raise StalePromptError("it is damaged")
        speaker, codes, words = (tensors.get(name) for name in ("speaker", "codes", "text_ids"))
        if speaker is None or speaker.shape != (format.speaker_width,) or speaker.dtype != np.float32:
            raise StalePromptError("its speaker embedding has another shape")
        if not np.isfinite(speaker).all():
            raise StalePromptError("its speaker embedding is not finite")
        if codes is None:
            return cls(speaker, None, (), facts["recording"])
        if codes.ndim != 2 or codes.shape[1] != format.n_codebooks or codes.dtype != np.uint16 or not len(codes):
            raise StalePromptError("its codes have another shape")
        if codes.max() >= format.codebook_size or words is None or not words.size:
            raise StalePromptError("its codes are beyond the codebooks, or without a transcript")
        if words.ndim != 1 or words.dtype != np.int32 or words.min() < 0 or words.max() >= format.text_vocab:
            raise StalePromptError("its tokens are not of this model")
        return cls(speaker, codes, tuple(words.tolist()), facts["recording"])


def make_prompt(
    samples: Samples,
    sample_rate: int,
    *,
    text_ids: Sequence[int] = (),
    encode: Callable[[Samples], NDArray[np.uint16]],
    encode_rate: int,
    embed: Callable[[Samples], Samples],
    embed_rate: int,
) -> ReferencePrompt:
    """Make the prompt of a voice.

    Args:
        samples: The reference, float32 mono of shape (n_samples,) in [-1, 1], at least 0.1 s.
        sample_rate: Its sample rate in Hz.
        text_ids: Tokens of the exact transcript; with more or less, the speech degrades. Empty if unknown.
        encode: Encoder of the codec: float32 samples of shape (n,) to codes of shape (n_frames, n_codebooks). Used
            if there are `text_ids`.
        encode_rate: Sample rate of its input in Hz.
        embed: Speaker encoder: float32 samples of shape (n,) to an embedding of shape (speaker_width,).
        embed_rate: Sample rate of its input in Hz.

    Raises:
        ValueError: The samples are empty, of another shape, or not finite.
    """
    if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
        raise ValueError(f"samples of shape {samples.shape} are not a mono recording of finite numbers")
    embedding = embed(_resample(samples, sample_rate, embed_rate))
    codes = None
    if text_ids:
        sound = _resample(samples, sample_rate, encode_rate)
        codes = encode(np.pad(sound, (0, round(SILENCE_S * encode_rate))))
    return ReferencePrompt(embedding, codes, tuple(text_ids), recording_digest(samples, sample_rate))


def recording_digest(samples: Samples, sample_rate: int) -> str:
    """Return the SHA-256 of the sample rate in Hz and the samples, as hexadecimal digits."""
    return sha256(f"{sample_rate} ".encode() + samples.astype("<f4").tobytes()).hexdigest()


def _resample(samples: Samples, from_rate: int, to_rate: int) -> Samples:
    return np.ascontiguousarray(resample(samples, from_rate, to_rate), np.float32)


def _digest(facts: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape} ".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
