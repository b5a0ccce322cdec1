"""Runs frame steps and codec steps as captured CUDA graphs, one for each size; on other devices, eagerly."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final

import torch
from torch import Tensor

from afterwords.backends.qwen3.torch.batch import BatchState
from afterwords.backends.qwen3.torch.codec_decoder import CodecDecoder, DecoderState
from afterwords.backends.qwen3.torch.talker import Talker

WARM_UPS: Final = 3
"""Runs before a capture, in which libraries choose their kernels. Source: torch's notes on CUDA graphs."""


class Graphs:
    """Functions on buffers that don't move, each captured when its size is first used; they share one memory pool."""

    def __init__(self) -> None:
        self._captured: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._pool: Any = None

    def run(self, key: Hashable, work: Callable[[Any], Any], buffers: Any, spare: Callable[[], Any]) -> Any:
        """Replay a function of some buffers, after a capture if its key is new.

        Args:
            key: The function, its buffers and all sizes.
            work: Function of the buffers; the capture executes nothing.
            buffers: What `work` is replayed on.
            spare: Makes other buffers, for the runs that warm up.

        Returns:
            The result of `work`, valid until another graph runs.
        """
        if key not in self._captured:
            other = spare()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    work(other)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: CUDA calls of other threads, for example to build a prompt, must not abort the capture
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = work(buffers)
            self._captured[key] = graph, result
            self._pool = self._pool or graph.pool()
        graph, result = self._captured[key]
        graph.replay()
        return result


class GraphRunner:
    """Runs `Talker.decode_frame` on views of a batch.

    The step without top_p has a graph of its own, with fewer operations per code.
    """

    def __init__(self, talker: Talker, graphs: Graphs | None = None) -> None:
        self._talker, self._graphs = talker, graphs or Graphs()

    def __call__(self, rows: BatchState, *, with_top_p: bool) -> None:
        """Decode one frame in every row, see `Talker.decode_frame`."""

        def work(rows: BatchState) -> None:
            self._talker.decode_frame(rows, with_top_p=with_top_p)

        if rows.index.device.type == "cuda":
            key = (rows.cache.data_ptr(), rows.n_rows, rows.n_positions, with_top_p)
            self._graphs.run(key, work, rows, lambda: self._talker.new_rows(rows.n_rows, rows.n_positions))
        else:
            work(rows)


class CodecRunner:
    """Runs `CodecDecoder.step` on the first rows of a state."""

    def __init__(self, decoder: CodecDecoder, state: DecoderState, graphs: Graphs, *, n_frames: int) -> None:
        """Allocate the inputs of steps of up to `n_frames`."""
        self._decoder, self._state, self._graphs = decoder, state, graphs
        n_seen = state.window.n_seen
        self._codes = n_seen.new_zeros((len(n_seen), n_frames, decoder.n_codebooks))
        self._n_frames = torch.zeros_like(n_seen)

    def __call__(self, codes: Tensor, n_frames: Tensor) -> Tensor:
        """Decode the next frames of the first rows, see `CodecDecoder.step`; the next run overwrites the samples."""
        n_rows, width = codes.shape[:2]
        state = self._state.view(0, n_rows)
        if codes.device.type != "cuda":
            return self._decoder.step(codes, state, n_frames)
        inputs = self._codes[:n_rows, :width].copy_(codes), self._n_frames[:n_rows].copy_(n_frames)
        sound: Tensor = self._graphs.run(
            (n_rows, width),
            lambda state: self._decoder.step(inputs[0], state, inputs[1]),
            state,
            lambda: self._decoder.new_state(n_rows),
        )
        return sound
