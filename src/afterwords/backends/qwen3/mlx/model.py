"""A checkpoint in MLX: encodes references, builds prompts and decodes speech.

Computation runs on the `DeviceThread`; text is tokenized and laid out on the calling thread.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import mlx.core as mx
import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from afterwords.audio.wav import Samples
from afterwords.backends.base import Progress, Reference, ignore_progress
from afterwords.backends.qwen3.codec_config import CodecConfig, check_codes, read_codec_config
from afterwords.backends.qwen3.config import LANGUAGE_NAMES, ModelConfig, Sampling, read_config
from afterwords.backends.qwen3.layout import Layout, lay_out
from afterwords.backends.qwen3.mlx.codec import CodecState, MlxCodecDecoder
from afterwords.backends.qwen3.mlx.decode_step import FrameDecoder
from afterwords.backends.qwen3.mlx.thread import DeviceThread
from afterwords.backends.qwen3.mlx.weights import CODEC, load_modules
from afterwords.backends.qwen3.reference_prompt import PromptFormat, ReferencePrompt, make_prompt
from afterwords.backends.qwen3.request import DecodeRequest
from afterwords.backends.qwen3.tokenizer import TextTokenizer

MAX_CACHED_VOICES: Final = 16
"""Voices that are kept in memory: about 5 MB each, for the published sizes."""


@dataclass(frozen=True, slots=True)
class MlxPrompt:
    """The prompt of one utterance: its layout, and its voice."""

    layout: Layout = field(repr=False)
    voice: ReferencePrompt

    @property
    def columns(self) -> Sequence[int]:
        """One item for each position of the prefill."""
        return self.layout.text


@dataclass(frozen=True, slots=True)
class _VoiceOnDevice:
    """A voice as MLX arrays: talker inputs, and the codec state after the reference."""

    speaker: mx.array
    frames: mx.array
    codec_state: CodecState


class MlxModel:
    """A loaded checkpoint.

    Attributes:
        network: mlx-audio's talker and speaker encoder.
        decoder: Decoder of the codec.
        format: Format of its prompts.
    """

    def __init__(
        self, folder: Path, *, name: str, device_thread: DeviceThread, progress: Progress = ignore_progress
    ) -> None:
        """Load a checkpoint, whose prompts record the name.

        Raises:
            ModelError: A file is missing, damaged or of another model.
        """
        self.config: ModelConfig = read_config(folder)
        self.codec: CodecConfig = read_codec_config(folder / CODEC)
        check_codes(self.config, self.codec, folder / CODEC)
        self._tokenizer = TextTokenizer(folder, self.config.tokens, vocab=self.config.talker.text_vocab)
        self.format = PromptFormat.of(name, self.config, self.codec)
        self._device_thread = device_thread
        self._voice_lock = threading.Lock()
        self._prompts: LRUCache[bytes, ReferencePrompt] = LRUCache(MAX_CACHED_VOICES)
        self._frame_decoders: dict[Sampling, FrameDecoder] = {}
        self._voices_on_device: LRUCache[ReferencePrompt, _VoiceOnDevice] = LRUCache(MAX_CACHED_VOICES)
        progress(0.05, "loading the weights")
        self.network, self._codec = device_thread.run(lambda: load_modules(folder))
        self.decoder = MlxCodecDecoder(
            self._codec.decoder, window=self.codec.decoder.window, samples_per_frame=self.codec.decode_upsample_rate
        )
        progress(1.0, "done")

    def encode_reference(self, reference: Reference) -> ReferencePrompt:
        """Make the prompt of a voice: in context if its transcript is known, else the speaker embedding alone."""

        def encode(samples: Samples) -> NDArray[np.uint16]:
            codes = self._device_thread.run(lambda: np.array(self._codec.encode(mx.array(samples)[None, None])[0]))
            return np.ascontiguousarray(codes.T, np.uint16)

        def embed(samples: Samples) -> Samples:
            extract = self.network.extract_speaker_embedding
            return self._device_thread.run(lambda: np.array(extract(mx.array(samples))[0].astype(mx.float32)))

        prompt = make_prompt(
            reference.samples,
            reference.sample_rate,
            text_ids=self._tokenizer.encode(reference.text) if reference.text else (),
            encode=encode,
            encode_rate=self.codec.input_sample_rate,
            embed=embed,
            embed_rate=self.config.speaker.sample_rate,
        )
        self._device_thread.run(mx.clear_cache)  # the memory of the encoders
        return prompt

    def load_voice(self, prompt: bytes) -> ReferencePrompt:
        """Return the voice of a prompt, the same object while it is in the cache.

        Raises:
            StalePromptError: The prompt does not fit this model.
        """
        with self._voice_lock:
            if prompt not in self._prompts:
                self._prompts[prompt] = ReferencePrompt.from_bytes(prompt, self.format)
            return self._prompts[prompt]

    def forget_voices(self) -> None:
        """Remove all voices from the caches."""
        with self._voice_lock:
            self._prompts.clear()
        self._device_thread.run(self._voices_on_device.clear)

    def n_tokens(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self._tokenizer.encode(text))

    def make_request(
        self, voice: ReferencePrompt, text: str, lang: str, *, max_frames: int, seed: int
    ) -> DecodeRequest[MlxPrompt, CodecState]:
        """Return a request for one utterance, with the sampling parameters of the checkpoint."""
        layout = lay_out(
            self.config,
            self._tokenizer.role,
            self._tokenizer.encode(text),
            reference_ids=voice.text_ids,
            n_frames=0 if voice.codes is None else len(voice.codes),
            language=LANGUAGE_NAMES[lang],
        )
        sampling = replace(self.config.sampling, seed=seed)
        return DecodeRequest(MlxPrompt(layout, voice), None, max_frames=max_frames, sampling=sampling)

    # -- on the device thread ------------------------------------------------------------------------------------

    def columns(self, prompts: Sequence[MlxPrompt]) -> mx.array:
        """Return the talker inputs of prompts of one voice and length, shape (n_rows, n_columns, hidden)."""
        text = self.embed_text([prompt.layout.text for prompt in prompts])
        layout, voice = prompts[0].layout, self.voice_on_device(prompts[0].voice)
        embed_codes = self.network.talker.get_input_embeddings()
        steering, closing = (embed_codes(mx.array(list(ids))) for ids in (layout.steering, layout.closing))
        track = mx.concatenate([steering, voice.speaker, closing, voice.frames])
        return mx.concatenate([text[:, : -len(track)], text[:, -len(track) :] + track], axis=1)

    def embed_text(self, ids: Sequence[Sequence[int]]) -> mx.array:
        """Return the talker inputs of text tokens, shape (n_rows, n, hidden)."""
        talker = self.network.talker
        embedded: mx.array = talker.text_projection(talker.get_text_embeddings()(mx.array([list(row) for row in ids])))
        return embedded

    def frame_decoder(self, sampling: Sampling) -> FrameDecoder:
        """Return the frame decoder for sampling parameters, compiled once for all seeds."""
        key = replace(sampling, seed=0)
        if key not in self._frame_decoders:
            self._frame_decoders[key] = FrameDecoder(self.network.talker, self.config, key)
        return self._frame_decoders[key]

    def voice_on_device(self, voice: ReferencePrompt) -> _VoiceOnDevice:
        """Return a voice as MLX arrays; the most recently used ones are cached."""
        if voice in self._voices_on_device:
            return self._voices_on_device[voice]
        like = self.network.talker.get_input_embeddings()(mx.array([0]))
        speaker = mx.array(voice.speaker)[None].astype(like.dtype)
        on_device = _VoiceOnDevice(speaker, like[:0], CodecState())
        if voice.codes is not None:
            codes = mx.array(voice.codes.astype(np.int32))
            groups = [codes[:, group] for group in range(codes.shape[1])]
            frames = self.frame_decoder(self.config.sampling).embed(groups)
            mx.eval(speaker, frames)
            on_device = _VoiceOnDevice(speaker, frames, self.decoder.prefill_codec(voice.codes))
            mx.clear_cache()  # the memory of the prefill, and of an evicted voice
        self._voices_on_device[voice] = on_device
        return on_device
