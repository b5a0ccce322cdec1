"""The operations of `ops.Ops` as Triton kernels, one each for one or two rows; a frame is 560 of them.

Each equals the function of the same name in `ops` up to rounding, and computes in float32. Nothing is read back to the
host and results come from torch's allocator, so that kernels can be captured in a CUDA graph. Triton compiles a kernel
at its first call, in the warm-up runs before a capture; it must not specialize on the length of the cache, which
differs there.

On Hopper and later, a kernel starts while the one before it still runs, and reads its weights before it waits for it
("programmatic dependent launch"). So each kernel that is launched this way must wait before it reads or writes
anything else, and once in any case, since the next kernel relies on it.
"""

from __future__ import annotations

from functools import cache as cached
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from afterwords.backends.qwen3.torch import ops
from afterwords.backends.qwen3.torch.ops import Matrix

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # before Triton 3.4
    gdc_launch_dependents = gdc_wait = None

_SWIGLU_BLOCK: Final = 1024
_SNAKE_BLOCK: Final = 1024
_KEYS_AT_ONCE: Final = 128
_MOST_ROWS: Final = 64
_OUTPUTS_AT_ONCE, _INPUTS_AT_ONCE = 32, 128
_FEW_ROWS: Final = 2
"""Up to as many, a kernel without tensor cores is faster than cuBLAS: reading the weights takes all the time."""


