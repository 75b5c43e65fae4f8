"""Check that a packed weight is whole before any kernel reads it, and its checksum."""

from __future__ import annotations

import ctypes
import zlib

import torch
from torch import Tensor

from tamp_modifier.sparse import native
from tamp_modifier.sparse.format import (
    BLOCK_ROWS,
    STORAGE_DTYPES,
    TILE_COLUMNS,
    PackedWeight,
    mask_shape,
    padding_length,
)


def check_tensor(name: str, tensor: object, dtype: torch.dtype | None, dims: int) -> None:
    """Check that `tensor` is a contiguous tensor of `dtype` with `dims` dimensions.

    Raises:
        ValueError: it is not; the message begins with `name`.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name} has dtype {tensor.dtype}, expected {dtype}")
    if tensor.dim() != dims or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous with {dims} dimension(s), got shape {tuple(tensor.shape)}"
        )


def validate(packed: PackedWeight, name: str = "weight") -> None:
    """Check that the tensors of a packed weight fit each other.

    Dtypes, shapes, offsets, the number of values, every block's popcount and that nothing is kept
    outside of the weight. A changed value cannot be seen here; `checksum` is for that.

    Args:
        packed: the weight.
        name: the tensor's name in error messages.

    Raises:
        ValueError: the first thing that is wrong, with `name`.
    """
    shape = packed.shape
    if len(shape) != 2 or any(not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"{name}: shape must be two sizes >= 0, got {shape!r}")
    check_tensor(f"{name}: mask", packed.mask, torch.int32, 3)
    check_tensor(f"{name}: offsets", packed.offsets, torch.int64, 1)
    check_tensor(f"{name}: values", packed.values, None, 1)
    if packed.dtype not in STORAGE_DTYPES:
        raise ValueError(f"{name}: values have dtype {packed.dtype}, unknown to the format")
    if len({packed.mask.device, packed.offsets.device, packed.values.device}) != 1:
        raise ValueError(f"{name}: mask, offsets and values must be on one device")
    expected = mask_shape(shape)
    if tuple(packed.mask.shape) != expected:
        raise ValueError(
            f"{name}: mask has shape {tuple(packed.mask.shape)}, "
            f"a weight of {shape} needs {expected}"
        )
    if packed.offsets.numel() != expected[0] + 1:
        raise ValueError(
            f"{name}: offsets has {packed.offsets.numel()} entries, expected {expected[0] + 1}"
        )
    if packed.kept < 0:
        raise ValueError(
            f"{name}: values has {packed.values.numel()} entries, "
            f"fewer than the padding of {padding_length(packed.dtype)}"
        )
    if native.available() and packed.device.type == "cpu":
        if native.check(packed.mask, packed.offsets, packed.kept, shape):
            return
    problem = _find_problem(packed.mask, packed.offsets, packed.kept, shape)
    if problem is not None:
        raise ValueError(f"{name}: {problem}")


def popcount(words: Tensor) -> Tensor:
    """Set bits of each int32 word, as int32."""
    words = words - ((words >> 1) & 0x55555555)
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F
    return (words * 0x01010101) >> 24


def _find_problem(mask: Tensor, offsets: Tensor, kept: int, shape: tuple[int, int]) -> str | None:
    """Return what is wrong with mask and offsets, None if nothing; the torch twin of the native
    check.
    """
    if int(offsets[0]) != 0:
        return f"offsets begin with {int(offsets[0])} instead of 0"
    counts = popcount(mask).sum((1, 2), dtype=torch.int64)
    wrong = (offsets[1:] - offsets[:-1] != counts).nonzero()
    if len(wrong):
        block = int(wrong[0])
        rows = f"{block * BLOCK_ROWS}..{block * BLOCK_ROWS + BLOCK_ROWS - 1}"
        stated = int(offsets[block + 1] - offsets[block])
        return (
            f"the mask of rows {rows} keeps {int(counts[block])} values, the offsets say {stated}"
        )
    if int(offsets[-1]) != kept:
        return f"the offsets end at {int(offsets[-1])}, but {kept} values are stored"
    return kept_outside(mask, shape)


def kept_outside(mask: Tensor, shape: tuple[int, int]) -> str | None:
    """Return what a mask keeps outside of a weight of `shape`, None if nothing."""
    extra_rows = -shape[0] % BLOCK_ROWS
    extra_columns = -shape[1] % TILE_COLUMNS
    if extra_rows and mask[-1, :, BLOCK_ROWS - extra_rows :].any():
        return f"the mask keeps values below the last row {shape[0] - 1}"
    if extra_columns and (mask[:, -1] >> (TILE_COLUMNS - extra_columns)).any():
        return f"the mask keeps values right of the last column {shape[1] - 1}"
    return None


def offsets_from_mask(mask: Tensor) -> Tensor:
    """Return the offsets int64 ``[blocks + 1]`` that belong to a mask."""
    counts = popcount(mask).sum((1, 2), dtype=torch.int64)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def crc32(tensor: Tensor, value: int) -> int:
    """CRC-32 of the bytes of a contiguous CPU tensor; read in place, numpy may be missing."""
    if tensor.nbytes == 0:
        return value
    return zlib.crc32((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()), value)


def checksum(packed: PackedWeight) -> int:
    """CRC-32 of shape, dtype, mask and kept values."""
    value = zlib.crc32(f"{packed.shape[0]} {packed.shape[1]} {packed.dtype}".encode())
    value = crc32(packed.mask.cpu().contiguous(), value)
    return crc32(packed.values[: packed.kept].cpu().contiguous(), value)
