"""Inputs of the talker in torch: the embedding tables, and prompts as the embedded columns of a layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from afterwords.backends.qwen3.config import ModelConfig
from afterwords.backends.qwen3.layout import lay_out
from afterwords.backends.qwen3.tokenizer import TextTokenizer
from afterwords.backends.qwen3.torch.weights import Weights, take_affine


class Embeddings:
    """The embedding tables of a talker: projected text tokens, and frames as the sum of the embeddings of their codes.

    Attributes:
        codes: Shape (vocab + (n_code_groups - 1) * codes, hidden): the first codebook and the control ids, then the
            other codebooks.
        offsets: Row of `codes` where each codebook starts, shape (n_code_groups,).
    """

    def __init__(self, weights: Weights, config: ModelConfig) -> None:
        talker, hidden, text = config.talker, config.talker.stack.hidden, config.talker.text_hidden
        n_others = talker.n_code_groups - 1
        other = "talker.code_predictor.model.codec_embedding.{}.weight"
        self.codes = weights.join(
            [
                ("talker.model.codec_embedding.weight", (talker.vocab, hidden)),
                *((other.format(group), (talker.predictor.vocab, hidden)) for group in range(n_others)),
            ]
        )
        begins = [0, *(talker.vocab + group * talker.predictor.vocab for group in range(n_others))]
        self.offsets = torch.tensor(begins, device=weights.device)
        self._text = weights.take("talker.model.text_embedding.weight", (talker.text_vocab, text))
        self._inner = take_affine(weights, "talker.text_projection.linear_fc1", (text, text))
        self._outer = take_affine(weights, "talker.text_projection.linear_fc2", (hidden, text))

    def text(self, ids: Tensor) -> Tensor:
        """Embed text tokens of shape (n,), as shape (n, hidden)."""
        narrow = functional.silu(functional.linear(functional.embedding(ids, self._text), *self._inner))
        return functional.linear(narrow, *self._outer)

    def control(self, ids: Sequence[int]) -> Tensor:
        """Embed control ids, or codes of the first codebook, as shape (n, hidden)."""
        return functional.embedding(torch.tensor(ids, device=self.codes.device), self.codes)

    def frames(self, codes: Tensor) -> Tensor:
        """Embed frames of shape (n, n_code_groups) as the sum of their codes, shape (n, hidden)."""
        return functional.embedding(codes + self.offsets, self.codes).sum(1)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of one utterance.

    Attributes:
        columns: Shape (n_columns, hidden).
        trailing: Text tokens after the columns, one per frame; shape (n,), on the host.
    """

    columns: Tensor = field(repr=False)
    trailing: Tensor = field(repr=False)


class Prompts:
    """Builds prompts for a talker."""

    def __init__(self, config: ModelConfig, embeddings: Embeddings, tokenizer: TextTokenizer) -> None:
        self._config = config
        self._embeddings = embeddings
        self._tokenizer = tokenizer

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return self._tokenizer.encode(text)

    @torch.inference_mode()
    def build(
        self,
        text: str,
        *,
        speaker: Tensor,
        language: str | None = None,
        reference_ids: Sequence[int] = (),
        codes: Tensor | None = None,
    ) -> Prompt:
        """Build a prompt: in context if there are codes, else with the speaker embedding alone.

        Args:
            text: Text with at least one token.
            speaker: Shape (hidden,).
            language: Name of the language in the checkpoint; None lets the model infer it.
            reference_ids: Tokens of the exact transcript of the reference.
            codes: Frames of the reference, which the text continues; integers of shape (n_frames, n_code_groups).

        Raises:
            ValueError: The text or the codes are empty or invalid, or the checkpoint does not know the language.
        """
        config, embed = self._config, self._embeddings
        frames: list[Tensor] = []
        if codes is not None:
            n_groups, n_codes = config.talker.n_code_groups, config.talker.predictor.vocab
            codes = codes.to(torch.int64)  # first, since uint16 tensors can't be compared
            if codes.ndim != 2 or codes.shape[1] != n_groups or not len(codes):
                raise ValueError(f"codes of shape {tuple(codes.shape)} are not frames of {n_groups} codes")
            if codes.min() < 0 or codes.max() >= n_codes:
                raise ValueError(f"codes must lie between 0 and {n_codes - 1}")
            frames = [embed.frames(codes.to(embed.offsets.device))]
        if speaker.shape != (config.talker.stack.hidden,):
            raise ValueError(f"a speaker embedding of shape {tuple(speaker.shape)} does not fit this model")
        layout = lay_out(
            config,
            self._tokenizer.role,
            self.tokens(text),
            reference_ids=reference_ids,
            n_frames=sum(map(len, frames)),
            language=language,
        )
        track = [embed.control(layout.steering), speaker.to(embed.codes)[None], embed.control(layout.closing), *frames]
        columns = embed.text(torch.tensor(layout.text, device=embed.codes.device))
        columns[len(self._tokenizer.role) :] += torch.cat(track)
        return Prompt(columns, torch.tensor(layout.trailing, dtype=torch.int64))
