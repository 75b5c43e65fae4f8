"""INT8: packed int8 weights times int8 activations, with exact int32 sums.

``torch.ops.tamp_modifier.sparse_linear_int8(x, x_scale, x_zero, mask, values, offsets,
weight_scale, sums, out_features, bias, dtype)`` is the operator, `linear_int8` calls it. The
arithmetic is that of compressed-tensors' W8A8 as oneDNN computes it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tamp_modifier.sparse import gpu, native
from tamp_modifier.sparse.format import (
    BLOCK_ROWS,
    COMPUTE_DTYPES,
    PackedWeight,
    padding_length,
)
from tamp_modifier.sparse.ops import check_fit
from tamp_modifier.sparse.packing import unpack_blocks

MOST_COLUMNS = 131071
"""Above it a sum of products of two int8 can exceed int32."""
# Bytes of one part of the weight as fp64, where torch multiplies.
_EXPANDED_BYTES = 8 << 20


def row_sums(packed: PackedWeight) -> Tensor:
    """Return the sum of each row of a packed int8 weight, int32 ``[out]``.

    Zero points of activations are corrected with it. It is computed once for each weight.

    Raises:
        ValueError: the weight is not int8, or has too many columns.
        RuntimeError: its mask and offsets disagree.
    """
    _check_weight(packed.values, packed.shape[1])
    shape, sums = packed.shape, packed.mask.new_zeros(packed.shape[0])
    if native.available() and packed.device.type == "cpu":
        native.row_sums(packed.mask, packed.values, packed.offsets, packed.kept, shape[1], sums)
        return sums
    for first, part in _parts(packed.mask, packed.values, packed.offsets, shape):
        sums[first : first + part.shape[0]] = part.sum(1, dtype=torch.int32)
    return sums


def linear_int8(
    x: Tensor,
    x_scale: Tensor,
    packed: PackedWeight,
    weight_scale: Tensor,
    sums: Tensor,
    *,
    x_zero: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype,
) -> Tensor:
    """Multiply quantized activations with a packed int8 weight without expanding it.

    ``y = (sum over k of (x - x_zero) w) * weight_scale * x_scale + bias``. The sum is exact; scales
    and bias are applied in fp32 before the result is rounded to `dtype`.

    Args:
        x: int8 ``[..., in]``.
        x_scale: fp32, one for each row of `x` (``[..., 1]``) or one for all (``[1]``).
        packed: int8 ``[out, in]``; `validate` it first if it does not come from `pack`.
        weight_scale: fp32 ``[out]`` or ``[1]``.
        sums: `row_sums` of the weight.
        x_zero: int32, as many as `x_scale`; None for symmetric activations.
        bias: ``[out]`` in `dtype`.
        dtype: of the result: bf16, fp16 or fp32.

    Returns:
        ``[..., out]`` in `dtype`.

    Raises:
        ValueError: dtypes or shapes do not fit.
        RuntimeError: mask and offsets of the weight disagree.
    """
    if x.dim() and x.shape[-1] != packed.shape[1]:
        raise ValueError(f"x has {x.shape[-1]} features, the weight {packed.shape[1]}")
    return torch.ops.tamp_modifier.sparse_linear_int8(
        x,
        x_scale,
        x_zero,
        packed.mask,
        packed.values,
        packed.offsets,
        weight_scale,
        sums,
        packed.shape[0],
        bias,
        dtype,
    )


def _check_weight(values: Tensor, columns: int) -> None:
    if values.dtype != torch.int8:
        raise ValueError(f"the weight has dtype {values.dtype}, expected torch.int8")
    if columns > MOST_COLUMNS:
        raise ValueError(f"the weight has {columns} columns; int32 sums hold {MOST_COLUMNS}")


def _check_vector(name: str, vector: Tensor, dtype: torch.dtype, sizes: set[int]) -> None:
    if vector.dtype != dtype or vector.numel() not in sizes:
        allowed = " or ".join(str(size) for size in sorted(sizes))
        raise ValueError(
            f"{name} must be {dtype} with {allowed} entries, "
            f"got {vector.dtype} {tuple(vector.shape)}"
        )


def _check(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    weight_scale: Tensor,
    sums: Tensor,
    out_features: int,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> None:
    """All that can be checked without reading the tensors; called for every product."""
    if x.dtype != torch.int8:
        raise ValueError(f"x has dtype {x.dtype}, expected torch.int8")
    if dtype not in COMPUTE_DTYPES:
        allowed = ", ".join(str(each).removeprefix("torch.") for each in COMPUTE_DTYPES)
        raise ValueError(f"dtype is {dtype}, allowed are {allowed}")
    check_fit(x, mask, values, offsets, out_features)
    _check_weight(values, x.shape[-1])
    rows = x.shape[:-1].numel()
    _check_vector("x_scale", x_scale, torch.float32, {1, rows})
    if x_zero is not None:
        _check_vector("x_zero", x_zero, torch.int32, {x_scale.numel()})
    _check_vector("weight_scale", weight_scale, torch.float32, {1, out_features})
    _check_vector("sums", sums, torch.int32, {out_features})
    if bias is not None:
        _check_vector("bias", bias, dtype, {out_features})
    given = {"x_scale": x_scale, "x_zero": x_zero, "weight_scale": weight_scale, "sums": sums}
    for name, tensor in {**given, "bias": bias}.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}; all must be on one")


def _parts(
    mask: Tensor, values: Tensor, offsets: Tensor, shape: tuple[int, int]
) -> Iterator[tuple[int, Tensor]]:
    """First row and dense rows of each part of the weight."""
    step = max(1, _EXPANDED_BYTES // max(1, BLOCK_ROWS * shape[1] * 8))
    for block in range(0, mask.shape[0], step):
        stop = min(block + step, mask.shape[0])
        yield block * BLOCK_ROWS, unpack_blocks(mask, values, offsets, shape, (block, stop))


def _torch_linear(
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
    """Write the product of `x` ``[rows, in]`` to `out`; fp64 holds the sums exactly."""
    wide = x.double()
    exact = torch.empty(out.shape, dtype=torch.float64, device=x.device)
    for first, part in _parts(mask, values, offsets, (out.shape[1], x.shape[1])):
        exact[:, first : first + part.shape[0]] = wide @ part.double().t()
    if x_zero is not None:
        exact -= x_zero.reshape(-1, 1).double() * sums.double()
    result = exact.float() * weight_scale.reshape(1, -1) * x_scale.reshape(-1, 1)
    out.copy_(result if bias is None else result + bias.float())


def _linear_int8(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    weight_scale: Tensor,
    sums: Tensor,
    out_features: int,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Arguments, result and errors as in `linear_int8`."""
    _check(x, x_scale, x_zero, mask, values, offsets, weight_scale, sums, out_features, bias, dtype)
    out = x.new_empty(*x.shape[:-1], out_features, dtype=dtype)
    if out.numel() == 0:
        return out
    if x.shape[-1] == 0:
        return out.zero_() if bias is None else out.copy_(bias.expand_as(out))
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    target = out.view(-1, out_features)
    if not (native.available() and x.device.type == "cpu"):
        on_gpu = x.device.type == "cuda" and gpu.available()
        multiply = gpu.linear_int8 if on_gpu else _torch_linear
        multiply(flat, x_scale, x_zero, mask, values, offsets, weight_scale, sums, target, bias)
        return out
    native.linear_int8(
        flat,
        x_scale.contiguous(),
        None if x_zero is None else x_zero.contiguous(),
        mask,
        values,
        offsets,
        values.shape[0] - padding_length(values.dtype),
        weight_scale.contiguous(),
        sums.contiguous(),
        target,
        None if bias is None else bias.contiguous(),
    )
    return out


def _fake_linear_int8(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    weight_scale: Tensor,
    sums: Tensor,
    out_features: int,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features, dtype=dtype)


_library = torch.library.Library("tamp_modifier", "FRAGMENT")
_library.define(
    "sparse_linear_int8(Tensor x, Tensor x_scale, Tensor? x_zero, Tensor mask, Tensor values, "
    "Tensor offsets, Tensor weight_scale, Tensor sums, int out_features, Tensor? bias, "
    "ScalarType dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("sparse_linear_int8", _linear_int8, "CompositeExplicitAutograd")
torch.library.register_fake("tamp_modifier::sparse_linear_int8", _fake_linear_int8, lib=_library)
