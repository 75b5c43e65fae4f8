"""Typed calls of the native code for 4-bit weights, csrc/int4.c and csrc/int4_pack.c."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from tamp_modifier.sparse import native
from tamp_modifier.sparse.format import PADDING_BYTES, TILE_COLUMNS
from tamp_modifier.sparse.int4_format import PackedInt4

_CORRUPT = "the sparse weight is corrupt: its mask and offsets disagree, or its order"


class _Weight(ctypes.Structure):
    """`tamp_int4_weight` of csrc/tamp_int4.h; the callee fills in the last three sizes."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("mask", "values", "offsets", "scale", "zeros")]
        + [(name, ctypes.c_int64) for name in ("bytes", "rows", "columns", "group_tiles")]
        + [(name, ctypes.c_int64) for name in ("blocks", "tiles", "groups")]
        + [("scale_dtype", ctypes.c_int32)]
    )


def _weight(packed: PackedInt4) -> Any:
    zeros = packed.zeros
    return ctypes.byref(
        _Weight(
            packed.mask.data_ptr(),
            packed.values.data_ptr(),
            packed.offsets.data_ptr(),
            packed.scale.data_ptr(),
            None if zeros is None else zeros.data_ptr(),
            packed.values.numel() - PADDING_BYTES,
            *packed.shape,
            packed.group_size // TILE_COLUMNS,
            scale_dtype=native.DTYPES[packed.scale.dtype],
        )
    )


def pack_mask(codes: Tensor, packed: PackedInt4) -> None:
    """Fill mask and offsets of `packed` from contiguous codes uint8 ``[out, in]``."""
    native.library().tamp_int4_pack_mask(codes.data_ptr(), codes.shape[1], _weight(packed))


def pack_values(codes: Tensor, packed: PackedInt4) -> None:
    """Fill the values of `packed`, whose mask and offsets are those of `codes`."""
    native.library().tamp_int4_pack_values(codes.data_ptr(), codes.shape[1], _weight(packed))


def unpack(packed: PackedInt4, codes: Tensor) -> None:
    """Write the codes in stored order to contiguous uint8 ``[out, in]``.

    Raises:
        RuntimeError: mask and offsets disagree.
    """
    if native.library().tamp_int4_unpack(_weight(packed), codes.data_ptr()):
        raise RuntimeError(_CORRUPT)


def expand(packed: PackedInt4, begin: int, end: int, dense: Tensor) -> None:
    """Write the weights of blocks begin .. end - 1 to fp32 ``[4 * blocks, 32 * tiles]``.

    Raises:
        RuntimeError: mask and offsets disagree.
    """
    if native.library().tamp_int4_expand(
        _weight(packed), begin, end, dense.data_ptr(), dense.stride(0)
    ):
        raise RuntimeError(_CORRUPT)


def most_rows(dtype: torch.dtype, int8_activations: bool) -> int:
    """Rows of x up to which the path in use beats a dense fp32 GEMM with the expanded weight."""
    return native.library().tamp_int4_most_rows(native.DTYPES[dtype], int8_activations)


def linear(
    x: Tensor, packed: PackedInt4, bias: Tensor | None, int8_activations: bool, out: Tensor
) -> None:
    """Write ``x @ weight.T + bias`` to `out`; x ``[rows, in]`` and `out` are contiguous.

    Raises:
        MemoryError: no room for the scratch copy of `x`.
        RuntimeError: mask and offsets disagree, or `order` names a column that is not there.
    """
    status = native.library().tamp_int4_linear(
        x.data_ptr(),
        x.shape[0],
        x.shape[1],
        native.DTYPES[x.dtype],
        _weight(packed),
        None if packed.order is None else packed.order.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        int8_activations,
    )
    if status == 2:
        raise MemoryError("no memory for the scratch of sparse_linear_int4")
    if status:
        raise RuntimeError(_CORRUPT)
