"""Random pruned weights of each kind, packed, and what they stand for in fp64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tamp_modifier import sparse
from tamp_modifier.sparse import gpu, gpu_table, int4, ops

Multiply = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A pruned weight on a device, and its Triton kernels.

    Attributes:
        kind: "float", "int8" or "int4", as in the table of the GPU.
        exact: the dense weight in fp64, with its scales.
        expanded: what `expand` gives, before rounding.
        nbytes: of the packed weight.
        multiply: ``(x, bias, choice) -> y``: the sparse kernel, with few rows of x.
        linear: ``(x, bias) -> y``: what the operator does, by the table of the card.
        expand: the dense weight, in the dtype that `dense` multiplies.
        dense: ``(x, weight, bias) -> y``: the dense product; x as for `multiply`.
        x: ``rows -> x``, random.
        values: ``x -> fp64`` of what x stands for.
        dtype: of y and of the bias.
    """

    kind: str
    exact: Tensor
    expanded: Tensor
    nbytes: int
    multiply: Multiply
    linear: Multiply
    expand: Callable[[], Tensor]
    dense: Multiply
    x: Callable[[int], Any]
    values: Callable[[Any], Tensor]
    dtype: torch.dtype


def random_keep(shape: tuple[int, int], sparsity: float, device: torch.device) -> Tensor:
    """Return where weights stay, bool."""
    return torch.rand(shape, device=device) >= sparsity


def float_case(
    shape: tuple[int, int], sparsity: float, device: torch.device, dtype: torch.dtype
) -> Case:
    """Return a weight of bf16, fp16 or fp32."""
    from tamp_modifier.sparse import triton_kernels

    weight = torch.randn(shape, device=device) * random_keep(shape, sparsity, device)
    weight = weight.to(dtype)
    packed = sparse.pack(weight)
    tensors = (packed.mask, packed.values, packed.offsets)

    def multiply(x: Tensor, bias: Tensor | None, choice: gpu_table.Choice) -> Tensor:
        out = x.new_empty(x.shape[0], shape[0])
        triton_kernels.multiply(x, *tensors, out, bias, choice)
        return out

    return Case(
        kind="float",
        exact=weight.double(),
        expanded=weight,
        nbytes=packed.nbytes,
        multiply=multiply,
        linear=lambda x, bias: ops.gpu_linear(x, *tensors, shape[0], bias),
        expand=lambda: triton_kernels.expand(*tensors, shape),
        dense=torch.nn.functional.linear,
        x=lambda rows: torch.randn(rows, shape[1], device=device).to(dtype),
        values=lambda x: x.double(),
        dtype=dtype,
    )


@dataclass(frozen=True)
class Int8:
    """INT8 activations: the values, their scales and their zero points."""

    values: Tensor
    scale: Tensor
    zero: Tensor | None


