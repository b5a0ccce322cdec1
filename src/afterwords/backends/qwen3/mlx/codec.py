"""From codes to sound, a few frames at a time: mlx-audio's decoder, with what it remembers in a state of its own.

mlx-audio keeps one stream in the decoder itself, and its transformer looks back without end, where the codec was
trained with a window. Here a state can be copied, so that a voice's reference is heard once and each utterance begins
behind it, and several can be spoken in turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from afterwords.audio.wav import Samples

_PIECE: Final = 16
"""Frames of a reference that are heard at once: of the published codec, some 20 MB each while it computes."""
_REMEMBERED: Final = ("_buffer", "_overflow")
"""Where mlx-audio's modules keep what they heard last."""


class _Window:
    """Keys and values of one layer, as far back as the window reaches.

    Attributes:
        offset: frames seen so far; by this name the layers ask for it.
        kept: keys and values; None before the first frame.
    """

    def __init__(self, width: int, n_seen: int = 0, kept: tuple[mx.array, mx.array] | None = None) -> None:
        self.offset, self._width, self.kept = n_seen, width, kept

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Called by the layer: what it attends to, the past first."""
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
    """What the decoder remembers of the rows of a batch. It is never changed: a step gives a new one.

    Attributes:
        windows: of the transformer's layers; none before the first frame.
        pasts: of the convolutions, in their order.
    """

    windows: tuple[_Window, ...] = field(default=(), repr=False)
    pasts: tuple[mx.array | None, ...] = field(default=(), repr=False)

    def rows(self, which: list[int]) -> CodecState:
        """The state of some rows, a row as often as it is named."""
        index = mx.array(which)
        pasts = tuple(None if past is None else past[index] for past in self.pasts)
        return CodecState(tuple(window.rows(index) for window in self.windows), pasts)

    def arrays(self) -> list[mx.array]:
        """All it holds, to have it computed."""
        kept = [part for window in self.windows for part in window.kept or ()]
        return [*kept, *(past for past in self.pasts if past is not None)]


class CodecDecoder:
    """The decoder of one checkpoint.

    Args:
        decoder: mlx-audio's.
        window: frames that its transformer looks at, the present one among them.
        samples_per_frame: of sound.
    """

    def __init__(self, decoder: Any, *, window: int, samples_per_frame: int) -> None:
        self._decoder, self._window, self.samples_per_frame = decoder, window, samples_per_frame
        self._memories = list(_memories(decoder))

    def prime(self, codes: NDArray[np.uint16]) -> CodecState:
        """The state behind a recording, of one row; codes of shape (n_frames, n_codebooks)."""
        state = CodecState()
        for begin in range(0, len(codes), _PIECE):
            _, state = self.step(codes[None, begin : begin + _PIECE].astype(np.int32), state)
        return state

    def step(self, codes: NDArray[np.int32], state: CodecState) -> tuple[list[Samples], CodecState]:
        """Hear the next frames.

        Args:
            codes: shape (n_rows, n_frames, n_codebooks), each within its codebook.
            state: of as many rows, or an empty one.

        Returns:
            Of each row the sound, float32 of shape (n_frames * samples_per_frame,) in [-1, 1]; and the state behind it.
        """
        sound, state = self._step(mx.array(codes), state)
        state = state.rows([*range(len(codes))])  # copies: what is cut out of an array in MLX holds all of it
        mx.eval(sound, state.arrays())
        return list(np.array(sound)), state

    def _step(self, codes: mx.array, state: CodecState) -> tuple[mx.array, CodecState]:
        decoder, n_frames = self._decoder, codes.shape[1]
        for (module, name), past in zip(self._memories, state.pasts or [None] * len(self._memories), strict=True):
            setattr(module, name, past)
        windows = state.windows or [_Window(self._window) for _ in decoder.pre_transformer.layers]
        windows = [_Window(self._window, window.offset, window.kept) for window in windows]
        hidden = decoder.quantizer.decode(codes.transpose(0, 2, 1)).transpose(0, 2, 1)
        hidden = decoder.pre_conv.step(hidden)
        mask = self._mask(n_frames, min(windows[0].offset, self._window - 1)).astype(hidden.dtype)
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
        return sound, CodecState(tuple(windows), pasts)

    def _mask(self, n_frames: int, n_past: int) -> mx.array:
        """What a frame may look at: itself and what lies less than a window behind it."""
        now = mx.arange(n_past, n_past + n_frames)[:, None]
        then = mx.arange(n_past + n_frames)[None]
        return mx.where((then <= now) & (then > now - self._window), 0.0, -mx.inf)


def _memories(decoder: Any) -> Iterator[tuple[Any, str]]:
    """Every module of a decoder that remembers, in a fixed order, and where."""
    for _, module in decoder.named_modules():
        for name in _REMEMBERED:
            if hasattr(module, name):
                yield module, name