@cached
def _launch_options(device: torch.device) -> dict[str, Any]:
    """Return whether kernels overlap, as an argument of the kernel and as an option of its launch."""
    if device.type != "cuda" or gdc_wait is None or torch.cuda.get_device_capability(device) < (9, 0):
        return {"overlaps": False}
    return {"overlaps": True, "launch_pdl": True}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `ops.rms_norm`, for x of shape (n, width)."""
    n, width = x.shape
    out = torch.empty((n, width), dtype=x.dtype, device=x.device)
    _rms_norm[(n,)](
        x, weight, out, x.stride(0), eps,
        width=width, block=triton.next_power_of_2(width), **_launch_options(x.device),
    )  # fmt: skip
    return out


@triton.jit
def _rms_norm(
    x, weight, out, row_stride, eps, width: tl.constexpr, block: tl.constexpr, overlaps: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    gain = tl.load(weight + at, mask=at < width, other=0.0).to(tl.float32)
    if overlaps:
        gdc_launch_dependents()
        gdc_wait()
    level = tl.load(x + row * row_stride + at, mask=at < width, other=0.0).to(tl.float32)
    level = level * tl.rsqrt(tl.sum(level * level) / width + eps)
    tl.store(out + row * width + at, (level * gain).to(out.dtype.element_ty), mask=at < width)


def norm_linear(x: Tensor, norm: Tensor, weight: Matrix, eps: float) -> Tensor:
    """As `ops.norm_linear`."""
    if len(x) > _FEW_ROWS:
        return linear(rms_norm(x, norm, eps), weight)
    return _apply(x, weight, norm=norm, eps=eps)


def norm_swiglu(x: Tensor, norm: Tensor, gate_up: Matrix, eps: float) -> Tensor:
    """As `ops.norm_swiglu`."""
    if len(x) > _FEW_ROWS:
        return swiglu(linear(rms_norm(x, norm, eps), gate_up))
    return _apply(x, gate_up, norm=norm, eps=eps, is_gated=True)


def add_linear_(x: Tensor, y: Tensor, weight: Matrix) -> None:
    """As `ops.add_linear_`."""
    if len(x) <= _FEW_ROWS:
        _apply(y, weight, stream=x)
    elif isinstance(weight, Tensor):
        ops.add_linear_(x, y, weight)
    else:
        x.add_(linear(y, weight))


def _apply(
    x: Tensor,
    weight: Matrix,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    is_gated: bool = False,
    stream: Tensor | None = None,
) -> Tensor:
    """Apply a linear layer to a few rows: after a norm, as a gate, or added to a residual stream."""
    values, scales = (weight, None) if isinstance(weight, Tensor) else (weight.values, weight.scales)
    is_fp8 = scales is not None and values.is_floating_point()
    values = values.view(torch.uint8) if is_fp8 else values
    n_in, n_out = values.shape[1], len(values) // (2 if is_gated else 1)
    out = torch.empty((len(x), n_out), dtype=x.dtype, device=x.device) if stream is None else stream
    block_in = triton.next_power_of_2(n_in)
    # Measured on an H200: most rows of weights at once that don't spill registers.
    block_out = max(1, (16_384 if block_in >= 2048 else 8192) // block_in) // (2 if is_gated else 1)
    block_out = min(max(1, block_out), triton.next_power_of_2(n_out))
    _matvec[(triton.cdiv(n_out, block_out),)](
        x, x if norm is None else norm, values, x if scales is None else scales, out, x.stride(0), out.stride(0), eps,
        n_rows=len(x), n_in=n_in, n_out=n_out, block_out=block_out, block_in=block_in,
        has_norm=norm is not None, has_scales=scales is not None, is_fp8=is_fp8,
        is_gated=is_gated, is_added=stream is not None, **_launch_options(x.device),
    )  # fmt: skip
    return out


@triton.jit
def _widen(values, is_fp8: tl.constexpr):
    """Convert weights to float32; fp8 as bits of a float16 that is 256 times smaller: GPUs before Ada have no fp8."""
    if is_fp8:
        bits = values.to(tl.int16)
        values = (((bits & 0x7F) << 7) | ((bits & 0x80) << 8)).to(tl.float16, bitcast=True)
    return values.to(tl.float32)


@triton.jit
def _matvec(
    x, norm, values, scales, out, x_row, out_row, eps,
    n_rows: tl.constexpr, n_in: tl.constexpr, n_out: tl.constexpr, block_out: tl.constexpr, block_in: tl.constexpr,
    has_norm: tl.constexpr, has_scales: tl.constexpr, is_fp8: tl.constexpr,
    is_gated: tl.constexpr, is_added: tl.constexpr, overlaps: tl.constexpr,
) -> None:  # fmt: skip
    at, column = tl.program_id(0) * block_out + tl.arange(0, block_out), tl.arange(0, block_in)
    is_output, is_input = at < n_out, column < n_in
    there = values + at[:, None].to(tl.int64) * n_in + column[None, :]
    both = is_output[:, None] & is_input[None, :]
    if overlaps:
        gdc_launch_dependents()
    weight = tl.load(there, mask=both, other=0)
    if is_gated:
        other = tl.load(there + n_out * n_in, mask=both, other=0)
    if has_norm:
        gain = tl.load(norm + column, mask=is_input, other=0.0).to(tl.float32)
    if overlaps:
        gdc_wait()
    weight = _widen(weight, is_fp8)
    if is_gated:
        other = _widen(other, is_fp8)
    for row in tl.static_range(n_rows):
        level = tl.load(x + row * x_row + column, mask=is_input, other=0.0).to(tl.float32)
        scale = 256.0 if is_fp8 else 1.0
        if has_norm:
            scale *= tl.rsqrt(tl.sum(level * level) / n_in + eps)
            level *= gain
        total = tl.sum(weight * level[None, :], 1) * scale
        if has_scales:
            total *= tl.load(scales + at, mask=is_output, other=0.0)
        if is_gated:
            up = tl.sum(other * level[None, :], 1) * scale
            if has_scales:
                up *= tl.load(scales + n_out + at, mask=is_output, other=0.0)
            total *= tl.sigmoid(total) * up
        place = out + row * out_row + at
        if is_added:
            total += tl.load(place, mask=is_output, other=0.0).to(tl.float32)
        tl.store(place, total.to(out.dtype.element_ty), mask=is_output)


def linear(x: Tensor, weight: Matrix) -> Tensor:
    """As `ops.linear`; for quantized weights and up to 64 rows, a kernel that reads each weight once."""
    if len(x) <= _FEW_ROWS:
        return _apply(x, weight)
    if isinstance(weight, Tensor) or len(x) > _MOST_ROWS:
        return ops.linear(x, weight)
    (n, n_in), n_out = x.shape, len(weight.scales)
    out = torch.empty((n, n_out), dtype=x.dtype, device=x.device)
    is_fp8 = weight.values.is_floating_point()
    values = weight.values.view(torch.uint8) if is_fp8 else weight.values
    _linear[(triton.cdiv(n_out, _OUTPUTS_AT_ONCE),)](
        x, values, weight.scales, out, n, x.stride(0),
        n_in=n_in, n_out=n_out, is_fp8=is_fp8,
        n_rows=max(16, triton.next_power_of_2(n)), block_out=_OUTPUTS_AT_ONCE, block_in=_INPUTS_AT_ONCE,
    )  # fmt: skip
    return out


@triton.jit
def _linear(
    x, values, scales, out, n, x_row,
    n_in: tl.constexpr, n_out: tl.constexpr, is_fp8: tl.constexpr,
    n_rows: tl.constexpr, block_out: tl.constexpr, block_in: tl.constexpr,
) -> None:  # fmt: skip
    row, at = tl.arange(0, n_rows), tl.program_id(0) * block_out + tl.arange(0, block_out)
    is_row, is_output = (row < n)[:, None], (at < n_out)[None, :]
    total = tl.zeros((n_rows, block_out), tl.float32)
    for begin in range(0, n_in, block_in):
        column = begin + tl.arange(0, block_in)
        is_input = column < n_in
        level = tl.load(x + row[:, None] * x_row + column[None, :], mask=is_row & is_input[None, :], other=0.0)
        there = values + at[None, :].to(tl.int64) * n_in + column[:, None]
        value = tl.load(there, mask=is_input[:, None] & is_output, other=0)
        if is_fp8:  # as bits of a float16 that is 256 times smaller: GPUs before Ada have no fp8
            bits = value.to(tl.int16)
            value = (((bits & 0x7F) << 7) | ((bits & 0x80) << 8)).to(tl.float16, bitcast=True)
        total = tl.dot(level, value.to(level.dtype), total, input_precision="ieee")
    scale = tl.load(scales + at, mask=at < n_out, other=0.0)
    if is_fp8:
        scale *= 256.0
    place = out + row[:, None].to(tl.int64) * n_out + at[None, :]
    tl.store(place, (total * scale[None, :]).to(out.dtype.element_ty), mask=is_row & is_output)


def swiglu(gate_up: Tensor) -> Tensor:
    """As `ops.swiglu`, for shape (n, 2 * width), contiguous."""
    n, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((n, width), dtype=gate_up.dtype, device=gate_up.device)
    _swiglu[(n, triton.cdiv(width, _SWIGLU_BLOCK))](gate_up, out, width=width, block=_SWIGLU_BLOCK)
    return out


@triton.jit
def _swiglu(gate_up, out, width: tl.constexpr, block: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    gate = tl.load(gate_up + row * 2 * width + at, mask=at < width, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + at, mask=at < width, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=at < width)


def rotate_and_cache_(
    qkv: Tensor, rotation: Tensor, cache: Tensor, rows: Tensor, positions: Tensor, eps: float
) -> Tensor:
    """As `ops.rotate_and_cache_`; the heads of qkv, rotation and cache must be contiguous."""
    *leading, n_heads, head_dim = qkv.shape
    n_rotated, n_kept = rotation.shape[-2], cache.shape[-2]
    n_queries = n_heads - n_kept
    # As (n, length): in a step, each row has one position.
    n, length = (*leading, 1)[:2]
    qkv_at = _strides(qkv, 2, leading)
    rotation_at = _strides(rotation.expand(2, *leading, -1, -1)[0], 2, leading)
    row_at, position_at = (_strides(index.expand(leading), 0, leading) for index in (rows, positions))
    _rotate_and_cache[(n, length, n_heads)](
        qkv, rotation, cache, rows, positions,
        *qkv_at, *rotation_at, rotation.stride(0), *row_at, *position_at, eps, _n_positions(cache),
        n_queries=n_queries, n_rotated=n_rotated, head_dim=head_dim, block=triton.next_power_of_2(head_dim),
    )  # fmt: skip
    return qkv[..., :n_queries, :]


def _n_positions(cache: Tensor) -> int:
    """Return the number of positions of a cache, of which `cache` may be a view."""
    return cache.stride(0) // cache.stride(1)


def _strides(x: Tensor, n_last: int, leading: list[int]) -> tuple[int, int]:
    """Return the strides of the leading dimensions; 0 for the second if there is only one."""
    strides = x.stride()[: x.ndim - n_last]
    return (strides[0], strides[1] if len(leading) == 2 else 0)


@triton.jit(do_not_specialize=["n_positions"])
def _rotate_and_cache(
    qkv, rotation, cache, rows, positions,
    qkv_row, qkv_column, rotation_row, rotation_column, rotation_half,
    row_row, row_column, position_row, position_column, eps, n_positions,
    n_queries: tl.constexpr, n_rotated: tl.constexpr, head_dim: tl.constexpr, block: tl.constexpr,
) -> None:  # fmt: skip
    i, j, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    at = tl.arange(0, block)
    is_there = at < head_dim
    place = qkv + i * qkv_row + j * qkv_column + head * head_dim
    level = tl.load(place + at, mask=is_there, other=0.0).to(tl.float32)
    if head < n_rotated:
        half: tl.constexpr = head_dim // 2
        other = tl.load(place + tl.where(at < half, at + half, at - half), mask=is_there, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(level * level) / head_dim + eps)
        angle = rotation + i * rotation_row + j * rotation_column + head * head_dim + at
        cos = tl.load(angle, mask=is_there, other=0.0)
        sin = tl.load(angle + rotation_half, mask=is_there, other=0.0)
        level = scale * (level * cos + other * sin)
        tl.debug_barrier()  # read all of the head before overwriting it
        tl.store(place + at, level.to(qkv.dtype.element_ty), mask=is_there)
    if head >= n_queries:
        row = tl.load(rows + i * row_row + j * row_column)
        position = tl.load(positions + i * position_row + j * position_column)
        n_kept: tl.constexpr = 2 * (n_rotated - n_queries)
        kept = cache + ((row * n_positions + position) * n_kept + head - n_queries) * head_dim
        tl.store(kept + at, level.to(cache.dtype.element_ty), mask=is_there)


def rotate_and_attend(
    qkv: Tensor,
    rotation: Tensor,
    cache: Tensor,
    rows: Tensor,  # noqa: ARG001 - 0, 1, 2...
    positions: Tensor,
    mask: Tensor,  # noqa: ARG001 - given by the positions
    eps: float,
) -> Tensor:
    """As `ops.rotate_and_attend`, without reading keys after the position of a row."""
    n_rows, n_heads, head_dim = qkv.shape
    n_kept = cache.shape[2]
    n_queries = n_heads - n_kept
    out = torch.empty((n_rows, n_queries * head_dim), dtype=qkv.dtype, device=qkv.device)
    _rotate_and_attend[(n_rows, n_queries)](
        qkv, rotation, cache, positions, out,
        qkv.stride(0), rotation.stride(1) if rotation.shape[1] > 1 else 0, rotation.stride(0), _n_positions(cache),
        positions.stride(0) if len(positions) > 1 else 0, head_dim**-0.5, eps,
        n_queries=n_queries, n_kv_heads=n_kept // 2, head_dim=head_dim, block=triton.next_power_of_2(head_dim),
        n_keys=min(_KEYS_AT_ONCE, triton.next_power_of_2(cache.shape[1])), num_warps=4 if cache.shape[1] <= 32 else 8,
        **_launch_options(qkv.device),
    )  # fmt: skip
    return out


@triton.jit
def _rotate(place, angle, sine, eps, head_dim: tl.constexpr, block: tl.constexpr):
    """Return a normalized and rotated head, with cosines at `angle` and sines behind."""
    at = tl.arange(0, block)
    is_there = at < head_dim
    half: tl.constexpr = head_dim // 2
    level = tl.load(place + at, mask=is_there, other=0.0).to(tl.float32)
    other = tl.load(place + tl.where(at < half, at + half, at - half), mask=is_there, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(level * level) / head_dim + eps)
    cos = tl.load(angle + at, mask=is_there, other=0.0)
    sin = tl.load(angle + sine + at, mask=is_there, other=0.0)
    return scale * (level * cos + other * sin)


@triton.jit(do_not_specialize=["n_positions"])
def _rotate_and_attend(
    qkv, rotation, cache, positions, out,
    qkv_row, rotation_row, rotation_half, n_positions, position_row, scale, eps,
    n_queries: tl.constexpr, n_kv_heads: tl.constexpr, head_dim: tl.constexpr, block: tl.constexpr,
    n_keys: tl.constexpr, overlaps: tl.constexpr,
) -> None:  # fmt: skip
    if overlaps:
        gdc_launch_dependents()
        gdc_wait()
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    share: tl.constexpr = n_queries // n_kv_heads
    kv_head = head // share
    at, ahead = tl.arange(0, block), tl.arange(0, n_keys)
    is_there = at < head_dim
    last = tl.load(positions + row * position_row)
    heads, angles = qkv + row * qkv_row, rotation + row * rotation_row
    kv_at = (n_queries + kv_head) * head_dim
    query = _rotate(heads + head * head_dim, angles + head * head_dim, rotation_half, eps, head_dim, block) * scale
    key = _rotate(heads + kv_at, angles + kv_at, rotation_half, eps, head_dim, block)
    value = tl.load(heads + kv_at + n_kv_heads * head_dim + at, mask=is_there, other=0.0)
    key = key.to(cache.dtype.element_ty)
    kept: tl.constexpr = 2 * n_kv_heads * head_dim
    keys = cache + row * n_positions * kept + kv_head * head_dim + at
    if head % share == 0:
        tl.store(keys + last * kept, key, mask=is_there)
        tl.store(keys + last * kept + n_kv_heads * head_dim, value, mask=is_there)
    # The new key and value come from registers, so that programs don't wait for each other.
    most = tl.sum(query * key.to(tl.float32), 0)
    total = tl.full((), 1.0, tl.float32)
    weighted = value.to(tl.float32)
    for begin in range(0, last, n_keys):
        position = begin + ahead
        is_seen = position < last
        here = keys[None, :] + position[:, None].to(tl.int64) * kept
        both = is_seen[:, None] & is_there[None, :]
        old_keys = tl.load(here, mask=both, other=0.0).to(tl.float32)
        old_values = tl.load(here + n_kv_heads * head_dim, mask=both, other=0.0).to(tl.float32)
        match = tl.where(is_seen, tl.sum(old_keys * query[None, :], 1), float("-inf"))
        higher = tl.maximum(most, tl.max(match, 0))
        part = tl.exp(match - higher)
        fade = tl.exp(most - higher)
        total = total * fade + tl.sum(part, 0)
        weighted = weighted * fade + tl.sum(part[:, None] * old_values, 0)
        most = higher
    place = out + row * n_queries * head_dim + head * head_dim + at
    tl.store(place, (weighted / total).to(out.dtype.element_ty), mask=is_there)


def snake(x: Tensor, slope: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `ops.snake`; x is contiguous along its last dimension."""
    n_rows, n_channels, n = x.shape
    out = torch.empty((n_rows, n_channels, n), dtype=x.dtype, device=x.device)
    _snake[(n_rows * n_channels, triton.cdiv(n, _SNAKE_BLOCK))](
        x, slope, weight, bias, out, n, n_channels, x.stride(0), x.stride(1), block=_SNAKE_BLOCK
    )
    return out


