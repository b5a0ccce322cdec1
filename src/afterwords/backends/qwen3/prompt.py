"""What the talker is given before it speaks: columns of text laid over codes, and the text that follows frame by frame.

A column is the sum of a text track and a code track:

    text  | role (3) | pad ... pad            bos | the text, or the reference's text and the text
    codes |          | think, language, speaker, pad | bos, and in context the frames of the reference

In context, the model continues a recording whose words it is told; with a speaker embedding alone, it starts anew.
Source: qwen-tts 0.1.1, `Qwen3TTSForConditionalGeneration.generate` in its streaming mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from afterwords.backends.qwen3.config import ModelConfig
from afterwords.backends.qwen3.embeddings import Embeddings
from afterwords.backends.qwen3.tokenizer import TextTokenizer


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
    def of_speaker(self, text: str, *, speaker: Tensor, language: str | None = None) -> Prompt:
        """Speak a text in the voice of a speaker embedding alone.

        Args:
            text: has at least one token.
            speaker: shape (hidden,).
            language: by the checkpoint's own name; None lets the model hear it from the text.

        Raises:
            ValueError: the text is empty, or the language is none of the checkpoint's.
        """
        first, *rest = self._text(text)
        first_text = self._embeddings.text(self._ids([first]))
        start = first_text + self._embeddings.control([self._config.talker.codes.bos])
        columns = torch.cat([self._head(speaker, language), start])
        return Prompt(columns, torch.tensor([*rest, self._config.tokens.eos]))

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
        tokens, control = self._config.tokens, self._config.talker.codes
        spoken = [*reference_ids, *self._text(text), tokens.eos]
        frames = self._embeddings.frames(codes)
        track = torch.cat([self._embeddings.control([control.bos]), frames])
        over, trailing = spoken[: len(track)], spoken[len(track) :]
        over += [tokens.pad] * (len(track) - len(over))
        laid = self._embeddings.text(self._ids(over)) + track
        return Prompt(torch.cat([self._head(speaker, language), laid]), torch.tensor(trailing, dtype=torch.int64))

    def _head(self, speaker: Tensor, language: str | None) -> Tensor:
        """The columns before any text: role, language and speaker."""
        control, tokens = self._config.talker.codes, self._config.tokens
        if speaker.shape != (self._config.talker.stack.hidden,):
            raise ValueError(f"a speaker embedding of shape {tuple(speaker.shape)} is none of this model's")
        if language is None:
            steering = [control.no_think, control.think_bos, control.think_eos]
        else:
            steering = [control.think, control.think_bos, self._language(language), control.think_eos]
        speaker = speaker.to(self._embeddings.codes)[None]
        track = torch.cat([self._embeddings.control(steering), speaker, self._embeddings.control([control.pad])])
        over = [*self._tokenizer.role, *[tokens.pad] * (len(track) - 1), tokens.bos]
        columns = self._embeddings.text(self._ids(over))
        columns[len(self._tokenizer.role) :] += track
        return columns

    def _text(self, text: str) -> list[int]:
        ids = self.tokens(text)
        if not ids:
            raise ValueError("there is no text to speak")
        return ids

    def _language(self, name: str) -> int:
        languages = self._config.talker.languages
        if name not in languages:
            raise ValueError(f"the language {name!a} is none of {', '.join(sorted(languages))}")
        return languages[name]

    def _checked(self, codes: Tensor) -> Tensor:
        n_groups, n_codes = self._config.talker.n_code_groups, self._config.predictor.vocab
        codes = codes.to(torch.int64)  # first of all: they are kept as uint16, which can't be compared
        if codes.ndim != 2 or codes.shape[1] != n_groups or not len(codes):
            raise ValueError(f"codes of shape {tuple(codes.shape)} are no frames of {n_groups} codes")
        if codes.min() < 0 or codes.max() >= n_codes:
            raise ValueError(f"codes must lie between 0 and {n_codes - 1}")
        return codes.to(self._embeddings.offsets.device)

    def _ids(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, device=self._embeddings.codes.device)
