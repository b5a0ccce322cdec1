"""Prompts for the talker in torch: the columns of a layout, summed up, and the text that follows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from afterwords.backends.qwen3.config import ModelConfig
from afterwords.backends.qwen3.layout import Layout, lay_out
from afterwords.backends.qwen3.tokenizer import TextTokenizer
from afterwords.backends.qwen3.torch.embeddings import Embeddings


@dataclass(frozen=True, slots=True)
class Prompt:
    """One utterance, ready for the talker.

    Attributes:
        columns: shape (n_columns, hidden).
        trailing: text tokens that are heard one a frame, after the columns; shape (n,), on the host.
    """

    columns: Tensor = field(repr=False)
    trailing: Tensor = field(repr=False)


class Prompts:
    """Writes prompts for one loaded talker."""

    def __init__(self, config: ModelConfig, embeddings: Embeddings, tokenizer: TextTokenizer) -> None:
        self._config = config
        self._embeddings = embeddings
        self._tokenizer = tokenizer

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, for example of what is said in a reference."""
        return self._tokenizer.encode(text)

    @torch.inference_mode()
    def from_speaker(self, text: str, *, speaker: Tensor, language: str | None = None) -> Prompt:
        """Speak a text in the voice of a speaker embedding alone.

        Args:
            text: has at least one token.
            speaker: shape (hidden,).
            language: by the checkpoint's own name; None lets the model hear it from the text.

        Raises:
            ValueError: the text is empty, or the language is none of the checkpoint's.
        """
        layout = lay_out(self._config, self._tokenizer.role, self.tokens(text), language=language)
        return self._written(layout, speaker, [])

    @torch.inference_mode()
    def in_context(
        self, text: str, *, reference_ids: Sequence[int], codes: Tensor, speaker: Tensor, language: str | None = None
    ) -> Prompt:
        """Speak a text as the continuation of a reference.

        Args:
            text: has at least one token.
            reference_ids: tokens of what is said in the reference, all of it and nothing else.
            codes: frames of the reference, shape (n_frames, n_code_groups), integers.
            speaker: shape (hidden,).
            language: by the checkpoint's own name; None lets the model hear it from the text.

        Raises:
            ValueError: the text is empty, the codes are none, or the language is none of the checkpoint's.
        """
        codes = self._checked(codes)
        layout = lay_out(
            self._config,
            self._tokenizer.role,
            self.tokens(text),
            reference_ids=reference_ids,
            n_frames=len(codes),
            language=language,
        )
        return self._written(layout, speaker, [self._embeddings.frames(codes)])

    def _written(self, layout: Layout, speaker: Tensor, frames: list[Tensor]) -> Prompt:
        """The columns of a layout, with the frames of a reference if there are any."""
        if speaker.shape != (self._config.talker.stack.hidden,):
            raise ValueError(f"a speaker embedding of shape {tuple(speaker.shape)} is none of this model's")
        heard = self._embeddings
        track = [heard.control(layout.steering), speaker.to(heard.codes)[None], heard.control(layout.closing), *frames]
        columns = heard.text(torch.tensor(layout.text, device=heard.codes.device))
        columns[len(self._tokenizer.role) :] += torch.cat(track)
        return Prompt(columns, torch.tensor(layout.trailing, dtype=torch.int64))

    def _checked(self, codes: Tensor) -> Tensor:
        n_groups, n_codes = self._config.talker.n_code_groups, self._config.predictor.vocab
        codes = codes.to(torch.int64)  # first of all: they are kept as uint16, which can't be compared
        if codes.ndim != 2 or codes.shape[1] != n_groups or not len(codes):
            raise ValueError(f"codes of shape {tuple(codes.shape)} are no frames of {n_groups} codes")
        if codes.min() < 0 or codes.max() >= n_codes:
            raise ValueError(f"codes must lie between 0 and {n_codes - 1}")
        return codes.to(self._embeddings.offsets.device)
