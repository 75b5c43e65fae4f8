"""The sparse weight format: a bitmask and the packed non-zeros, in tiles of 4 rows x 32 columns.

A weight ``[out, in]`` is cut into blocks of 4 rows and each block into tiles of 32 columns; the
last block and tile are padded with zeros. A tile stores 4 mask words, one a row, bit ``c`` set
where column ``32 * tile + c`` is kept. The kept values follow each other in the order block, tile,
row, column, so that a kernel which walks a block reads one sequential stream.

At 50 % a 16-bit weight takes 9 bits: 8 of values and 1 of mask.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from tamp_modifier.sparse import memory, native

BLOCK_ROWS = 4
TILE_COLUMNS = 32
# Kernels load whole vectors, also at the end of the stream.
PADDING_BYTES = 64

# dtype -> integer dtype of the same size; the format moves bits, it never computes.
STORAGE_DTYPES = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float8_e4m3fn: torch.int8,
    torch.float8_e5m2: torch.int8,
    torch.int8: torch.int8,
}
# The dtypes that `linear` multiplies; the others can only be packed and unpacked.
COMPUTE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def padding_length(dtype: torch.dtype) -> int:
    """Number of zeros that follow the last kept value."""
    return PADDING_BYTES // dtype.itemsize


def mask_shape(shape: tuple[int, int]) -> tuple[int, int, int]:
    """Shape ``(blocks, tiles, 4)`` of the mask of a weight of `shape` ``(out, in)``."""
    return (math.ceil(shape[0] / BLOCK_ROWS), math.ceil(shape[1] / TILE_COLUMNS), BLOCK_ROWS)


@dataclasses.dataclass(frozen=True, eq=False)
class PackedWeight:
    """A sparse weight as three plain tensors; see the module docstring for the layout.

    Attributes:
        mask: int32 ``[blocks, tiles, 4]``, one bit a weight, 1 = kept.
        values: ``[kept + padding]`` in the weight's dtype; the padding is 64 bytes of zeros.
        offsets: int64 ``[blocks + 1]``, where each block's values begin; the last is their number.
        shape: ``(out, in)`` of the dense weight.
    """

    mask: Tensor
    values: Tensor
    offsets: Tensor
    shape: tuple[int, int]

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the dense weight."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.values.device

    @property
    def kept(self) -> int:
        """Number of stored weights."""
        return self.values.numel() - padding_length(self.dtype)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1.0 - self.kept / max(1, self.shape[0] * self.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.mask.nbytes + self.values.nbytes + self.offsets.nbytes

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight on another device."""
        return dataclasses.replace(
            self,
            mask=self.mask.to(device),
            values=self.values.to(device),
            offsets=self.offsets.to(device),
        )


def _check_weight(weight: Tensor) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, got {type(weight).__name__}")
    if weight.dim() != 2:
        raise ValueError(f"weight must be [out, in], got shape {tuple(weight.shape)}")
    if weight.dtype not in STORAGE_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in STORAGE_DTYPES)
        raise ValueError(f"weight has dtype {weight.dtype}, allowed are {allowed}")


def nonzero(weight: Tensor) -> Tensor:
    """Where a weight of a dtype of the format is not zero, bool; -0 is zero, NaN is not."""
    bits = weight.view(STORAGE_DTYPES[weight.dtype])
    if weight.dtype == torch.int8:
        return bits != 0
    return (bits != 0) & (bits != torch.iinfo(bits.dtype).min)


def pack(weight: Tensor) -> PackedWeight:
    """Pack a dense weight; `unpack` gives the same bits back, except that -0 comes back as +0.

    Args:
        weight: ``[out, in]``, bf16, fp16, fp32, fp8 (e4m3fn, e5m2) or int8.

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
    """The dense weight ``[out, in]`` of a packed one.

    Raises:
        ValueError: the tensors of `packed` do not fit each other.
    """
    from tamp_modifier.sparse.validation import validate

    validate(packed)
    return unpack_blocks(
        packed.mask, packed.values, packed.offsets, packed.shape, (0, packed.mask.shape[0])
    )


def unpack_blocks(
    mask: Tensor, values: Tensor, offsets: Tensor, shape: tuple[int, int], blocks: tuple[int, int]
) -> Tensor:
    """The dense rows of blocks begin .. end - 1; the caller has checked shapes and dtypes.

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
    powers = 1 << torch.arange(TILE_COLUMNS, device=weight.device)
    mask = torch.empty(blocks, tiles, BLOCK_ROWS, dtype=torch.int32, device=weight.device)
    offsets = torch.zeros(blocks + 1, dtype=torch.int64, device=weight.device)
    for block in range(0, blocks, 256):  # the int64 products are 8 bytes a weight
        chunk = kept[block : block + 256]
        words = (chunk * powers).sum(-1)
        mask[block : block + 256] = torch.where(words >= 2**31, words - 2**32, words).int()
        offsets[block + 1 : block + 257] = chunk.sum((1, 2, 3))
    offsets = offsets.cumsum(0)
    values = torch.cat([tiled[kept], bits.new_zeros(padding_length(weight.dtype))])
    return PackedWeight(mask, values.view(weight.dtype), offsets, (out_features, in_features))


def _mask_bits(mask: Tensor) -> Tensor:
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
        kept = _mask_bits(mask[block:stop])
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
