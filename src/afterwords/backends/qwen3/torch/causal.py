"""Causal convolutions that keep their past inputs, for both halves of the codec.

Audio in chunks gives exactly the output of the whole audio. The past inputs are a tensor of a fixed shape that is
updated in place, so that a step can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class CausalConv:
    """A causal convolution.

    Args:
        weight: Shape (outputs, inputs / groups, kernel).
        bias: Shape (outputs,), or None.
        dilation: Inputs between two taps.
        stride: Inputs between two outputs.
        groups: As in torch's conv1d.
        rate: Input samples per codec frame; needed if the rows of a batch differ in length.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, dilation: int = 1, stride: int = 1, groups: int = 1, rate: int = 1
    ) -> None:
        self.weight, self.bias = weight, bias
        self.dilation, self.stride, self.groups, self.rate = dilation, stride, groups, rate
        self.n_inputs = weight.shape[1] * groups
        self.n_past = (weight.shape[-1] - 1) * dilation + 1 - stride

    def new_past(self, batch: int) -> Tensor:
        """Return the past inputs before the first sample: silence, shape (batch, inputs, n_past)."""
        return self.weight.new_zeros(batch, self.n_inputs, self.n_past)

    def __call__(self, x: Tensor, past: Tensor, frames: Tensor | None = None) -> Tensor:
        """Convolve the next chunk.

        Args:
            x: Shape (batch, inputs, n). If n is not a multiple of the stride, the audio ends here and silence is
                appended.
            past: From `new_past` or the previous chunk; updated in place.
            frames: Number of valid codec frames in each row, shape (batch,); later ones are not kept.

        Returns:
            Shape (batch, outputs, ceil(n / stride)).
        """
        joined = remember(past, x, None if frames is None else frames * self.rate)
        if missing := -x.shape[-1] % self.stride:
            joined = functional.pad(joined, (0, missing))
        return functional.conv1d(joined, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class CausalUpsampling:
    """A causal transposed convolution.

    Args:
        weight: Shape (inputs, outputs, kernel).
        bias: Shape (outputs,), or None.
        stride: Outputs per input, at most the kernel.
        rate: Input samples per codec frame.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, stride: int, rate: int = 1) -> None:
        self.weight, self.bias = weight, bias
        self.stride, self.rate = stride, rate
        self.n_past = -(-weight.shape[-1] // stride) - 1

    def new_past(self, batch: int) -> Tensor:
        """Return the past inputs before the first sample: silence, shape (batch, inputs, n_past)."""
        return self.weight.new_zeros(batch, self.weight.shape[0], self.n_past)

    def __call__(self, x: Tensor, past: Tensor, frames: Tensor | None = None) -> Tensor:
        """Upsample the next chunk of shape (batch, inputs, n) to (batch, outputs, n * stride), as `CausalConv`."""
        joined = remember(past, x, None if frames is None else frames * self.rate)
        spread = functional.conv_transpose1d(joined, self.weight, self.bias, self.stride)
        return spread.narrow(-1, self.n_past * self.stride, x.shape[-1] * self.stride)


def remember(past: Tensor, x: Tensor, taken: Tensor | None, *, dim: int = -1) -> Tensor:
    """Append new inputs to the past ones, and update the past.

    Args:
        past: Past inputs; updated in place to the last valid inputs, of the same length.
        x: New inputs, of the same shape except along `dim`.
        taken: Number of valid inputs in each row of x, shape (rows,); None for all.
        dim: Axis of time.

    Returns:
        The past inputs followed by x.
    """
    size = past.shape[dim]
    if size == 0:
        return x
    joined = torch.cat([past, x], dim=dim)
    if taken is None:
        past.copy_(joined.narrow(dim, x.shape[dim], size))
        return joined
    shape = [1] * past.ndim
    shape[0], shape[dim] = len(taken), size
    at = (taken[:, None] + torch.arange(size, device=x.device)).view(shape)
    past.copy_(joined.gather(dim, at.expand_as(past)))
    return joined
