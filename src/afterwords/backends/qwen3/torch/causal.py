"""Convolutions that look back only, and remember what they looked back at.

Given sound piece by piece they answer exactly what they answer to the whole of it. Each keeps the last samples of its
input in a tensor of a fixed shape, which is updated in place, so that a step over them can be captured in a CUDA graph.
Both halves of the codec are made of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class CausalConv:
    """A convolution whose every output depends on inputs up to its own time.

    Args:
        weight: shape (outputs, inputs / groups, kernel).
        bias: shape (outputs,); None for none.
        dilation: inputs between two taps.
        stride: inputs between two outputs.
        groups: as in torch's conv1d.
        rate: samples of its input in one codec frame; needed where rows of a batch are not of one length.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, dilation: int = 1, stride: int = 1, groups: int = 1, rate: int = 1
    ) -> None:
        self.weight, self.bias = weight, bias
        self.dilation, self.stride, self.groups, self.rate = dilation, stride, groups, rate
        self.n_inputs = weight.shape[1] * groups
        self.n_past = (weight.shape[-1] - 1) * dilation + 1 - stride

    def new_past(self, batch: int) -> Tensor:
        """What it remembers before the first sample: silence, shape (batch, inputs, n_past)."""
        return self.weight.new_zeros(batch, self.n_inputs, self.n_past)

    def __call__(self, x: Tensor, past: Tensor, frames: Tensor | None = None) -> Tensor:
        """Convolve the next piece.

        Args:
            x: shape (batch, inputs, n). Where n is no multiple of the stride, the sound ends here, and silence is
                thought behind it.
            past: as `new_past` or as the piece before left it; updated in place.
            frames: codec frames that count in each row, shape (batch,); what follows them is not remembered.

        Returns:
            Shape (batch, outputs, ceil(n / stride)).
        """
        joined = remember(past, x, None if frames is None else frames * self.rate)
        if missing := -x.shape[-1] % self.stride:
            joined = functional.pad(joined, (0, missing))
        return functional.conv1d(joined, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class CausalUpsampling:
    """A transposed convolution whose every output depends on inputs up to its own time.

    Args:
        weight: shape (inputs, outputs, kernel).
        bias: shape (outputs,).
        stride: outputs for each input, at most the kernel.
        rate: samples of its input in one codec frame.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int, rate: int = 1) -> None:
        self.weight, self.bias = weight, bias
        self.stride, self.rate = stride, rate
        self.n_past = -(-weight.shape[-1] // stride) - 1

    def new_past(self, batch: int) -> Tensor:
        """What it remembers before the first sample: silence, shape (batch, inputs, n_past)."""
        return self.weight.new_zeros(batch, self.weight.shape[0], self.n_past)

    def __call__(self, x: Tensor, past: Tensor, frames: Tensor | None = None) -> Tensor:
        """Upsample the next piece of shape (batch, inputs, n), to (batch, outputs, n * stride). As `CausalConv`."""
        joined = remember(past, x, None if frames is None else frames * self.rate)
        spread = functional.conv_transpose1d(joined, self.weight, self.bias, self.stride)
        return spread.narrow(-1, self.n_past * self.stride, x.shape[-1] * self.stride)


def remember(past: Tensor, x: Tensor, taken: Tensor | None, *, dim: int = -1) -> Tensor:
    """Join what is past and what is new, and let the past go on.

    Args:
        past: updated in place: it becomes the last of both that counts, as long as it was.
        x: of the same shape, but along `dim`.
        taken: how many of x count in each row, shape (rows,); None for all.
        dim: the axis of time.

    Returns:
        Both, x behind the past.
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
