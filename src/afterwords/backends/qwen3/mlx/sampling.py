"""Sampling of codes, as `torch.sampling` does it: the same seed draws the same codes from the same logits."""

from __future__ import annotations

from typing import Final

import mlx.core as mx
import numpy as np

# SplitMix64. Source: G. Steele, D. Lea, C. Flood (2014), "Fast splittable pseudorandom number generators".
_GOLDEN: Final = 0x9E3779B97F4A7C15
_FIRST: Final = 0xBF58476D1CE4E5B9
_SECOND: Final = 0x94D049BB133111EB
_FRACTION_BITS: Final = 23


def _constant(number: int) -> mx.array:
    """Return a 64-bit number, which MLX accepts from numpy but not from Python."""
    return mx.array(np.array(number, np.uint64))


def _mix(z: mx.array) -> mx.array:
    z = (z ^ (z >> 30)) * _constant(_FIRST)
    z = (z ^ (z >> 27)) * _constant(_SECOND)
    return z ^ (z >> 31)


def noise(seeds: mx.array, frame: mx.array, counters: mx.array) -> mx.array:
    """Return Gumbel noise: the code with the largest sum of logit and noise is a sample of the softmax.

    All are uint64: seeds of shape (n_rows,), the number of the frame, and distinct counters of any shape. The noise is
    float32 of shape (n_rows, *counters.shape).
    """
    golden = _constant(_GOLDEN)
    keys = _mix(_mix(seeds) + frame * golden).reshape(-1, *[1] * counters.ndim)
    numbers = _mix(keys + counters * golden) >> (64 - _FRACTION_BITS)
    fraction = (numbers.astype(mx.float32) + 0.5) * 2.0**-_FRACTION_BITS
    return -mx.log(-mx.log(fraction))


def draw(logits: mx.array, noise: mx.array, *, temperature: float, top_k: int, top_p: float) -> mx.array:
    """Draw one code per row, int32 of shape (n_rows,); temperature 0 is greedy, and top_p counts within top_k.

    Logits are float32 of shape (n_rows, n_codes), of which -inf is never drawn, and noise has n_codes or more.
    """
    if temperature == 0:
        return logits.argmax(-1).astype(mx.int32)
    likely = mx.topk(logits, min(top_k, logits.shape[-1]), axis=-1)
    floor = likely.min(-1, keepdims=True)
    if top_p < 1:
        likely = -mx.sort(-likely, axis=-1)
        share = mx.softmax(likely / temperature, axis=-1)
        is_within = mx.cumsum(share, axis=-1) - share < top_p
        floor = mx.where(is_within, likely, mx.inf).min(-1, keepdims=True)
    dice = logits + temperature * noise[:, : logits.shape[-1]]
    return mx.where(logits >= floor, dice, -mx.inf).argmax(-1).astype(mx.int32)
