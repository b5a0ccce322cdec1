"""The talker: prefills prompts, then decodes a frame of codes at a time for all rows of a batch.

Rows start and end between frames. A frame is a fixed sequence of operations on the buffers of `BatchState`, and nothing
is read back to the host.
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
from afterwords.backends.qwen3.torch.ops import Ops
from afterwords.backends.qwen3.torch.predictor import Predictor
from afterwords.backends.qwen3.torch.prompt import Embeddings, Prompt
from afterwords.backends.qwen3.torch.sampling import apply_penalty, noise
from afterwords.backends.qwen3.torch.transformer import Stack
from afterwords.backends.qwen3.torch.weights import Weights

MAX_POSITIONS = 4096
"""Columns and frames of one utterance: 5 minutes."""


@dataclass(frozen=True, slots=True)
class PrefillRow:
    """A prompt to prefill, its row, its maximum number of frames and its sampling parameters."""

    row: int
    prompt: Prompt = field(repr=False)
    max_frames: int
    sampling: Sampling


class Talker:
    """The language model of a checkpoint, on one device.

    Attributes:
        embeddings: Embeddings to build prompts with.
    """

    @torch.inference_mode()
    def __init__(
        self, weights: Weights, config: ModelConfig, *, max_positions: int = MAX_POSITIONS, ops: Ops = torch_ops
    ) -> None:
        """Take every tensor under "talker.".

        Raises:
            ModelError: A tensor is missing, misshapen or unknown.
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
        """Allocate free rows.

        Args:
            n_rows: Size of the batch.
            n_positions: Columns of a prompt and frames together; a multiple of 8 is fastest.
            n_text: Text tokens that may follow a prompt's columns; by default, as many as positions.

        Raises:
            ValueError: There are more positions than the talker was loaded for.
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
        """Prefill prompts, each in a row of its own; other rows do not change.

        Raises:
            ValueError: A prompt leaves no position for a frame, or more text follows than the rows hold.
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
        states = self._stack.prefill(columns, rows.cache, taken)
        ends = torch.tensor(lengths, device=self.device) - 1
        hidden = states[torch.arange(len(lengths), device=self.device), ends]
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
        """Decode one frame in every row; a row that is done does not change.

        This is a fixed sequence of operations on the buffers of rows, so it can be captured as a CUDA graph.

        Args:
            rows: Rows of `new_rows`, or a view of them.
            with_top_p: False skips some operations per code, if no row has a top_p below 1.
        """
        dice = noise(rows.seeds, rows.frames, self._counters).mul_(rows.temperatures)
        shares = (rows.top_ps[:, 0], rows.temperatures[:, 0]) if with_top_p else None
        logits = apply_penalty(rows.logits, rows.seen, rows.penalties)
        is_early = (rows.frames < rows.min_frames)[:, None]
        logits = logits.masked_fill_(self._is_banned | (is_early & self._is_end), -torch.inf)
        code = self._draw(logits, rows.beyond[:, 0], dice[:, 0], shares)
        rows.seen.scatter_(1, code[:, None], True)
        is_end = code == self.config.talker.codes.eos
        rows.stopped.logical_or_(is_end & ~rows.done)
        rows.done.logical_or_(is_end)
        codes = self._predictor.predict_frame(rows, code, dice, with_top_p=with_top_p)
        rows.history.index_put_((rows.index, rows.frames), codes.int())
        follows = rows.frames.clamp(max=rows.trailing.shape[1] - 1)[:, None]
        text = self.embeddings.text(rows.trailing.gather(1, follows)[:, 0])
        positions = self._stack.step_positions(rows.index, rows.positions, rows.n_positions)
        hidden = self._stack.step(text.add_(self.embeddings.frames(codes)), rows.cache, positions)
        rows.hidden.copy_(hidden)
        rows.logits.copy_(functional.linear(hidden, self._head))
        rows.logit_sums.add_(rows.logits.sum(1))
        rows.frames.add_(~rows.done)
        rows.done.logical_or_(rows.frames >= rows.limits)
        rows.positions.add_(1).mul_(~rows.done)  # a row that is done writes to its first position

    def quantize(self, precision: str) -> None:
        """Quantize to "fp8" or "int8" the weights that a frame reads most: the talker's gates, the predictor's layers.

        Norms, heads, embeddings and the talker's attention are not quantized.
        """
        self._stack.quantize(precision, ["gate_up"])
        self._predictor.stack.quantize(precision, ["qkv", "out", "gate_up", "down"])

    @torch.inference_mode()
    def most_likely_codes(self, prompt: Prompt, codes: Tensor) -> Tensor:
        """Return the most likely code at each position of an utterance, given the prompt and all codes before it.

        Both have shape (n_frames, n_code_groups); the end of speech is excluded.
        """
        n_columns, n_inputs = len(prompt.columns), len(codes) - 1
        pads = prompt.trailing.new_full((n_inputs,), self.config.tokens.pad)
        text = torch.cat([prompt.trailing, pads])[:n_inputs].to(self.device)
        inputs = self.embeddings.text(text).add_(self.embeddings.frames(codes[:-1]))
        columns = torch.cat([prompt.columns, inputs])[None]
        first_row = torch.zeros(1, device=self.device, dtype=torch.int64)
        hidden = self._stack.prefill(columns, self._stack.new_cache(1, columns.shape[1]), first_row)[0, n_columns - 1 :]
        logits = functional.linear(hidden, self._head).masked_fill_(self._is_banned | self._is_end, -torch.inf)
        return torch.cat([logits.argmax(-1)[:, None], self._predictor.most_likely_codes(hidden, codes)], 1)
