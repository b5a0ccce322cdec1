"""The codec's decoder on MLX: from codes to samples, a few frames at a time.

mlx-audio keeps one stream in the decoder itself, and its transformer attends to all past frames, although the codec was
trained with a window. Here the state is a value of its own: the reference of a voice is prefilled once for all its
utterances, and several batches can be decoded in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from afterwords.audio.wav import Samples

_PREFILL_FRAMES: Final = 16
"""Frames of a reference that are decoded at once: with the published codec, about 20 MB each."""
_REMEMBERED: Final = ("_buffer", "_overflow")
"""Attributes in which mlx-audio's modules keep their past inputs."""


class _Window:
    """Keys and values of one layer within the window.

    Attributes:
        offset: Frames so far; the layers read it by this name.
        kept: Keys and values; None before the first frame.
    """

    def __init__(self, width: int, n_seen: int = 0, kept: tuple[mx.array, mx.array] | None = None) -> None:
        self.offset, self._width, self.kept = n_seen, width, kept

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values, and return all within the window; called by the layer."""
        self.offset += keys.shape[2]
        if self.kept is not None:
            keys, values = (mx.concatenate([*pair], axis=2) for pair in zip(self.kept, (keys, values), strict=True))
        n_kept = self._width - 1
        self.kept = keys[:, :, -n_kept:], values[:, :, -n_kept:]
        return keys, values

    def rows(self, which: mx.array) -> _Window:
        kept = None if self.kept is None else (self.kept[0][which], self.kept[1][which])
        return _Window(self._width, self.offset, kept)


@dataclass(frozen=True, slots=True)
class CodecState:
    """Immutable state of the decoder for the rows of a batch.

    Attributes:
        windows: Windows of the transformer's layers; empty before the first frame.
        pasts: Past inputs of the convolutions, in their order.
    """

    windows: tuple[_Window, ...] = field(default=(), repr=False)
    pasts: tuple[mx.array | None, ...] = field(default=(), repr=False)

    def rows(self, which: list[int]) -> CodecState:
        """Return the state of some rows; a row may be repeated."""
        index = mx.array(which)
        pasts = tuple(None if past is None else past[index] for past in self.pasts)
        return CodecState(tuple(window.rows(index) for window in self.windows), pasts)

    def arrays(self) -> list[mx.array]:
        """Return all arrays, to evaluate them."""
        kept = [part for window in self.windows for part in window.kept or ()]
        return [*kept, *(past for past in self.pasts if past is not None)]


class MlxCodecDecoder:
    """mlx-audio's decoder, in which a frame attends to the `window` last frames, itself included."""

    def __init__(self, decoder: Any, *, window: int, samples_per_frame: int) -> None:
        self._decoder, self._window, self.samples_per_frame = decoder, window, samples_per_frame
        self._memories = list(_memories(decoder))

    def prefill_codec(self, codes: NDArray[np.uint16]) -> CodecState:
        """Return the state after a reference, of one row; codes have shape (n_frames, n_codebooks)."""
        state = CodecState()
        for begin in range(0, len(codes), _PREFILL_FRAMES):
            _, state = self.step(codes[None, begin : begin + _PREFILL_FRAMES].astype(np.int32), state)
        return state

    def step(self, codes: NDArray[np.int32], state: CodecState) -> tuple[list[Samples], CodecState]:
        """Decode the next frames.

        Args:
            codes: Shape (n_rows, n_frames, n_codebooks), each within its codebook.
            state: State of as many rows, or an empty one.

        Returns:
            The samples of each row, float32 of shape (n_frames * samples_per_frame,) in [-1, 1], and the next state.
        """
        decoder, n_frames = self._decoder, codes.shape[1]
        for (module, name), past in zip(self._memories, state.pasts or [None] * len(self._memories), strict=True):
            setattr(module, name, past)
        windows = state.windows or [_Window(self._window) for _ in decoder.pre_transformer.layers]
        windows = [_Window(self._window, window.offset, window.kept) for window in windows]
        hidden = decoder.quantizer.decode(mx.array(codes).transpose(0, 2, 1)).transpose(0, 2, 1)
        hidden = decoder.pre_conv.step(hidden)
        n_past = min(windows[0].offset, self._window - 1)
        query, key = mx.arange(n_past, n_past + n_frames)[:, None], mx.arange(n_past + n_frames)[None]
        is_within = (key <= query) & (key > query - self._window)
        mask = mx.where(is_within, 0.0, -mx.inf).astype(hidden.dtype)
        hidden = decoder.pre_transformer(hidden, mask=mask, cache=windows)
        for widen, block in decoder.upsample:
            hidden = block.step(widen(hidden))
        first, *blocks, snake, last = decoder.decoder
        hidden = first.step(hidden)
        for block in blocks:
            hidden = block.step(hidden)
        sound = mx.clip(last.step(snake(hidden)), -1.0, 1.0)[..., 0].astype(mx.float32)
        pasts = tuple(getattr(module, name) for module, name in self._memories)
        for module, name in self._memories:
            setattr(module, name, None)
        state = CodecState(tuple(windows), pasts)
        state = state.rows([*range(len(codes))])  # copies: a slice of an MLX array keeps all of it
        mx.eval(sound, state.arrays())
        return list(np.array(sound)), state


def _memories(decoder: Any) -> Iterator[tuple[Any, str]]:
    """Yield every module that keeps past inputs, in a fixed order, and the attribute."""
    for _, module in decoder.named_modules():
        for name in _REMEMBERED:
            if hasattr(module, name):
                yield module, name
