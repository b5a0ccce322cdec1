"""Frame steps as fast as the device does them: on CUDA as captured graphs, one for each size, elsewhere as they are."""

from __future__ import annotations

from typing import Any, Final

import torch

from afterwords.backends.qwen3.torch.batch import BatchState
from afterwords.backends.qwen3.torch.talker import Talker

WARM_UPS: Final = 3
"""Runs before a capture, in which libraries choose their kernels. Source: torch's notes on CUDA graphs."""


class GraphRunner:
    """Calls `Talker.decode_frame` on views of one set of rows.

    A step is captured when its size is first asked for, and replayed from then on; all graphs share one pool of memory.
    One that knows no top_p is a step of its own, shorter by some operations for each code.
    """

    def __init__(self, talker: Talker) -> None:
        self._talker = talker
        self._graphs: dict[tuple[int, int, int, bool], torch.cuda.CUDAGraph] = {}
        self._pool: Any = None

    def __call__(self, rows: BatchState, *, with_top_p: bool) -> None:
        """Speak one frame in every row.

        Args:
            rows: as for `Talker.decode_frame`.
            with_top_p: whether some row has a top_p below 1, which its sampling says without a look at the device.
        """
        if rows.index.device.type != "cuda":
            self._talker.decode_frame(rows, with_top_p=with_top_p)
            return
        key = (rows.cache.data_ptr(), rows.n_rows, rows.n_positions, with_top_p)
        if key not in self._graphs:
            self._graphs[key] = self._captured(rows, with_top_p=with_top_p)
        self._graphs[key].replay()

    def _captured(self, rows: BatchState, *, with_top_p: bool) -> torch.cuda.CUDAGraph:
        """Record a step on these rows. Recording runs nothing; the runs before it are on rows of their own."""
        spare = self._talker.new_rows(rows.n_rows, rows.n_positions)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._talker.decode_frame(spare, with_top_p=with_top_p)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do meanwhile, for example write a prompt, must not break the recording off
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._talker.decode_frame(rows, with_top_p=with_top_p)
        self._pool = self._pool or graph.pool()
        return graph