def int8_case(
    shape: tuple[int, int],
    sparsity: float,
    device: torch.device,
    dtype: torch.dtype,
    asymmetric: bool = False,
    whole: bool = False,
) -> Case:
    """W8A8: int8 weights with a scale a channel, int8 activations with a scale a token.

    Args:
        shape: ``(out, in)``.
        sparsity: share of zeros.
        device: where the tensors lie.
        dtype: of the product.
        asymmetric: activations have zero points.
        whole: one scale for all channels and one for all tokens.
    """
    from tamp_modifier.sparse import triton_int8, triton_kernels

    codes = torch.randint(-128, 128, shape, device=device, dtype=torch.int8)
    weight = codes * random_keep(shape, sparsity, device)
    weight_scale = torch.rand(1 if whole else shape[0], device=device) / 64 + 1e-3
    packed = sparse.pack(weight)
    tensors = (packed.mask, packed.values, packed.offsets)
    sums = weight.sum(1, dtype=torch.int32)

    def random_x(rows: int) -> Int8:
        tokens = 1 if whole else rows
        values = torch.randint(-128, 128, (rows, shape[1]), device=device, dtype=torch.int8)
        zero = torch.randint(-20, 20, (tokens,), device=device, dtype=torch.int32)
        scale = torch.rand(tokens, device=device) / 64 + 1e-3
        return Int8(values, scale, zero if asymmetric else None)

    def multiply(x: Int8, bias: Tensor | None, choice: gpu_table.Choice) -> Tensor:
        out = torch.empty(x.values.shape[0], shape[0], device=device, dtype=dtype)
        triton_int8.multiply(
            x.values, x.scale, x.zero, tensors, weight_scale, sums, out, bias, choice
        )
        return out

    def dense(x: Int8, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = torch.empty(x.values.shape[0], shape[0], device=device, dtype=dtype)
        gpu.dense_int8(x.values, x.scale, x.zero, weight, weight_scale, sums, out, bias)
        return out

    def linear(x: Int8, bias: Tensor | None) -> Tensor:
        out = torch.empty(x.values.shape[0], shape[0], device=device, dtype=dtype)
        gpu.linear_int8(x.values, x.scale, x.zero, *tensors, weight_scale, sums, out, bias)
        return out

    def values(x: Int8) -> Tensor:
        shifted = x.values.double() if x.zero is None else x.values.double() - x.zero[:, None]
        return shifted * x.scale.double()[:, None]

    return Case(
        kind="int8",
        exact=weight.double() * weight_scale.double().view(-1, 1),
        expanded=weight,
        nbytes=packed.nbytes + weight_scale.nbytes + sums.nbytes,
        multiply=multiply,
        linear=linear,
        expand=lambda: triton_kernels.expand(*tensors, shape),
        dense=dense,
        x=random_x,
        values=values,
        dtype=dtype,
    )


def int4_case(
    shape: tuple[int, int],
    sparsity: float,
    device: torch.device,
    dtype: torch.dtype,
    group_size: int = 128,
    asymmetric: bool = False,
    reordered: bool = False,
) -> Case:
    """W4A16: 4-bit codes with a scale for each group of columns of a row.

    Args:
        shape: ``(out, in)``.
        sparsity: share of zeros.
        device: where the tensors lie.
        dtype: of scales, x and the product.
        group_size: columns of a group, a multiple of 32, or -1: all.
        asymmetric: groups have zero codes of their own.
        reordered: groups are made of columns in a random order.
    """
    from tamp_modifier.sparse import triton_int4

    size = shape[1] if group_size == -1 else group_size
    groups = -(-shape[1] // size)
    scale = (torch.rand(shape[0], groups, device=device) / 8 + 1e-2).to(dtype)
    zeros = torch.full((shape[0], groups), 8, device=device, dtype=torch.uint8)
    if asymmetric:
        zeros = torch.randint(0, 16, zeros.shape, device=device, dtype=torch.uint8)
    order = torch.randperm(shape[1], device=device) if reordered else None
    # The group of each column.
    group = torch.arange(shape[1], device=device) // size
    group = group if order is None else torch.empty_like(group).index_copy_(0, order, group)
    codes = torch.randint(0, 16, shape, device=device, dtype=torch.uint8)
    codes = torch.where(random_keep(shape, sparsity, device), codes, zeros[:, group])
    exact = (codes.double() - zeros[:, group]) * scale.double()[:, group]
    packed = int4.pack_int4(codes, scale, zeros if asymmetric else None, group_size, order)

    def ordered(x: Tensor) -> Tensor:
        return x if order is None else x[:, order]

    def multiply(x: Tensor, bias: Tensor | None, choice: gpu_table.Choice) -> Tensor:
        out = x.new_empty(x.shape[0], shape[0])
        triton_int4.multiply(ordered(x), packed, bias, out, choice)
        return out

    def linear(x: Tensor, bias: Tensor | None) -> Tensor:
        out = x.new_empty(x.shape[0], shape[0])
        gpu.linear_int4(x, packed, bias, out)
        return out

    return Case(
        kind="int4",
        exact=exact,
        expanded=ordered(exact),
        nbytes=packed.nbytes,
        multiply=multiply,
        linear=linear,
        expand=lambda: triton_int4.expand(packed, dtype),
        dense=lambda x, weight, bias=None: torch.nn.functional.linear(ordered(x), weight, bias),
        x=lambda rows: torch.randn(rows, shape[1], device=device).to(dtype),
        values=lambda x: x.double(),
        dtype=dtype,
    )
