"""Triton kernel for packed INT8 weights and INT8 activations (W8A8), for few rows of x.

The walk over a block is that of `triton_kernels`. Sums are exact in int32; zero point, scales and
bias are applied to them at the end, in fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tamp_modifier.sparse.format import padding_length
from tamp_modifier.sparse.gpu_table import Choice
from tamp_modifier.sparse.triton_kernels import UNSPECIALIZED, read_tiles, read_x, row_totals


@triton.jit(do_not_specialize=UNSPECIALIZED)
def multiply_kernel(
    x_ptr,
    x_scale_ptr,
    x_zero_ptr,
    mask_ptr,
    values_ptr,
    offsets_ptr,
    weight_scale_ptr,
    row_sums_ptr,
    bias_ptr,
    y_ptr,
    kept,
    x_rows,
    rows,
    columns,
    tiles,
    PER_TOKEN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    M: tl.constexpr,
    TILES: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    base = tl.load(offsets_ptr + block)
    m = tl.arange(0, M)
    sums = tl.zeros((M, TILES * 4, 32), dtype=tl.int32)
    for first_tile in range(0, tiles, TILES):
        weights, base = read_tiles(
            mask_ptr, values_ptr, block, first_tile, base, kept, tiles, TILES
        )
        x = read_x(x_ptr, m, first_tile, x_rows, columns, TILES)
        sums += weights[None, :, :].to(tl.int32) * x.to(tl.int32)
    totals = row_totals(sums, M, TILES)
    row = block * 4 + tl.arange(0, 4)
    # The same scalar for all rows of x, or for all rows of the weight, where there is only one.
    token = m * PER_TOKEN
    channel = row * PER_CHANNEL
    if HAS_ZERO:
        zero = tl.load(x_zero_ptr + token, mask=m < x_rows, other=0)
        row_sums = tl.load(row_sums_ptr + row, mask=row < rows, other=0)
        totals -= zero[:, None] * row_sums[None, :]
    x_scale = tl.load(x_scale_ptr + token, mask=m < x_rows, other=0.0)
    weight_scale = tl.load(weight_scale_ptr + channel, mask=row < rows, other=0.0)
    result = totals.to(tl.float32) * weight_scale[None, :] * x_scale[:, None]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + row, mask=row < rows, other=0.0)
        result += bias[None, :].to(tl.float32)
    inside = (m[:, None] < x_rows) & (row[None, :] < rows)
    tl.store(y_ptr + m[:, None] * rows + row[None, :], result.to(y_ptr.dtype.element_ty), inside)


def multiply(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    weight: tuple[Tensor, Tensor, Tensor],
    weight_scale: Tensor,
    sums: Tensor,
    out: Tensor,
    bias: Tensor | None,
    choice: Choice,
) -> None:
    """Write ``(x - x_zero) @ weight.T * x_scale * weight_scale + bias`` to `out`.

    Args:
        x: int8 ``[m, in]``, contiguous as all tensors here.
        x_scale: fp32 ``[m]`` or ``[1]``.
        x_zero: int32 like `x_scale`, or None.
        weight: mask, values and offsets of the packed int8 weight.
        weight_scale: fp32 ``[out]`` or ``[1]``.
        sums: int32 ``[out]``, the sum of each row of the weight.
        out: ``[m, out]``, bf16, fp16 or fp32.
        bias: ``[out]``, of a floating dtype.
        choice: of the card, for "int8".
    """
    mask, values, offsets = weight
    columns, rows = x.shape[1], out.shape[1]
    kept = values.numel() - padding_length(values.dtype)
    per_token = x_scale.numel() > 1
    step, tiles, warps = choice.launch(x.shape[0])
    for first in range(0, x.shape[0], step):
        part = x[first : first + step]
        shift = first if per_token else 0
        multiply_kernel[(mask.shape[0],)](
            part,
            x_scale[shift:],
            None if x_zero is None else x_zero[shift:],
            mask,
            values,
            offsets,
            weight_scale,
            sums,
            bias,
            out[first : first + step],
            kept,
            part.shape[0],
            rows,
            columns,
            mask.shape[1],
            PER_TOKEN=int(per_token),
            PER_CHANNEL=int(weight_scale.numel() > 1),
            HAS_ZERO=x_zero is not None,
            HAS_BIAS=bias is not None,
            M=step,
            TILES=tiles,
            num_warps=warps,
        )
