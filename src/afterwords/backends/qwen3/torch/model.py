"""A checkpoint on one device, loaded once and shared by all utterances."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import torch
from cachetools import LRUCache

from afterwords.backends.base import Progress, Reference, ignore_progress
from afterwords.backends.qwen3.codec_config import CodecConfig, check_codes, read_codec_config
from afterwords.backends.qwen3.config import LANGUAGE_NAMES, ModelConfig, read_config
from afterwords.backends.qwen3.reference_prompt import PromptFormat, ReferencePrompt, make_prompt
from afterwords.backends.qwen3.request import DecodeRequest
from afterwords.backends.qwen3.tokenizer import TextTokenizer
from afterwords.backends.qwen3.torch import ops as torch_ops
from afterwords.backends.qwen3.torch.agreement import Agreement, quantize
from afterwords.backends.qwen3.torch.codec_decoder import CodecDecoder, DecoderState
from afterwords.backends.qwen3.torch.codec_encoder import CodecEncoder
from afterwords.backends.qwen3.torch.ops import Ops
from afterwords.backends.qwen3.torch.prompt import Prompt, Prompts
from afterwords.backends.qwen3.torch.speaker import SpeakerEncoder
from afterwords.backends.qwen3.torch.talker import Talker
from afterwords.backends.qwen3.torch.weights import Weights

logger = logging.getLogger(__name__)
CODEC: Final = "speech_tokenizer"
MAX_CACHED_VOICES: Final = 16
"""Voices whose codec state is kept on the device: 4 MB each."""
_SENTENCE: Final = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True, slots=True)
class VoiceOnDevice:
    """A prompt, and the state of the codec after its reference.

    Attributes:
        codec_state: None if the voice is a speaker embedding alone.
    """

    prompt: ReferencePrompt
    codec_state: DecoderState | None


class TorchModel:
    """A loaded checkpoint.

    Attributes:
        talker, prompts, decoder: The parts that synthesize.
        format: Format of its prompts.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress = ignore_progress,
    ) -> None:
        """Load the parts that synthesize; the encoders are loaded when a voice is prepared.

        Prompts record the name. The encoders are float32 for any dtype, or their codes would differ.

        Raises:
            ModelError: A file is missing, damaged or of another model.
        """
        self._folder, self.device = folder, device
        self._dtype = dtype
        self._encoder_lock, self._voice_lock = threading.Lock(), threading.Lock()
        self._voices: LRUCache[bytes, VoiceOnDevice] = LRUCache(MAX_CACHED_VOICES)
        self.config: ModelConfig = read_config(folder)
        self.codec: CodecConfig = read_codec_config(folder / CODEC)
        check_codes(self.config, self.codec, folder / CODEC)
        tokenizer = TextTokenizer(folder, self.config.tokens, vocab=self.config.talker.text_vocab)
        with Weights.open(folder, device=device, dtype=dtype) as weights:
            progress(0.05, "loading the talker")
            ops = fastest_ops(device)
            self.talker = Talker(weights, self.config, ops=ops)
        with Weights.open(folder / CODEC, device=device, dtype=dtype) as weights:
            progress(0.8, "loading the codec")
            weights.skip("encoder.")
            self.decoder = CodecDecoder(self.codec, weights, ops=ops)
        self.prompts = Prompts(self.config, self.talker.embeddings, tokenizer)
        self.format = PromptFormat.of(name, self.config, self.codec)
        progress(1.0, "done")

    def quantize(self, precision: str) -> Agreement:
        """Quantize the talker to "fp8" or "int8", and measure the effect on a sentence."""
        speaker = torch.zeros(self.config.talker.stack.hidden, device=self.device)
        return quantize(self.talker, self.decoder, self.prompts.build(_SENTENCE, speaker=speaker), precision)

    @torch.inference_mode()
    def encode_reference(self, reference: Reference) -> ReferencePrompt:
        """Make the prompt of a voice: in context if its transcript is known, else the speaker embedding alone."""
        with self._encoder_lock:  # since Python 3.12, two threads would both load them
            encoder, speaker = self._encoders
        return make_prompt(
            reference.samples,
            reference.sample_rate,
            text_ids=self.prompts.tokens(reference.text) if reference.text else (),
            encode=encoder.encode,
            encode_rate=encoder.sample_rate,
            embed=speaker.embed,
            embed_rate=speaker.sample_rate,
        )

    def load_voice(self, prompt: bytes) -> VoiceOnDevice:
        """Return the voice of a prompt on the device; the most recently used ones are cached.

        Raises:
            StalePromptError: The prompt does not fit this model.
        """
        with self._voice_lock:
            if prompt not in self._voices:
                self._voices[prompt] = self.to_device(ReferencePrompt.from_bytes(prompt, self.format))
            return self._voices[prompt]

    def forget_voices(self) -> None:
        """Remove all voices from the cache."""
        with self._voice_lock:
            self._voices.clear()

    @torch.inference_mode()
    def to_device(self, prompt: ReferencePrompt) -> VoiceOnDevice:
        """Copy a voice to the device and prefill the codec with its reference."""
        if prompt.codes is None:
            return VoiceOnDevice(prompt, None)
        codes = torch.from_numpy(prompt.codes.astype(np.int64)).to(self.device)
        return VoiceOnDevice(prompt, self.decoder.prefill_codec(codes))

    @torch.inference_mode()
    def prompt(self, voice: VoiceOnDevice, text: str, lang: str) -> Prompt:
        """Build the prompt of one utterance.

        Raises:
            KeyError, ValueError: The text has no token, or the checkpoint does not know the language.
        """
        speaker = torch.from_numpy(voice.prompt.speaker).to(self.device)
        codes = None if voice.prompt.codes is None else torch.from_numpy(voice.prompt.codes.astype(np.int64))
        return self.prompts.build(
            text,
            speaker=speaker,
            language=LANGUAGE_NAMES[lang],
            reference_ids=voice.prompt.text_ids,
            codes=codes,
        )

    def make_request(
        self, voice: VoiceOnDevice, text: str, lang: str, *, max_frames: int, seed: int
    ) -> DecodeRequest[Prompt, DecoderState]:
        """Return a request for one utterance, with the sampling parameters of the checkpoint."""
        sampling = replace(self.config.sampling, seed=seed)
        return DecodeRequest(
            self.prompt(voice, text, lang), voice.codec_state, max_frames=max_frames, sampling=sampling
        )

    def n_tokens(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self.prompts.tokens(text))

    def row_bytes(self, n_positions: int) -> int:
        """Return the size of the talker's cache for one row."""
        stack = self.config.talker.stack
        return stack.n_layers * n_positions * 2 * stack.n_kv_heads * stack.head_dim * self._dtype.itemsize

    @cached_property
    def _encoders(self) -> tuple[CodecEncoder, SpeakerEncoder]:
        with Weights.open(self._folder / CODEC, device=self.device, dtype=torch.float32) as weights:
            weights.skip("decoder.")
            encoder = CodecEncoder(self.codec, weights)
        with Weights.open(self._folder, device=self.device, dtype=torch.float32) as weights:
            weights.skip("talker.")
            return encoder, SpeakerEncoder(self.config.speaker, weights)


def fastest_ops(device: torch.device) -> Ops:
    """Return the operations of a decoder layer: Triton kernels if they can be compiled, else plain torch."""
    if device.type != "cuda" or find_spec("triton") is None:
        return torch_ops
    from afterwords.backends.qwen3.torch import kernels

    try:
        kernels.swiglu(torch.zeros(1, 2, device=device))
    except Exception as error:  # noqa: BLE001 - Triton needs a C compiler and a supported driver
        logger.warning("Triton can't compile kernels here, so synthesis is slower: %s", error)
        return torch_ops
    return kernels
