"""Products with packed INT8 and INT4 weights on a GPU; `ops.gpu_linear` is that of floating ones.

The Triton kernels multiply few rows of x. More rows, as `gpu_table` tells, go through a dense GEMM
with the weight, expanded by Triton. The callers have checked shapes and dtypes.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

from tamp_modifier.sparse import gpu_table
from tamp_modifier.sparse.int4_format import PackedInt4


@functools.cache
def available() -> bool:
    """Return whether Triton is installed, which these products need."""
    return importlib.util.find_spec("triton") is not None


def int_product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` in exact int32 sums.

    Args:
        x: int8 ``[m, in]``.
        weight: int8 ``[out, in]``.

    Returns:
        int32 ``[m, out]``.
    """
    if weight.shape[0] % 8 or weight.shape[1] % 8:  # torch._int_mm refuses them on a GPU
        return (x.double() @ weight.double().t()).to(torch.int32)
    # It also wants more than 16 rows.
    padded = torch.nn.functional.pad(x, (0, 0, 0, max(0, 17 - x.shape[0])))
    return torch._int_mm(padded, weight.t())[: x.shape[0]]


def dense_int8(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    sums: Tensor,
    out: Tensor,
    bias: Tensor | None,
) -> None:
    """Write `linear_int8` with a dense int8 `weight` ``[out, in]`` to `out`."""
    totals = int_product(x, weight)
    if x_zero is not None:
        totals -= x_zero.view(-1, 1) * sums
    result = totals.float() * weight_scale.view(1, -1) * x_scale.view(-1, 1)
    out.copy_(result if bias is None else result + bias.float())


def linear_int8(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    weight_scale: Tensor,
    sums: Tensor,
    out: Tensor,
    bias: Tensor | None,
) -> None:
    """Write ``(x - x_zero) @ weight.T * weight_scale * x_scale + bias`` to `out`.

    Sums are exact; scales and bias are applied in fp32.

    Args:
        x: int8 ``[m, in]``, neither of them 0, contiguous.
        x_scale: fp32, `m` entries or one.
        x_zero: int32, as many as `x_scale`, or None.
        mask, values, offsets: of the packed int8 weight.
        weight_scale: fp32, `out` entries or one.
        sums: int32 ``[out]``, the sum of each row of the weight.
        out: ``[m, out]``, bf16, fp16 or fp32, contiguous.
        bias: ``[out]``, of a floating dtype.
    """
    from tamp_modifier.sparse import triton_int8, triton_kernels

    x_scale, weight_scale = x_scale.reshape(-1), weight_scale.reshape(-1)
    x_zero = None if x_zero is None else x_zero.reshape(-1)
    choice = gpu_table.choice("int8", x.device)
    if x.shape[0] > choice.sparse_rows:
        dense = triton_kernels.expand(mask, values, offsets, (out.shape[1], x.shape[1]))
        dense_int8(x, x_scale, x_zero, dense, weight_scale, sums, out, bias)
        return
    triton_int8.multiply(
        x,
        x_scale.contiguous(),
        None if x_zero is None else x_zero.contiguous(),
        (mask, values, offsets),
        weight_scale.contiguous(),
        sums.contiguous(),
        out,
        None if bias is None else bias.contiguous(),
        choice,
    )


def linear_int4(x: Tensor, packed: PackedInt4, bias: Tensor | None, out: Tensor) -> None:
    """Write ``x @ weight.T + bias`` to `out`.

    The kernel for few rows multiplies fp32 weights; the dense product rounds them to the dtype of
    `x`, as a W4A16 kernel does.

    Args:
        x: bf16, fp16 or fp32 ``[m, in]``, neither of them 0.
        packed: the weight ``[out, in]``.
        bias: ``[out]`` in the dtype of `x`.
        out: ``[m, out]`` in the dtype of `x`, contiguous.
    """
    from tamp_modifier.sparse import triton_int4

    x = x if packed.order is None else x.index_select(1, packed.order)
    choice = gpu_table.choice("int4", x.device)
    if x.shape[0] > choice.sparse_rows:
        dense = triton_int4.expand(packed, x.dtype)
        out.copy_(torch.nn.functional.linear(x, dense, bias))
        return
    bias = None if bias is None else bias.contiguous()
    triton_int4.multiply(x.contiguous(), packed, bias, out, choice)
