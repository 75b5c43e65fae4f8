"""Sparse 4-bit weights (W4A16): the operator that multiplies with them, and all its names.

The operator is ``torch.ops.tamp_modifier.sparse_linear_int4(x, mask, values, offsets, scale, zeros,
order, out_features, group_size, bias, int8_activations)``. It works under `torch.compile` and has
no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tamp_modifier.sparse import gpu, native, native_int4
from tamp_modifier.sparse.format import BLOCK_ROWS, COMPUTE_DTYPES, TILE_COLUMNS
from tamp_modifier.sparse.int4_format import (
    SYMMETRIC_ZERO,
    PackedInt4,
    check_tensors,
    checked_group_size,
    unblocked,
    validate_int4,
)
from tamp_modifier.sparse.int4_packing import (
    col_slice_int4,
    join_rows_int4,
    pack_int4,
    row_slice_int4,
    torch_codes,
    unpack_int4,
)

__all__ = [
    "PackedInt4",
    "col_slice_int4",
    "dequantize_int4",
    "join_rows_int4",
    "linear_int4",
    "pack_int4",
    "row_slice_int4",
    "unpack_int4",
    "validate_int4",
]

# Bytes of one expanded part: fits the level-2 cache together with its share of x.
EXPANDED_BYTES = 2 << 20


def _check(x: Tensor, packed: PackedInt4, bias: Tensor | None) -> None:
    """All that can be checked without reading the tensors; called for every product."""
    out_features = packed.shape[0]
    if x.dtype not in COMPUTE_DTYPES:
        raise ValueError(f"x has dtype {x.dtype}, allowed are bfloat16, float16, float32")
    check_tensors(
        packed.mask,
        packed.values,
        packed.offsets,
        packed.scale,
        packed.zeros,
        packed.order,
        packed.shape,
        packed.group_size,
    )
    if packed.device != x.device:
        raise ValueError(f"x is on {x.device}, the weight on {packed.device}; both must be on one")
    if bias is not None and (bias.shape != (out_features,) or bias.dtype != x.dtype):
        raise ValueError(
            f"bias must be {x.dtype} [{out_features}], got {bias.dtype} {tuple(bias.shape)}"
        )


def _weights(packed: PackedInt4, begin: int, end: int) -> Tensor:
    """Weights of blocks begin .. end - 1 in stored order, fp32 ``[rows, in]``."""
    rows = min(packed.shape[0], end * BLOCK_ROWS) - begin * BLOCK_ROWS
    if native.available() and packed.device.type == "cpu":
        shape = ((end - begin) * BLOCK_ROWS, packed.mask.shape[1] * TILE_COLUMNS)
        dense = torch.empty(shape, dtype=torch.float32, device="cpu")
        native_int4.expand(packed, begin, end, dense)
        return dense[:rows, : packed.shape[1]]
    codes = torch_codes(packed, begin, end)

    def per_column(blocks: Tensor) -> Tensor:
        wide = unblocked(blocks[begin:end], rows).repeat_interleave(packed.group_size, 1)
        return wide[:, : packed.shape[1]].float()

    zeros = SYMMETRIC_ZERO if packed.zeros is None else per_column(packed.zeros)
    return (codes.float() - zeros) * per_column(packed.scale)


def dequantize_int4(packed: PackedInt4) -> Tensor:
    """Return ``(code - zero) * scale`` as fp32 ``[out, in]``, in the order of the checkpoint.

    Raises:
        ValueError: the tensors of `packed` do not fit each other.
    """
    validate_int4(packed)
    weights = _weights(packed, 0, packed.mask.shape[0])
    if packed.order is None:
        return weights.contiguous()
    return torch.empty_like(weights).index_copy_(1, packed.order, weights)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of fp32 ``[rows, in]`` to integers of at most 127; return them and the scales.

    The scale ``[rows, 1]`` is the largest magnitude of the row / 127, NaN where that is not finite.
    """
    most = x.abs().amax(1, keepdim=True)
    scale = torch.where(most.isfinite(), most / 127, torch.nan)
    levels = (x / scale).round()
    return torch.where(levels.abs() <= 127, levels, 0), scale


