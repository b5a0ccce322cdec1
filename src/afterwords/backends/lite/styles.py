"""The style space: the 54 stock voices of Kokoro, and all voices between and beyond them.

A style has 256 numbers for each length of text: timbre (0 to 127) and prosody (128 to 255). Each half is
spanned by the principal components of the stock voices; a point of the space is a vector of unit-variance
coordinates, timbre first.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afterwords.backends.lite.data import read_data

ROWS: Final = 510
WIDTH: Final = 256
TIMBRE: Final = 30
"""Components of the timbre half: 95 % of its variance."""
PROSODY: Final = 15
"""Components of the prosody half: 85 % of its variance."""
SIZE: Final = TIMBRE + PROSODY
LIMIT: Final = 3.0
"""Limit of coordinates in standard deviations."""
_TYPICAL_ROWS = slice(20, 200)

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class StyleSpace:
    """The stock voices and the space that they span.

    Attributes:
        names: Names of the stock voices, such as "af_heart".
        voices: Shape (n_voices, 510, 256).
        coordinates: The points of the stock voices, shape (n_voices, SIZE).
        mean: Shape (510, 256).
        components: Shapes (TIMBRE, 510, 128) and (PROSODY, 510, 128).
    """

    names: tuple[str, ...]
    voices: Array
    coordinates: Array
    mean: Array
    components: tuple[Array, Array]

    def row(self, point: NDArray[np.floating], length: int) -> Array:
        """Return the style of a point for a text of `length` tokens, shape (256,)."""
        at = min(max(length, 1), ROWS) - 1
        timbre, prosody = self.components
        halves = (point[:TIMBRE] @ timbre[:, at], point[TIMBRE:] @ prosody[:, at])
        return (self.mean[at] + np.concatenate(halves)).astype(np.float32)

    def table(self, point: NDArray[np.floating]) -> Array:
        """Return the styles of a point for all lengths, shape (510, 256)."""
        timbre, prosody = self.components
        halves = (np.tensordot(point[:TIMBRE], timbre, 1), np.tensordot(point[TIMBRE:], prosody, 1))
        return (self.mean + np.concatenate(halves, axis=1)).astype(np.float32)


@cache
def style_space() -> StyleSpace:
    """Load the stock voices and compute their space."""
    names, voices = unpack_voices(read_data("voices.xz"))
    mean = voices.mean(axis=0)
    timbre, timbre_parts = _components(voices - mean, slice(0, 128), TIMBRE)
    prosody, prosody_parts = _components(voices - mean, slice(128, 256), PROSODY)
    return StyleSpace(
        names=names,
        voices=voices,
        coordinates=np.concatenate([timbre, prosody], axis=1).astype(np.float32),
        mean=mean,
        components=(timbre_parts, prosody_parts),
    )


def _components(offsets: Array, half: slice, count: int) -> tuple[Array, Array]:
    """Return coordinates (n_voices, count) of unit variance, and the offset of one unit of each, (count, 510, 128)."""
    typical = offsets[:, _TYPICAL_ROWS, half].mean(axis=1)
    left = np.linalg.svd(typical - typical.mean(axis=0), full_matrices=False)[0][:, :count]
    scale = np.sqrt(len(offsets))
    parts = np.einsum("vk,vrd->krd", left, offsets[:, :, half], optimize=True) / scale
    return left * scale, parts.astype(np.float32)


def pack_voices(names: tuple[str, ...], voices: Array, *, bits: int = 13) -> bytes:
    """Pack stock voices: quantize each dimension, delta-code the rows, separate high and low bytes, compress with xz.

    Args:
        names: Names of the voices.
        voices: Shape (n_voices, 510, 256).
        bits: Bits of the quantizer; 8 are audible, 12 and more are not.
    """
    scale = (np.abs(voices).max(axis=(0, 1)) / (2 ** (bits - 1) - 1)).astype(np.float32)
    steps = np.round(voices / scale).astype(np.int32)
    delta = np.diff(steps, axis=1, prepend=0).transpose(0, 2, 1)
    folded = ((delta << 1) ^ (delta >> 31)).astype("<u2")
    head = "\n".join(names).encode() + b"\0"
    body = np.stack([folded & 0xFF, folded >> 8]).astype(np.uint8).tobytes()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
    return lzma.compress(head + scale.astype("<f4").tobytes() + body, filters=filters)


def unpack_voices(packed: bytes) -> tuple[tuple[str, ...], Array]:
    """Unpack the names and the voices, shape (n_voices, 510, 256), of `pack_voices`."""
    head, _, rest = lzma.decompress(packed).partition(b"\0")
    names = tuple(head.decode().split("\n"))
    scale = np.frombuffer(rest, "<f4", WIDTH)
    low, high = np.frombuffer(rest, np.uint8, offset=4 * WIDTH).reshape(2, len(names), WIDTH, ROWS).astype(np.int32)
    folded = low | high << 8
    steps = np.cumsum((folded >> 1) ^ -(folded & 1), axis=2, dtype=np.int32)
    return names, (steps.transpose(0, 2, 1) * scale).astype(np.float32)
