"""One checkpoint in MLX: what hears references, writes prompts, and makes speech of them.

All that computes here runs on the thread of `Owner`; texts are laid out on whatever thread asks.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from afterwords.audio.wav import Samples
from afterwords.backends.base import Progress, Reference, ignore_progress
from afterwords.backends.qwen3.codec_config import CodecConfig, check_codes, read_codec_config
from afterwords.backends.qwen3.config import LANGUAGE_NAMES, ModelConfig, Sampling, read_config
from afterwords.backends.qwen3.layout import Layout, lay_out
from afterwords.backends.qwen3.mlx.codec import CodecDecoder, CodecState
from afterwords.backends.qwen3.mlx.decode_step import FrameSpeaker
from afterwords.backends.qwen3.mlx.thread import Owner
from afterwords.backends.qwen3.mlx.weights import CODEC, load_parts
from afterwords.backends.qwen3.reference_prompt import PromptForm, ReferencePrompt, make_prompt
from afterwords.backends.qwen3.request import Turn
from afterwords.backends.qwen3.tokenizer import TextTokenizer

VOICES_KEPT: Final = 16
"""Voices whose frames and codec stand ready in memory: some 5 MB each, of published sizes."""


@dataclass(frozen=True, slots=True)
class Script:
    """One utterance on paper.

    Attributes:
        layout: of its prompt.
        voice: whose it is.
    """

    layout: Layout = field(repr=False)
    voice: ReferencePrompt

    @property
    def columns(self) -> Sequence[int]:
        """One for each position that the talker hears before it speaks."""
        return self.layout.text


@dataclass(frozen=True, slots=True)
class _Standing:
    """A voice in MLX's memory: what the talker hears of it, and the codec behind its reference."""

    speaker: mx.array
    frames: mx.array
    primed: CodecState


