"""The talker: it hears a prompt, then speaks a frame of codes at a time, for all rows of a batch at once.

Loading, joining and leaving happen between frames. A frame itself is a fixed sequence of operations on the buffers of
`BatchState`, with nothing read back to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from afterwords.backends.qwen3.config import N_CONTROL_IDS, ModelConfig, Sampling
from afterwords.backends.qwen3.torch import ops as torch_ops
from afterwords.backends.qwen3.torch.batch import BatchState
from afterwords.backends.qwen3.torch.embeddings import Embeddings
from afterwords.backends.qwen3.torch.ops import Ops
from afterwords.backends.qwen3.torch.predictor import Predictor
from afterwords.backends.qwen3.torch.prompt import Prompt
from afterwords.backends.qwen3.torch.sampling import apply_penalty, noise
from afterwords.backends.qwen3.torch.transformer import Stack
from afterwords.backends.qwen3.torch.weights import Weights

MAX_POSITIONS = 4096
"""Columns and frames of one utterance: 5 minutes."""


@dataclass(frozen=True, slots=True)
class PrefillRow:
    """What joins a batch: a prompt, the row it takes, the most frames it may have, and how its codes are drawn."""

    row: int
    prompt: Prompt = field(repr=False)
    max_frames: int
    sampling: Sampling


class Talker:
    """The language half of one checkpoint, on one device.

    Attributes:
        embeddings: what prompts are written with.
    """

    @torch.inference_mode()
    def __init__(
        self, weights: Weights, config: ModelConfig, *, max_positions: int = MAX_POSITIONS, ops: Ops = torch_ops
    ) -> None:
        """Take every tensor under "talker.".

        Args:
            weights: of the checkpoint.
            config: of the same.
            max_positions: the longest row there will be.
            ops: what its steps are made of, `fastest_ops` or plain torch.

        Raises:
            ModelError: a tensor is missing, misshapen or unknown.
        """
        self.config, self.device = config, weights.device
        talker = config.talker
        self.embeddings = Embeddings(weights, config)
        n_positions = min(max_positions, talker.max_positions)
        self._stack = Stack(weights, "talker.model", talker.stack, n_positions=n_positions, ops=ops)
        self._draw = ops.draw
        self._head = weights.take("talker.codec_head.weight", (talker.vocab, talker.stack.hidden))
        self._predictor = Predictor(weights, config, self.embeddings, ops=ops)
        weights.check_all_taken("talker.")
        codes = torch.arange(talker.vocab, device=self.device)
        self._is_end = codes == talker.codes.eos
        self._is_banned = (codes >= talker.vocab - N_CONTROL_IDS) & ~self._is_end
        self._counters = torch.arange(talker.n_code_groups * talker.vocab, device=self.device).view(-1, talker.vocab)

    def new_rows(self, n_rows: int, n_positions: int, *, n_text: int | None = None) -> BatchState:
        """Free rows.

        Args:
            n_rows: utterances spoken at once.
            n_positions: columns of a prompt and frames together; a multiple of 8 is attended to fastest.
            n_text: text tokens that may follow a prompt's columns; as many as positions by default.

        Raises:
            ValueError: more positions than the talker was loaded for.
        """
        if n_positions > self._stack.n_positions:
            raise ValueError(f"{n_positions} positions are more than the {self._stack.n_positions} it was loaded for")
        config = self.config.talker
        return BatchState.allocate(
            self._stack.new_cache(n_rows, n_positions),
            self._predictor.stack.new_cache(n_rows, self._predictor.n_groups),
            hidden=config.stack.hidden,
            vocab=config.vocab,
            n_code_groups=config.n_code_groups,
            n_text=n_positions if n_text is None else n_text,
        )

    @torch.inference_mode()
    def prefill(self, rows: BatchState, utterances: Sequence[PrefillRow]) -> None:
        """Hear the prompts of utterances, each in a row of its own; the rows of others are left as they are.

        Raises:
            ValueError: a prompt leaves no position for a frame, or more text follows than the rows hold.
        """
        prompts = [utterance.prompt for utterance in utterances]
        lengths = [len(prompt.columns) for prompt in prompts]
        for prompt, length in zip(prompts, lengths, strict=True):
            if length >= rows.n_positions or len(prompt.trailing) >= rows.trailing.shape[1]:
                raise ValueError(
                    f"a prompt of {length} columns and {len(prompt.trailing)} more tokens is too long for rows "
                    f"of {rows.n_positions} positions and {rows.trailing.shape[1] - 1} tokens"
                )
        taken = torch.tensor([utterance.row for utterance in utterances], device=self.device)
        columns = torch.nn.utils.rnn.pad_sequence([prompt.columns for prompt in prompts], batch_first=True)
        heard = self._stack.prefill(columns, rows.cache, taken)
        ends = torch.tensor(lengths, device=self.device) - 1
        hidden = heard[torch.arange(len(lengths), device=self.device), ends]
        rows.hidden[taken] = hidden
        rows.logits[taken] = functional.linear(hidden, self._head).float()
        for utterance, length in zip(utterances, lengths, strict=True):
            rows.start_row(
                utterance.row,
                n_columns=length,
                trailing=utterance.prompt.trailing,
                pad=self.config.tokens.pad,
                limit=utterance.max_frames,
                sampling=utterance.sampling,
            )

    @torch.inference_mode()
    def decode_frame(self, rows: BatchState, *, with_top_p: bool = True) -> None:
        """Speak one frame in every row; a row that is done stays as it is.

        A fixed sequence of operations on the buffers of rows: it may be captured as a CUDA graph and replayed.

        Args:
            rows: of `new_rows`, or a view of them.
            with_top_p: False leaves out a few operations for each code, where no row has a top_p below 1.
        """
        dice = noise(rows.seeds, rows.frames, self._counters).mul_(rows.temperatures)
        shares = (rows.top_ps[:, 0], rows.temperatures[:, 0]) if with_top_p else None
        code = self._draw(self._allowed(rows), rows.beyond[:, 0], dice[:, 0], shares)
        rows.seen.scatter_(1, code[:, None], True)
        is_end = code == self.config.talker.codes.eos
        rows.stopped.logical_or_(is_end & ~rows.done)
        rows.done.logical_or_(is_end)
        codes = self._predictor.predict_frame(rows, code, dice, with_top_p=with_top_p)
        rows.history.index_put_((rows.index, rows.frames), codes.int())
        self._hear(rows, codes)

    def quantize(self, precision: str) -> None:
        """Round what a frame reads most of, "fp8" or "int8": the gates of the talker, and the code predictor's layers.

        Norms, heads, embeddings and what the talker attends with stay as they are.
        """
        self._stack.quantize(precision, ["gate_up"])
        self._predictor.stack.quantize(precision, ["qkv", "out", "gate_up", "down"])

    @torch.inference_mode()
    def most_likely_codes(self, prompt: Prompt, codes: Tensor) -> Tensor:
        """The likeliest code at each place of an utterance, given the prompt and all codes before that place.

        Args:
            prompt: of the utterance.
            codes: shape (n_frames, n_code_groups).

        Returns:
            Shape (n_frames, n_code_groups); the end is no code.
        """
        n_columns, n_heard = len(prompt.columns), len(codes) - 1
        pads = prompt.trailing.new_full((n_heard,), self.config.tokens.pad)
        text = torch.cat([prompt.trailing, pads])[:n_heard].to(self.device)
        heard = self.embeddings.text(text).add_(self.embeddings.frames(codes[:-1]))
        columns = torch.cat([prompt.columns, heard])[None]
        first_row = torch.zeros(1, device=self.device, dtype=torch.int64)
        hidden = self._stack.prefill(columns, self._stack.new_cache(1, columns.shape[1]), first_row)[0, n_columns - 1 :]
        logits = functional.linear(hidden, self._head).masked_fill_(self._is_banned | self._is_end, -torch.inf)
        return torch.cat([logits.argmax(-1)[:, None], self._predictor.most_likely_codes(hidden, codes)], 1)

    def _hear(self, rows: BatchState, codes: Tensor) -> None:
        """Take a frame in, with the text that goes with it, and count it."""
        follows = rows.frames.clamp(max=rows.trailing.shape[1] - 1)[:, None]
        text = self.embeddings.text(rows.trailing.gather(1, follows)[:, 0])
        place = self._stack.place(rows.index, rows.positions, rows.n_positions)
        hidden = self._stack.step(text.add_(self.embeddings.frames(codes)), rows.cache, place)
        rows.hidden.copy_(hidden)
        rows.logits.copy_(functional.linear(hidden, self._head))
        rows.logit_sums.add_(rows.logits.sum(1))
        is_live = ~rows.done
        rows.frames.add_(is_live)
        rows.done.logical_or_(rows.frames >= rows.limits)
        rows.positions.add_(1).mul_(~rows.done)  # a row that is done writes to its first position, in any view

    def _allowed(self, rows: BatchState) -> Tensor:
        """The logits of what may be drawn first in a frame."""
        logits = apply_penalty(rows.logits, rows.seen, rows.penalties)
        is_early = (rows.frames < rows.min_frames)[:, None]
        return logits.masked_fill_(self._is_banned | (is_early & self._is_end), -torch.inf)