def _expanded_linear(
    x: Tensor, packed: PackedInt4, bias: Tensor | None, int8_activations: bool, out: Tensor
) -> None:
    """Compute the dense fp32 product ``x [rows, in]`` -> `out` ``[rows, out]``, in parts."""
    rows, features = out.shape[1], x.shape[1]
    x, scale = x.float(), None
    if packed.order is not None:
        x = x.index_select(1, packed.order)
    if int8_activations:
        x, scale = quantize_rows(x)
    step = max(1, EXPANDED_BYTES // (BLOCK_ROWS * features * 4))
    for block in range(0, packed.mask.shape[0], step):
        part = _weights(packed, block, min(block + step, packed.mask.shape[0]))
        first = block * BLOCK_ROWS
        last = min(rows, first + part.shape[0])
        y = x @ part.t()
        if scale is not None:
            y *= scale
        out[:, first:last] = y if bias is None else y + bias[first:last]


def _linear(
    x: Tensor,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    scale: Tensor,
    zeros: Tensor | None,
    order: Tensor | None,
    out_features: int,
    group_size: int,
    bias: Tensor | None = None,
    int8_activations: bool = False,
) -> Tensor:
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension")
    features = x.shape[-1]
    shape = (out_features, features)
    size = checked_group_size(group_size, features)
    packed = PackedInt4(mask, values, offsets, scale, zeros, order, shape, size)
    _check(x, packed, bias)
    out = x.new_empty(*x.shape[:-1], out_features)
    if out.numel() == 0:
        return out
    if features == 0:
        return out.zero_() if bias is None else out.copy_(bias.expand_as(out))
    rows = x.numel() // features
    flat, target = x, out
    if x.dim() != 2:
        flat, target = x.reshape(rows, features), out.view(rows, out_features)
    if (
        native.available()
        and x.device.type == "cpu"
        and rows <= native_int4.most_rows(x.dtype, int8_activations)
    ):
        bias = None if bias is None else bias.contiguous()
        native_int4.linear(flat.contiguous(), packed, bias, int8_activations, target)
    elif x.device.type == "cuda" and not int8_activations and gpu.available():
        gpu.linear_int4(flat, packed, bias, target)
    else:
        _expanded_linear(flat, packed, bias, int8_activations, target)
    return out


def _fake_linear(
    x: Tensor,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    scale: Tensor,
    zeros: Tensor | None,
    order: Tensor | None,
    out_features: int,
    group_size: int,
    bias: Tensor | None = None,
    int8_activations: bool = False,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


_library = torch.library.Library("tamp_modifier", "FRAGMENT")
_library.define(
    "sparse_linear_int4(Tensor x, Tensor mask, Tensor values, Tensor offsets, Tensor scale, "
    "Tensor? zeros, Tensor? order, int out_features, int group_size, Tensor? bias=None, "
    "bool int8_activations=False) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("sparse_linear_int4", _linear, "CompositeExplicitAutograd")
torch.library.register_fake("tamp_modifier::sparse_linear_int4", _fake_linear, lib=_library)


def linear_int4(
    x: Tensor, packed: PackedInt4, bias: Tensor | None = None, *, int8_activations: bool = False
) -> Tensor:
    """``x @ weight.T + bias`` for a sparse 4-bit weight, ``(code - zero) * scale``.

    Sums are fp32; on processors with AVX-512 BF16, x in bf16 is multiplied as it is.

    Args:
        x: ``[..., in]``, bf16, fp16 or fp32.
        packed: the weight; `validate_int4` it first if it does not come from `pack_int4`.
        bias: ``[out]`` in the dtype of `x`.
        int8_activations: round each row of `x` to int8 first, by its largest magnitude: faster
            where the processor has VNNI, and another arithmetic than the scheme's.

    Returns:
        ``[..., out]`` in the dtype of `x`.

    Raises:
        ValueError: dtypes or shapes do not fit.
        RuntimeError: mask and offsets of the weight disagree.
    """
    if x.dim() and x.shape[-1] != packed.shape[1]:
        raise ValueError(f"x has {x.shape[-1]} features, the weight {packed.shape[1]}")
    return torch.ops.tamp_modifier.sparse_linear_int4(
        x,
        packed.mask,
        packed.values,
        packed.offsets,
        packed.scale,
        packed.zeros,
        packed.order,
        packed.shape[0],
        packed.group_size,
        bias,
        int8_activations,
    )