class Model:
    """A loaded checkpoint.

    Attributes:
        network: mlx-audio's talker and speaker encoder.
        decoder: makes sound.
        form: what its prompts look like.
    """

    def __init__(self, folder: Path, *, name: str, owner: Owner, progress: Progress = ignore_progress) -> None:
        """Load a checkpoint.

        Args:
            folder: of it.
            name: what its prompts say they were made for.
            owner: of the thread that runs MLX.
            progress: told how far it is.

        Raises:
            ModelError: a file is missing, damaged or of another model.
        """
        self.config: ModelConfig = read_config(folder)
        self.codec: CodecConfig = read_codec_config(folder / CODEC)
        check_codes(self.config, self.codec, folder / CODEC)
        self._tokenizer = TextTokenizer(folder, self.config.tokens, vocab=self.config.talker.text_vocab)
        self.form = PromptForm.of(name, self.config, self.codec)
        self._owner = owner
        self._reading = threading.Lock()
        self._prompts: LRUCache[bytes, ReferencePrompt] = LRUCache(VOICES_KEPT)
        self._speakers: dict[Sampling, FrameSpeaker] = {}
        self._standing: LRUCache[ReferencePrompt, _Standing] = LRUCache(VOICES_KEPT)
        progress(0.05, "loading the weights")
        parts = owner.run(lambda: load_parts(folder))
        self.network, self._codec = parts.network, parts.codec
        self.decoder = CodecDecoder(
            parts.codec.decoder, window=self.codec.decoder.window, samples_per_frame=self.codec.decode_upsample_rate
        )
        progress(1.0, "done")

    def hear(self, reference: Reference) -> ReferencePrompt:
        """Make the prompt of a voice: in context where its words are known, else its speaker embedding alone."""
        text_ids = self._tokenizer.encode(reference.text) if reference.text else []
        prompt = make_prompt(
            reference.samples,
            reference.sample_rate,
            text_ids=text_ids,
            encoder=_Codes(self._owner, self._codec, self.codec.input_sample_rate),
            speaker=_Speaker(self._owner, self.network, self.config.speaker.sample_rate),
        )
        self._owner.run(mx.clear_cache)  # what the encoders took is not needed again soon
        return prompt

    def voice(self, prompt: bytes) -> ReferencePrompt:
        """The voice of a prompt, the same object as long as it is among the last few.

        Raises:
            StalePromptError: it is no prompt of this model.
        """
        with self._reading:
            if prompt not in self._prompts:
                self._prompts[prompt] = ReferencePrompt.from_bytes(prompt, self.form)
            return self._prompts[prompt]

    def n_tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self._tokenizer.encode(text))

    def turn(
        self, voice: ReferencePrompt, text: str, lang: str, *, max_frames: int, seed: int
    ) -> Turn[Script, CodecState]:
        """One utterance, to be handed in to a loop, drawn as the checkpoint says."""
        layout = lay_out(
            self.config,
            self._tokenizer.role,
            self._tokenizer.encode(text),
            reference_ids=voice.text_ids,
            n_frames=0 if voice.codes is None else len(voice.codes),
            language=LANGUAGE_NAMES[lang],
        )
        sampling = replace(self.config.sampling, seed=seed)
        return Turn(Script(layout, voice), None, max_frames=max_frames, sampling=sampling)

    # -- on the owner's thread -----------------------------------------------------------------------------------

    def columns(self, scripts: Sequence[Script]) -> mx.array:
        """What the talker hears before it speaks, shape (n_rows, n_columns, hidden); all of one voice and length."""
        text = self.text([script.layout.text for script in scripts])
        layout, voice = scripts[0].layout, self.standing(scripts[0].voice)
        steering, closing = self._control(layout.steering), self._control(layout.closing)
        track = mx.concatenate([steering, voice.speaker, closing, voice.frames])
        return mx.concatenate([text[:, : -len(track)], text[:, -len(track) :] + track], axis=1)

    def text(self, ids: Sequence[Sequence[int]]) -> mx.array:
        """Text tokens as the talker hears them, shape (n_rows, n, hidden)."""
        talker = self.network.talker
        heard: mx.array = talker.text_projection(talker.get_text_embeddings()(mx.array([list(row) for row in ids])))
        return heard

    def speaker_of_frames(self, sampling: Sampling) -> FrameSpeaker:
        """What speaks frames with such a sampling, whatever its seed; made and compiled once."""
        drawing = replace(sampling, seed=0)
        if drawing not in self._speakers:
            self._speakers[drawing] = FrameSpeaker(self.network.talker, self.config, drawing)
        return self._speakers[drawing]

    def standing(self, voice: ReferencePrompt) -> _Standing:
        """A voice in memory; the last few are kept there."""
        if voice not in self._standing:
            self._standing[voice] = self._placed(voice)
        return self._standing[voice]

    def _placed(self, voice: ReferencePrompt) -> _Standing:
        like = self.network.talker.get_input_embeddings()(mx.array([0]))
        speaker = mx.array(voice.speaker)[None].astype(like.dtype)
        if voice.codes is None:
            return _Standing(speaker, like[:0], CodecState())
        codes = mx.array(voice.codes.astype(np.int32))
        groups = [codes[:, group] for group in range(codes.shape[1])]
        frames = self.speaker_of_frames(self.config.sampling).embedding(groups)
        mx.eval(speaker, frames)
        standing = _Standing(speaker, frames, self.decoder.prime(voice.codes))
        mx.clear_cache()  # of what priming took, and of a voice that went for this one
        return standing

    def _control(self, ids: Sequence[int]) -> mx.array:
        heard: mx.array = self.network.talker.get_input_embeddings()(mx.array(list(ids)))
        return heard


@dataclass(frozen=True, slots=True)
class _Codes:
    """The codec's encoder, as `make_prompt` calls it."""

    owner: Owner
    codec: Any
    sample_rate: int

    def encode(self, samples: Samples) -> NDArray[np.uint16]:
        codes = self.owner.run(lambda: np.array(self.codec.encode(mx.array(samples)[None, None])[0]))
        return np.ascontiguousarray(codes.T, np.uint16)


@dataclass(frozen=True, slots=True)
class _Speaker:
    """The speaker encoder, as `make_prompt` calls it."""

    owner: Owner
    network: Any
    sample_rate: int

    def embed(self, samples: Samples) -> Samples:
        embed = self.network.extract_speaker_embedding
        told: Samples = self.owner.run(lambda: np.array(embed(mx.array(samples))[0].astype(mx.float32)))
        return told
