"""Products of groups of rows with a weight each, as a mixture of experts needs them.

The weights of all groups are one `PackedWeight`, stacked along the rows, in which each group begins
with a block of its own. The rows of x are sorted by group. The operator is
``torch.ops.tamp_modifier.sparse_linear_grouped(x, bounds, mask, values, offsets, out_features,
bias)``; it works under `torch.compile` and exists on the CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tamp_modifier.sparse import native
from tamp_modifier.sparse.format import BLOCK_ROWS, PackedWeight, padding_length
from tamp_modifier.sparse.ops import check_operands, cpu_linear
from tamp_modifier.sparse.packing import pack, unpack


def pack_groups(weights: Tensor) -> PackedWeight:
    """Pack the weights of all groups into one.

    Args:
        weights: ``[groups, out, in]`` of a dtype of the format.

    Returns:
        A weight of ``groups * ceil(out / 4) * 4`` rows; the rows that fill a group up are zero.

    Raises:
        ValueError: wrong number of dimensions or dtype.
    """
    if weights.dim() != 3:
        raise ValueError(f"weights must be [groups, out, in], got shape {tuple(weights.shape)}")
    groups, rows, columns = weights.shape
    extra = -rows % BLOCK_ROWS
    if extra:
        weights = torch.cat([weights, weights.new_zeros(groups, extra, columns)], 1)
    return pack(weights.reshape(groups * (rows + extra), columns))


def unpack_groups(packed: PackedWeight, groups: int, out_features: int) -> Tensor:
    """Return the dense weights ``[groups, out, in]`` of what `pack_groups` has packed.

    Raises:
        ValueError: the tensors of `packed` do not fit each other.
    """
    dense = unpack(packed).view(groups, -1, packed.shape[1])
    return dense[:, :out_features].contiguous()


def _check(
    x: Tensor,
    bounds: Tensor,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    out_features: int,
    bias: Tensor | None,
) -> int:
    """Check all that can be checked without reading the tensors; return the blocks of a group."""
    if x.dim() != 2:
        raise ValueError(f"x must be [rows, in], got shape {tuple(x.shape)}")
    if bounds.dim() != 1 or bounds.shape[0] < 2 or bounds.dtype != torch.int64:
        raise ValueError(
            f"bounds must be int64 [groups + 1], got {bounds.dtype} {tuple(bounds.shape)}"
        )
    groups, blocks = bounds.shape[0] - 1, math.ceil(out_features / BLOCK_ROWS)
    if mask.shape[0] != groups * blocks or offsets.shape[0] != groups * blocks + 1:
        raise ValueError(
            f"{groups} groups of {out_features} rows need {groups * blocks} blocks, the mask has "
            f"{mask.shape[0]} and the offsets are for {offsets.shape[0] - 1}"
        )
    check_operands(x, mask[:blocks], values, offsets[: blocks + 1], out_features, None)
    if bias is not None and (bias.shape != (groups, out_features) or bias.dtype != x.dtype):
        raise ValueError(
            f"bias must be {x.dtype} [{groups}, {out_features}], got {bias.dtype} "
            f"{tuple(bias.shape)}"
        )
    return blocks


def cpu_linear_grouped(
    x: Tensor,
    bounds: Tensor,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    out_features: int,
    bias: Tensor | None = None,
) -> Tensor:
    """`linear_grouped` on the CPU: small groups in one native call, large ones by `cpu_linear`.

    Arguments, result and errors as in `linear_grouped`; `mask`, `values` and `offsets` are the
    weight.
    """
    blocks = _check(x, bounds, mask, values, offsets, out_features, bias)
    rows = x.shape[0]
    out = x.new_zeros(rows, out_features)  # rows of no group stay zero
    if out.numel() == 0:
        return out
    most = 0
    if native.available() and x.shape[1]:
        x, bounds = x.contiguous(), bounds.contiguous()
        bias = None if bias is None else bias.contiguous()
        most = native.most_rows(x.dtype)
        kept = values.shape[0] - padding_length(values.dtype)
        native.linear_grouped(x, bounds, most, mask, values, offsets, kept, out, bias)
        if rows <= most:
            return out
    limits = bounds.tolist()
    if limits != sorted(limits) or limits[0] < 0 or limits[-1] > rows:
        raise ValueError("bounds must ascend and lie within the rows of x")
    for group, (begin, end) in enumerate(zip(limits, limits[1:], strict=False)):
        if end - begin > most:
            first = group * blocks
            out[begin:end] = cpu_linear(
                x[begin:end],
                mask[first : first + blocks],
                values,
                offsets[first : first + blocks + 1],
                out_features,
                None if bias is None else bias[group],
            )
    return out


def _fake_linear_grouped(
    x: Tensor,
    bounds: Tensor,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    out_features: int,
    bias: Tensor | None = None,
) -> Tensor:
    return x.new_empty(x.shape[0], out_features)


_library = torch.library.Library("tamp_modifier", "FRAGMENT")
_library.define(
    "sparse_linear_grouped(Tensor x, Tensor bounds, Tensor mask, Tensor values, Tensor offsets, "
    "int out_features, Tensor? bias=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("sparse_linear_grouped", cpu_linear_grouped, "CPU")
torch.library.register_fake(
    "tamp_modifier::sparse_linear_grouped", _fake_linear_grouped, lib=_library
)


def linear_grouped(
    x: Tensor,
    bounds: Tensor,
    packed: PackedWeight,
    out_features: int,
    bias: Tensor | None = None,
) -> Tensor:
    """``x[r] @ weight[g].T + bias[g]`` for rows ``bounds[g]`` to ``bounds[g + 1] - 1`` of group g.

    Args:
        x: ``[rows, in]``, bf16, fp16 or fp32, of the dtype of the weight; sorted by group.
        bounds: int64 ``[groups + 1]``, ascending from 0 or more to `rows` or less.
        packed: of `pack_groups`; `validate` it first if it does not come from there.
        out_features: rows of the weight of one group.
        bias: ``[groups, out]`` of the same dtype.

    Returns:
        ``[rows, out]`` in the dtype of `x`; zero in rows outside of the bounds.

    Raises:
        ValueError: dtypes or shapes do not fit, or the bounds do not ascend within `rows`.
        RuntimeError: mask and offsets of the weight disagree.
    """
    if x.dim() and x.shape[-1] != packed.shape[1]:
        raise ValueError(f"x has {x.shape[-1]} features, the weight {packed.shape[1]}")
    return torch.ops.tamp_modifier.sparse_linear_grouped(
        x, bounds, packed.mask, packed.values, packed.offsets, out_features, bias
    )
