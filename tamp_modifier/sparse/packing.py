"""Packing and unpacking: the native library on CPU where it was built, torch elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tamp_modifier.sparse import memory, native
from tamp_modifier.sparse.format import (
    BLOCK_ROWS,
    PADDING_BYTES,
    STORAGE_DTYPES,
    TILE_COLUMNS,
    PackedWeight,
    mask_shape,
    nonzero,
    padding_length,
)
from tamp_modifier.sparse.validation import validate


def _check_weight(weight: Tensor) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, got {type(weight).__name__}")
    if weight.dim() != 2:
        raise ValueError(f"weight must be [out, in], got shape {tuple(weight.shape)}")
    if weight.dtype not in STORAGE_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in STORAGE_DTYPES)
        raise ValueError(f"weight has dtype {weight.dtype}, allowed are {allowed}")


def pack(weight: Tensor) -> PackedWeight:
    """Pack a dense weight; `unpack` gives the same bits back, except that -0 comes back as +0.

    Args:
        weight: ``[out, in]``, bf16, fp16, fp32, fp8 (e4m3fn, e5m2) or int8.

    Returns:
        The packed weight, on the device of the dense one.

    Raises:
        TypeError: `weight` is no tensor.
        ValueError: wrong number of dimensions or dtype.
    """
    _check_weight(weight)
    weight = weight.detach()
    if native.available() and weight.device.type == "cpu":
        return PackedWeight(*_native_pack(weight), shape=(weight.shape[0], weight.shape[1]))
    return _torch_pack(weight)


def unpack(packed: PackedWeight) -> Tensor:
    """Return the dense weight ``[out, in]`` of a packed one, in its dtype and on its device.

    Args:
        packed: a weight from `pack` or `from_tensors`; it is validated first.

    Raises:
        ValueError: the tensors of `packed` do not fit each other.
    """
    validate(packed)
    return unpack_blocks(
        packed.mask, packed.values, packed.offsets, packed.shape, (0, packed.mask.shape[0])
    )


def unpack_blocks(
    mask: Tensor, values: Tensor, offsets: Tensor, shape: tuple[int, int], blocks: tuple[int, int]
) -> Tensor:
    """Return the dense rows of blocks begin .. end - 1; the caller has checked shapes and dtypes.

    Raises:
        RuntimeError: mask and offsets disagree.
    """
    begin, end = blocks
    rows = max(0, min(shape[0], end * BLOCK_ROWS) - begin * BLOCK_ROWS)
    if native.available() and values.device.type == "cpu":
        dense = values.new_empty(rows, shape[1])
        kept = values.numel() - padding_length(values.dtype)
        native.unpack(mask, values, offsets, kept, shape, blocks, dense)
        return dense
    return _torch_unpack(mask, values, offsets, (rows, shape[1]), blocks)


def _native_pack(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = (weight.shape[0], weight.shape[1])
    if shape[1] and weight.stride(1) != 1:
        weight = weight.contiguous()
    # On the weight's device, whatever `torch.device` context is active.
    mask = memory.empty(mask_shape(shape), torch.int32)
    offsets = weight.new_empty(mask.shape[0] + 1, dtype=torch.int64)
    native.pack_mask(weight, mask, offsets)
    kept = int(offsets[-1])
    values = memory.empty((kept + padding_length(weight.dtype),), weight.dtype)
    values.view(STORAGE_DTYPES[weight.dtype])[kept:] = 0
    native.pack_values(weight, mask, offsets, values)
    return mask, values, offsets


def _torch_pack(weight: Tensor) -> PackedWeight:
    out_features, in_features = weight.shape
    blocks, tiles, _ = mask_shape((out_features, in_features))
    storage = STORAGE_DTYPES[weight.dtype]
    bits = weight.contiguous().view(storage)
    # Tile order: [blocks, tiles, 4, 32].
    padded = bits.new_zeros(blocks * BLOCK_ROWS, tiles * TILE_COLUMNS)
    padded[:out_features, :in_features] = bits
    tiled = padded.view(blocks, BLOCK_ROWS, tiles, TILE_COLUMNS).transpose(1, 2)
    kept = nonzero(tiled.view(weight.dtype))
    mask = torch.empty(blocks, tiles, BLOCK_ROWS, dtype=torch.int32, device=weight.device)
    offsets = torch.zeros(blocks + 1, dtype=torch.int64, device=weight.device)
    for block in range(0, blocks, 256):  # the int64 products are 8 bytes a weight
        chunk = kept[block : block + 256]
        mask[block : block + 256] = mask_words(chunk)
        offsets[block + 1 : block + 257] = chunk.sum((1, 2, 3))
    offsets = offsets.cumsum(0)
    values = torch.cat([tiled[kept], bits.new_zeros(padding_length(weight.dtype))])
    return PackedWeight(mask, values.view(weight.dtype), offsets, (out_features, in_features))


def mask_words(kept: Tensor) -> Tensor:
    """Mask words int32 ``[blocks, tiles, 4]`` of bool ``[blocks, tiles, 4, 32]``."""
    powers = 1 << torch.arange(TILE_COLUMNS, device=kept.device)
    words = (kept * powers).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def mask_bits(mask: Tensor) -> Tensor:
    """bool ``[blocks, tiles, 4, 32]`` of mask words."""
    shifts = torch.arange(TILE_COLUMNS, device=mask.device, dtype=torch.int32)
    return ((mask.unsqueeze(-1) >> shifts) & 1).bool()


def _torch_unpack(
    mask: Tensor, values: Tensor, offsets: Tensor, shape: tuple[int, int], blocks: tuple[int, int]
) -> Tensor:
    tiles = mask.shape[1]
    bits = values.view(STORAGE_DTYPES[values.dtype])
    dense = bits.new_zeros(blocks[1] - blocks[0], BLOCK_ROWS, tiles, TILE_COLUMNS)
    for block in range(*blocks, 256):
        stop = min(block + 256, blocks[1])
        kept = mask_bits(mask[block:stop])
        counts = offsets[block + 1 : stop + 1] - offsets[block:stop]
        part = bits[int(offsets[block]) : int(offsets[stop])]
        total = int(kept.sum())
        if part.numel() != total or not torch.equal(counts, kept.sum((1, 2, 3))):
            raise RuntimeError("the sparse weight is corrupt: its mask and offsets disagree")
        tiled = bits.new_zeros(kept.shape)
        tiled[kept] = part
        dense[block - blocks[0] : stop - blocks[0]] = tiled.transpose(1, 2)
    dense = dense.view(dense.shape[0] * BLOCK_ROWS, tiles * TILE_COLUMNS)
    return dense[: shape[0], : shape[1]].contiguous().view(values.dtype)


def concatenate(parts: Sequence[PackedWeight]) -> PackedWeight:
    """Put packed weights below each other, into memory of their own as `pack` takes it.

    Args:
        parts: at least one; all of one dtype and one number of columns, on the CPU. Each but the
            last has a multiple of 4 rows: blocks cannot be moved by less.

    Raises:
        ValueError: the parts do not fit each other, or one has another number of rows.
    """
    if not parts:
        raise ValueError("no packed weights to put below each other")
    first = parts[0]
    for part in parts:
        if (part.dtype, part.shape[1]) != (first.dtype, first.shape[1]):
            raise ValueError(
                f"packed weights of {first.dtype} with {first.shape[1]} columns and of "
                f"{part.dtype} with {part.shape[1]} cannot stand below each other"
            )
        if part is not parts[-1] and part.shape[0] % BLOCK_ROWS:
            raise ValueError(f"a part has {part.shape[0]} rows, no multiple of {BLOCK_ROWS}")
    shape = (sum(part.shape[0] for part in parts), first.shape[1])
    kept = sum(part.kept for part in parts)
    mask = memory.empty(mask_shape(shape), torch.int32)
    values = memory.empty((kept + padding_length(first.dtype),), first.dtype)
    storage = values.view(STORAGE_DTYPES[first.dtype])
    storage[kept:] = 0
    offsets = first.offsets.new_zeros(mask.shape[0] + 1)
    block = begin = 0
    for part in parts:
        stop, end = block + part.mask.shape[0], begin + part.kept
        mask[block:stop] = part.mask
        storage[begin:end] = part.values.view(storage.dtype)[: part.kept]
        offsets[block + 1 : stop + 1] = part.offsets[1:] + begin
        block, begin = stop, end
    return PackedWeight(mask, values, offsets, shape)


def row_slice(packed: PackedWeight, start: int, stop: int) -> PackedWeight:
    """Rows ``start:stop`` of a packed weight (column-parallel shards of a Linear's outputs).

    Raises:
        ValueError: not ``0 <= start <= stop <= out``.
    """
    if not 0 <= start <= stop <= packed.shape[0]:
        raise ValueError(f"rows {start}:{stop} are outside of the {packed.shape[0]} rows")
    first, last = start // BLOCK_ROWS, math.ceil(stop / BLOCK_ROWS)
    begin, end = int(packed.offsets[first]), int(packed.offsets[last])
    padding = torch.zeros(PADDING_BYTES, dtype=torch.uint8, device=packed.device)
    storage = STORAGE_DTYPES[packed.dtype]
    values = torch.cat([packed.values.view(storage)[begin:end], padding.view(storage)])
    rows = min(last * BLOCK_ROWS, packed.shape[0]) - first * BLOCK_ROWS
    part = PackedWeight(
        packed.mask[first:last].contiguous(),
        values.view(packed.dtype),
        packed.offsets[first : last + 1] - begin,
        (max(rows, 0), packed.shape[1]),
    )
    inner = start - first * BLOCK_ROWS
    if inner == 0 and part.shape[0] == stop - start:
        return part
    return pack(unpack(part)[inner : inner + stop - start])


def col_slice(packed: PackedWeight, start: int, stop: int) -> PackedWeight:
    """Columns ``start:stop`` of a packed weight (row-parallel shards of a Linear's inputs).

    Raises:
        ValueError: not ``0 <= start <= stop <= in``.
    """
    if not 0 <= start <= stop <= packed.shape[1]:
        raise ValueError(f"columns {start}:{stop} are outside of the {packed.shape[1]} columns")
    return pack(unpack(packed)[:, start:stop])