@triton.jit
def _snake(x, slope, weight, bias, out, n, n_channels, x_row, x_channel, block: tl.constexpr) -> None:
    line = tl.program_id(0).to(tl.int64)
    row, channel = line // n_channels, line % n_channels
    at = tl.program_id(1) * block + tl.arange(0, block)
    level = tl.load(x + row * x_row + channel * x_channel + at, mask=at < n, other=0.0).to(tl.float32)
    level += tl.load(bias + channel).to(tl.float32)
    wave = tl.sin(level * tl.load(slope + channel).to(tl.float32))
    level += wave * wave * tl.load(weight + channel).to(tl.float32)
    tl.store(out + line * n + at, level.to(out.dtype.element_ty), mask=at < n)


def draw(logits: Tensor, beyond: Tensor, noise: Tensor, shares: tuple[Tensor, Tensor] | None) -> Tensor:
    """As `ops.draw`, except that ties at the edge of top_k may all be drawn.

    NaN gives a valid code, since one beyond the tables would break the device. Instead of sorting, the kernel finds the
    smallest logit that may be drawn, bit by bit.
    """
    n_rows, n_codes = logits.shape
    code = torch.empty((n_rows,), dtype=torch.int64, device=logits.device)
    top_p, temperature = shares if shares is not None else (noise, noise)  # not read then
    _draw[(n_rows,)](
        logits, beyond, noise, top_p, temperature, code,
        logits.stride(0), beyond.stride(0), noise.stride(0), top_p.stride(0), temperature.stride(0),
        n_codes=n_codes, n_ranks=min(beyond.shape[1], n_codes), with_top_p=shares is not None,
        block=triton.next_power_of_2(n_codes), rank_block=triton.next_power_of_2(beyond.shape[1]),
        **_launch_options(logits.device),
    )  # fmt: skip
    return code


