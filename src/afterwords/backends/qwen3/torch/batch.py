"""The rows of a batch: everything the talker keeps of the utterances it speaks, in buffers that never move.

A row is taken when an utterance joins and is free when it is done. A frame step reads and writes these buffers alone,
so a graph captured on a view of the first rows and positions goes on working whatever comes and goes in them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from afterwords.backends.qwen3.config import WIDEST_TOP_K, Sampling

_BATCH_SECOND = ("cache", "predictor_cache")


@dataclass(frozen=True, slots=True)
class BatchState:
    """Buffers of n_rows rows; a row that nobody speaks in is done.

    Attributes:
        index: shape (n_rows,): 0, 1, 2...
        cache: the talker's, see `Stack.new_cache`.
        predictor_cache: the code predictor's.
        hidden: shape (n_rows, hidden): what the talker made of its last position.
        logits: shape (n_rows, vocab), float32: for the first code of the next frame.
        logit_sums: shape (n_rows,), float32: of all logits so far; not finite from then on, once one of them is not.
        trailing: shape (n_rows, n_text + 1): text tokens heard one a frame; the last is always the pad.
        positions: shape (n_rows,): where the next frame is written; 0 where done.
        frames: shape (n_rows,): frames spoken.
        limits: shape (n_rows,): the most frames.
        done: shape (n_rows,), bool.
        stopped: shape (n_rows,), bool: done because the talker ended the utterance, and not because of its limit.
        seen: shape (n_rows, vocab), bool: first codes drawn so far.
        history: shape (n_rows, n_positions, n_code_groups), int32: the first `frames` are what was spoken.
        seeds: shape (n_rows,).
        temperatures: shape (n_rows, n_code_groups, 1), float32.
        top_ps: shape (n_rows, n_code_groups, 1), float32; infinite where the share is not limited.
        beyond: shape (n_rows, 2, WIDEST_TOP_K), bool: ranks not drawn from, by the talker and by the predictor.
        penalties: shape (n_rows, 1), float32.
        min_frames: shape (n_rows,).
    """

    index: Tensor
    cache: Tensor
    predictor_cache: Tensor
    hidden: Tensor
    logits: Tensor
    logit_sums: Tensor
    trailing: Tensor
    positions: Tensor
    frames: Tensor
    limits: Tensor
    done: Tensor
    stopped: Tensor
    seen: Tensor
    history: Tensor
    seeds: Tensor
    temperatures: Tensor
    top_ps: Tensor
    beyond: Tensor
    penalties: Tensor
    min_frames: Tensor

    @classmethod
    def allocate(
        cls, cache: Tensor, predictor_cache: Tensor, *, hidden: int, vocab: int, n_code_groups: int, n_text: int
    ) -> Self:
        """Free rows around two empty caches."""
        n_rows, n_positions, device = cache.shape[1], cache.shape[2], cache.device

        def numbers(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros((n_rows, *shape), device=device, dtype=dtype)

        return cls(
            index=torch.arange(n_rows, device=device),
            cache=cache,
            predictor_cache=predictor_cache,
            hidden=numbers(hidden, dtype=cache.dtype),
            logits=numbers(vocab, dtype=torch.float32),
            logit_sums=numbers(dtype=torch.float32),
            trailing=numbers(n_text + 1),
            positions=numbers(),
            frames=numbers(),
            limits=numbers(),
            done=numbers(dtype=torch.bool).fill_(True),
            stopped=numbers(dtype=torch.bool),
            seen=numbers(vocab, dtype=torch.bool),
            history=numbers(n_positions, n_code_groups, dtype=torch.int32),
            seeds=numbers(),
            temperatures=numbers(n_code_groups, 1, dtype=torch.float32),
            top_ps=numbers(n_code_groups, 1, dtype=torch.float32).fill_(torch.inf),
            beyond=numbers(2, WIDEST_TOP_K, dtype=torch.bool),
            penalties=numbers(1, dtype=torch.float32).fill_(1.0),
            min_frames=numbers(),
        )

    @property
    def n_rows(self) -> int:
        return self.cache.shape[1]

    @property
    def n_positions(self) -> int:
        return self.cache.shape[2]

    def view(self, n_rows: int, n_positions: int) -> Self:
        """The first rows and positions of the same buffers; rows in it must not stand at later positions."""
        views = {field.name: getattr(self, field.name)[:n_rows] for field in fields(self)}
        views["cache"] = self.cache[:, :n_rows, :n_positions]
        views["predictor_cache"] = self.predictor_cache[:, :n_rows]
        return type(self)(**views)

    def isolate_row(self, row: int, n_positions: int) -> Self:
        """One row and its first positions, of the same buffers, as it was before a frame that broke off."""
        views = {field.name: getattr(self, field.name)[row : row + 1] for field in fields(self)}
        views["index"] = self.index[:1]
        views["cache"] = self.cache[:, row : row + 1, :n_positions]
        views["predictor_cache"] = self.predictor_cache[:, row : row + 1]
        spoken = self.history[row, : int(self.frames[row]), 0].long()
        self.seen[row] = False
        self.seen[row, spoken] = True
        return type(self)(**views)

    @torch.inference_mode()
    def start_row(
        self, row: int, *, n_columns: int, trailing: Tensor, pad: int, limit: int, sampling: Sampling
    ) -> None:
        """Set a row to the state after its prefill, all but `hidden`, `logits` and the cache.

        Args:
            row: a free one.
            n_columns: of the prompt.
            trailing: shape (n,), text tokens heard one a frame.
            pad: the text token after them.
            limit: the most frames; fewer are spoken where the cache ends before.
            sampling: how codes are drawn.
        """
        self.trailing[row] = pad
        self.trailing[row, : len(trailing)] = trailing.to(self.trailing)
        self.logit_sums[row] = 0
        self.positions[row] = n_columns
        self.frames[row] = 0
        self.limits[row] = min(limit, self.n_positions - n_columns)
        self.seen[row] = False
        self.seeds[row] = _signed(sampling.seed)
        self.temperatures[row] = sampling.predictor_temperature
        self.temperatures[row, 0] = sampling.temperature
        self.top_ps[row] = _limit(sampling.predictor_top_p)
        self.top_ps[row, 0] = _limit(sampling.top_p)
        for which, top_k in enumerate((sampling.top_k, sampling.predictor_top_k)):
            self.beyond[row, which, :top_k] = False
            self.beyond[row, which, top_k:] = True
        self.penalties[row] = sampling.repetition_penalty
        self.min_frames[row] = sampling.min_frames
        self.stopped[row] = False
        self.done[row] = False

    @torch.inference_mode()
    def free_row(self, row: int) -> None:
        """Free a row before its utterance is over."""
        self.done[row] = True
        self.positions[row] = 0

    @torch.inference_mode()
    def clear_row(self, row: int) -> None:
        """Forget what a row holds: what is hidden from its next utterance is still multiplied by 0, and may be NaN."""
        for number in (self.cache[:, row], self.predictor_cache[:, row], self.hidden[row], self.logits[row]):
            number.zero_()

    @torch.inference_mode()
    def move_row(self, source: int, target: int) -> None:
        """Go on in another row, which is overwritten; the first row is free then."""
        for field in fields(self):
            if field.name != "index":
                buffer: Tensor = getattr(self, field.name)
                buffer = buffer.transpose(0, 1) if field.name in _BATCH_SECOND else buffer
                buffer[target] = buffer[source]
        self.free_row(source)

    def is_finite(self) -> Tensor:
        """Whether all that each row was drawn from were numbers, bool of shape (n_rows,)."""
        heard = self.predictor_cache.sum((0, 2, 3, 4), dtype=torch.float32)  # the talker's own shows in its logits
        return (self.logit_sums + heard).isfinite()

    def read_progress(self) -> list[tuple[int, bool, bool]]:
        """Frames spoken, whether done, whether the talker itself ended it, for each row. Waits for the device."""
        state = torch.stack([self.frames, self.done.long(), self.stopped.long()], 1).tolist()
        return [(frames, bool(done), bool(stopped)) for frames, done, stopped in state]


def _limit(top_p: float) -> float:
    """A share that rounding can't reach where all is meant, so that a row draws the same whoever speaks beside it."""
    return top_p if top_p < 1 else torch.inf


def _signed(seed: int) -> int:
    """A seed as int64, of any whole number."""
    seed &= 2**64 - 1
    return seed - 2**64 if seed >= 2**63 else seed
