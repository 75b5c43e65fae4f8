"""Read the sparse formats that compressed-tensors had: sparse-bitmask and sparse-24-bitmask."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tamp_modifier.sparse.format import (
    STORAGE_DTYPES,
)
from tamp_modifier.sparse.serialization import take


def _legacy_shape(name: str, shape: Tensor, bitmask: Tensor) -> tuple[int, int]:
    if shape.dim() != 1 or shape.numel() != 2 or shape.dtype.is_floating_point:
        raise ValueError(f"{name}.shape must hold two sizes, got {shape}")
    rows, columns = (int(size) for size in shape)
    if rows < 0 or columns < 0:
        raise ValueError(f"{name}.shape must hold two sizes >= 0, got {(rows, columns)}")
    expected = (rows, (columns + 7) // 8)
    if bitmask.dtype != torch.uint8 or tuple(bitmask.shape) != expected:
        raise ValueError(
            f"{name}.bitmask must be uint8 {expected}, got {bitmask.dtype} {tuple(bitmask.shape)}"
        )
    return rows, columns


def _legacy_bits(name: str, bitmask: Tensor, columns: int) -> Tensor:
    """bool ``[rows, columns]`` of a row-wise bitmask whose lowest bit comes first."""
    bits = (bitmask.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=bitmask.device)) & 1
    bits = bits.bool().view(bitmask.shape[0], -1)
    if bits[:, columns:].any():
        raise ValueError(f"{name}.bitmask keeps values right of the last column {columns - 1}")
    return bits[:, :columns]


def _legacy_dense(name: str, kept: Tensor, compressed: Tensor) -> Tensor:
    count = int(kept.sum())
    if compressed.numel() != count:
        raise ValueError(
            f"{name}: the bitmask keeps {count} values, {compressed.numel()} are stored"
        )
    if compressed.dtype not in STORAGE_DTYPES:
        raise ValueError(f"{name}.compressed has dtype {compressed.dtype}, which is not known")
    storage = STORAGE_DTYPES[compressed.dtype]
    dense = compressed.new_zeros(kept.shape, dtype=storage)
    dense[kept] = compressed.reshape(-1).view(storage)
    return dense.view(compressed.dtype)


def read_bitmask(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the dense weight of a compressed-tensors ``sparse-bitmask`` tensor.

    Args:
        tensors: holds ``{name}.shape``, ``.compressed`` [kept], ``.bitmask`` uint8
            [out, ceil(in / 8)] and ``.row_offsets`` int64 [out].
        name: what stands before these suffixes.

    Raises:
        ValueError: a tensor is missing or they do not fit each other; names the weight.
    """
    suffixes = (".shape", ".compressed", ".bitmask", ".row_offsets")
    shape, compressed, bitmask, row_offsets = take(tensors, name, suffixes)
    rows, columns = _legacy_shape(name, shape, bitmask)
    if compressed.dim() != 1:
        raise ValueError(f"{name}.compressed must be 1-D, got {tuple(compressed.shape)}")
    kept = _legacy_bits(name, bitmask, columns)
    counts = kept.sum(-1)
    starts = counts.cumsum(0) - counts
    if row_offsets.shape != (rows,) or not torch.equal(row_offsets.long(), starts):
        raise ValueError(f"{name}.row_offsets do not fit the bitmask")
    return _legacy_dense(name, kept, compressed)


def read_24_bitmask(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the dense weight of a compressed-tensors ``sparse-24-bitmask`` tensor (2 of 4 kept).

    Args:
        tensors: holds ``{name}.shape``, ``.compressed`` [out, in / 2] and ``.bitmask``.
        name: what stands before these suffixes.

    Raises:
        ValueError: a tensor is missing or they do not fit each other; names the weight.
    """
    shape, compressed, bitmask = take(tensors, name, (".shape", ".compressed", ".bitmask"))
    rows, columns = _legacy_shape(name, shape, bitmask)
    if columns % 4 or tuple(compressed.shape) != (rows, columns // 2):
        raise ValueError(
            f"{name}.compressed must be {(rows, columns // 2)} with a multiple of 4 columns, "
            f"got {tuple(compressed.shape)}"
        )
    kept = _legacy_bits(name, bitmask, columns)
    if not bool((kept.view(rows, columns // 4, 4).sum(-1) == 2).all()):
        raise ValueError(f"{name}.bitmask does not keep 2 of 4 everywhere")
    return _legacy_dense(name, kept, compressed)
