"""Runs frame steps as captured CUDA graphs, one for each size of the batch; on other devices, eagerly."""

from __future__ import annotations

from typing import Any, Final

import torch

from afterwords.backends.qwen3.torch.batch import BatchState
from afterwords.backends.qwen3.torch.talker import Talker

WARM_UPS: Final = 3
"""Runs before a capture, in which libraries choose their kernels. Source: torch's notes on CUDA graphs."""


class GraphRunner:
    """Runs `Talker.decode_frame` on views of a batch.

    A step is captured when its size is first used, and replayed from then on; all graphs share one memory pool. The
    step without top_p has a graph of its own, with fewer operations per code.
    """

    def __init__(self, talker: Talker) -> None:
        self._talker = talker
        self._graphs: dict[tuple[int, int, int, bool], torch.cuda.CUDAGraph] = {}
        self._pool: Any = None

    def __call__(self, rows: BatchState, *, with_top_p: bool) -> None:
        """Decode one frame in every row, see `Talker.decode_frame`."""
        if rows.index.device.type != "cuda":
            self._talker.decode_frame(rows, with_top_p=with_top_p)
            return
        key = (rows.cache.data_ptr(), rows.n_rows, rows.n_positions, with_top_p)
        if key not in self._graphs:
            self._graphs[key] = self._capture(rows, with_top_p=with_top_p)
        self._graphs[key].replay()

    def _capture(self, rows: BatchState, *, with_top_p: bool) -> torch.cuda.CUDAGraph:
        """Capture a step on these rows. A capture executes nothing; the warm-up runs use spare rows."""
        spare = self._talker.new_rows(rows.n_rows, rows.n_positions)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._talker.decode_frame(spare, with_top_p=with_top_p)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: CUDA calls of other threads, for example to build a prompt, must not abort the capture
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._talker.decode_frame(rows, with_top_p=with_top_p)
        self._pool = self._pool or graph.pool()
        return graph
