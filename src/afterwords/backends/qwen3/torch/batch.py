"""The state of a batch: everything the talker keeps of its utterances, in buffers that never move.

A frame step reads and writes only these buffers, so that a graph captured on a view of the first rows and positions
stays valid while utterances start and end.
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
    """Buffers of n_rows rows; a free row is done.

    Attributes:
        index: 0, 1, 2..., shape (n_rows,).
        cache: Cache of the talker, see `Stack.new_cache`.
        predictor_cache: Cache of the code predictor.
        hidden: Hidden state of the last position, shape (n_rows, hidden).
        logits: Logits of the first code of the next frame, float32 of shape (n_rows, vocab).
        logit_sums: Sum of all logits so far, float32 of shape (n_rows,); not finite once a logit is not.
        trailing: Text tokens of the next frames, shape (n_rows, n_text + 1); the last is always the pad.
        positions: Position of the next frame, shape (n_rows,); 0 if done.
        frames: Number of frames so far, shape (n_rows,).
        limits: Maximum number of frames, shape (n_rows,).
        done: Shape (n_rows,), bool.
        stopped: Whether the talker ended the utterance, and not its limit, shape (n_rows,), bool.
        seen: First codes drawn so far, shape (n_rows, vocab), bool.
        history: Codes of the first `frames` frames, int32 of shape (n_rows, n_positions, n_code_groups).
        seeds: Shape (n_rows,).
        temperatures: Shape (n_rows, n_code_groups, 1), float32.
        top_ps: Shape (n_rows, n_code_groups, 1), float32; infinite if not limited.
        beyond: Ranks that are not drawn from, by talker and predictor, shape (n_rows, 2, WIDEST_TOP_K), bool.
        penalties: Shape (n_rows, 1), float32.
        min_frames: Shape (n_rows,).
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
        """Allocate free rows around two empty caches."""
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
        """Return a view of the first rows and positions; its rows must not be at later positions."""
        views = {field.name: getattr(self, field.name)[:n_rows] for field in fields(self)}
        views["cache"] = self.cache[:, :n_rows, :n_positions]
        views["predictor_cache"] = self.predictor_cache[:, :n_rows]
        return type(self)(**views)

    def isolate_row(self, row: int, n_positions: int) -> Self:
        """Return a view of one row and its first positions, as it was before a frame that failed."""
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
        """Set a row to the state after its prefill, except `hidden`, `logits` and the cache.

        Args:
            row: A free row.
            n_columns: Columns of the prompt.
            trailing: Text tokens of the next frames, shape (n,).
            pad: Text token after them.
            limit: Maximum number of frames; the size of the cache limits it too.
            sampling: Sampling parameters.
        """
        self.trailing[row] = pad
        self.trailing[row, : len(trailing)] = trailing.to(self.trailing)
        self.logit_sums[row] = 0
        self.positions[row] = n_columns
        self.frames[row] = 0
        self.limits[row] = min(limit, self.n_positions - n_columns)
        self.seen[row] = False
        seed = sampling.seed & (2**64 - 1)
        self.seeds[row] = seed - 2**64 if seed >= 2**63 else seed  # as int64
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
        """Free a row."""
        self.done[row] = True
        self.positions[row] = 0

    @torch.inference_mode()
    def clear_row(self, row: int) -> None:
        """Zero a row: masked values of its next utterance are still multiplied by 0, and NaN would spread."""
        for number in (self.cache[:, row], self.predictor_cache[:, row], self.hidden[row], self.logits[row]):
            number.zero_()

    @torch.inference_mode()
    def move_row(self, source: int, target: int) -> None:
        """Move a row to another one, which is overwritten, and free the first."""
        for field in fields(self):
            if field.name != "index":
                buffer: Tensor = getattr(self, field.name)
                buffer = buffer.transpose(0, 1) if field.name in _BATCH_SECOND else buffer
                buffer[target] = buffer[source]
        self.free_row(source)

    def is_finite(self) -> Tensor:
        """Return whether all logits of each row were finite, bool of shape (n_rows,)."""
        total = self.predictor_cache.sum((0, 2, 3, 4), dtype=torch.float32)  # the talker's cache shows in its logits
        return (self.logit_sums + total).isfinite()

    def read_progress(self) -> list[tuple[int, bool, bool]]:
        """Wait for the device, and return `frames`, `done` and `stopped` of each row."""
        state = torch.stack([self.frames, self.done.long(), self.stopped.long()], 1).tolist()
        return [(frames, bool(done), bool(stopped)) for frames, done, stopped in state]


def _limit(top_p: float) -> float:
    """Return a top_p that rounding can't reach if it is 1, so that a row does not depend on the rest of its batch."""
    return top_p if top_p < 1 else torch.inf