@triton.jit
def _draw(
    logits, beyond, noise, top_p, temperature, code,
    logits_row, beyond_row, noise_row, top_p_row, temperature_row,
    n_codes: tl.constexpr, n_ranks: tl.constexpr, with_top_p: tl.constexpr, block: tl.constexpr,
    rank_block: tl.constexpr, overlaps: tl.constexpr,
) -> None:  # fmt: skip
    if overlaps:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    at, rank = tl.arange(0, block), tl.arange(0, rank_block)
    is_code = at < n_codes
    level = tl.load(logits + row * logits_row + at, mask=is_code, other=float("-inf")).to(tl.float32)
    is_out = tl.load(beyond + row * beyond_row + rank, mask=rank < n_ranks, other=1)
    level = tl.where(level == level, level, -3e38)  # noqa: PLR0124 - only NaN differs from itself
    n_kept = tl.sum((is_out == 0).to(tl.int32), 0)
    # The bits of a float32 as an integer with the same order; 0 is below all of them.
    bits = level.to(tl.int32, bitcast=True)
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 0x80000000
    order = tl.where(is_code, order, -1)
    least = tl.full((), 0, tl.int64)
    for bit in range(31, -1, -1):
        higher = least + (tl.full((), 1, tl.int64) << bit)
        least = tl.where(tl.sum((order >= higher).to(tl.int32), 0) >= n_kept, higher, least)
    is_kept = order >= least
    if with_top_p:
        heat = tl.maximum(tl.load(temperature + row * temperature_row), 1e-6)
        share = tl.where(is_kept, tl.exp((level - tl.max(level, 0)) / heat), 0.0)
        share = share / tl.sum(share, 0)
        limit = tl.load(top_p + row * top_p_row)
        # A code is kept if those above it have less than the limit: find the last one where they have as much.
        enough = tl.full((), 0, tl.int64)
        for bit in range(31, -1, -1):
            higher = enough + (tl.full((), 1, tl.int64) << bit)
            enough = tl.where(tl.sum(tl.where(order >= higher, share, 0.0), 0) >= limit, higher, enough)
        is_kept = is_kept & (order >= enough)
    dice = tl.load(noise + row * noise_row + at, mask=is_code, other=0.0)
    tl.store(code + row, tl.argmax(tl.where(is_kept, level + dice, float("-inf")), 0).to(tl.int64))
