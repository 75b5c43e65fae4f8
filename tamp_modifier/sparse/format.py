"""The sparse weight format: a bitmask and the packed non-zeros, in tiles of 4 rows x 32 columns.

A weight ``[out, in]`` is cut into blocks of 4 rows and each block into tiles of 32 columns; the
last block and tile are padded with zeros. A tile stores 4 mask words, one a row, bit ``c`` set
where column ``32 * tile + c`` is kept. The kept values follow each other in the order block, tile,
row, column, so that a kernel which walks a block reads one sequential stream.

At 50 % a 16-bit weight takes 9 bits: 8 of values and 1 of mask. docs/sparse-format.md specifies the
format in memory and in files.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

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
# The dtypes that `linear` multiplies, besides int8 in `linear_int8`; fp8 can only be packed.
COMPUTE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def padding_length(dtype: torch.dtype) -> int:
    """Return number of zeros that follow the last kept value."""
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
        """Return the same weight on another device."""
        return dataclasses.replace(
            self,
            mask=self.mask.to(device),
            values=self.values.to(device),
            offsets=self.offsets.to(device),
        )


def nonzero(weight: Tensor) -> Tensor:
    """Where a weight of a dtype of the format is not zero, bool; -0 is zero, NaN is not."""
    bits = weight.view(STORAGE_DTYPES[weight.dtype])
    if weight.dtype == torch.int8:
        return bits != 0
    return (bits != 0) & (bits != torch.iinfo(bits.dtype).min)
