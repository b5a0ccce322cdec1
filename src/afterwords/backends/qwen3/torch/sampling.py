"""Sampling of codes, with random numbers that depend on the seed of a row only.

Each random number is a hash of a seed, a frame, a codebook and a code. So a row gets the same codes in any batch, and a
captured graph has no generator state.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from afterwords.backends.qwen3.config import WIDEST_TOP_K

# SplitMix64. Source: G. Steele, D. Lea, C. Flood (2014), "Fast splittable pseudorandom number generators"; its
# constants as signed numbers, since torch multiplies and wraps int64 only.
_GOLDEN: Final = 0x9E3779B97F4A7C15 - 2**64
_FIRST: Final = 0xBF58476D1CE4E5B9 - 2**64
_SECOND: Final = 0x94D049BB133111EB - 2**64
_FRACTION_BITS: Final = 23  # and a half is added: 24 bits, all that float32 holds, so that 1 is never reached


def noise(seeds: Tensor, frames: Tensor, counters: Tensor) -> Tensor:
    """Return Gumbel noise: the code with the largest sum of logit and noise is a sample of the softmax.

    Seeds and frames are int64 of shape (n_rows,), counters distinct int64 of any shape; the noise is float32 of shape
    (n_rows, *counters.shape).
    """
    keys = _mix(_mix(seeds) + frames * _GOLDEN)
    numbers = _mix(keys.view(-1, *[1] * counters.ndim) + counters * _GOLDEN)
    fraction = _shift_right(numbers, 64 - _FRACTION_BITS).float().add_(0.5).mul_(2.0**-_FRACTION_BITS)
    return fraction.log_().neg_().log_().neg_()


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _FIRST
    z = (z ^ _shift_right(z, 27)) * _SECOND
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift right with zeros; torch shifts int64 with its sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def apply_penalty(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Apply the repetition penalty, shape (n_rows, 1), to logits of shape (n_rows, n_codes) where `seen` is true."""
    lower = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, lower, logits)


def draw(logits: Tensor, beyond: Tensor, noise: Tensor, shares: tuple[Tensor, Tensor] | None) -> Tensor:
    """Draw one code per row.

    Args:
        logits: Shape (n_rows, n_codes).
        beyond: shape (n_rows, WIDEST_TOP_K), bool: ranks that are not drawn from.
        noise: Noise times temperature, shape (n_rows, n_codes or more).
        shares: top_p and temperature, shape (n_rows, 1) each; None if no row has a top_p below 1.

    Returns:
        Shape (n_rows,), int64.
    """
    likely, codes = logits.topk(min(WIDEST_TOP_K, logits.shape[1]))
    likely = likely.float().masked_fill_(beyond[:, : likely.shape[1]], -torch.inf)
    if shares is not None:
        top_p, temperature = shares
        share = (likely / temperature.clamp(min=1e-6)).softmax(-1)
        likely = likely.masked_fill(share.cumsum(-1) - share >= top_p, -torch.inf)
    place = (likely + noise.gather(1, codes)).argmax(-1, keepdim=True)
    return codes.gather(1, place)[:, 0]
