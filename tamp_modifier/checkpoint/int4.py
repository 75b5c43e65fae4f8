"""INT4 weights as compressed-tensors packs them: eight codes in a word of 32 bits, lowest first.

On disk ``tamp pack`` keeps the codes that are not zero; scales, zero points and shape stay as they
are.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from tamp_modifier.checkpoint.files import Look
from tamp_modifier.sparse.format import TILE_COLUMNS
from tamp_modifier.sparse.int4 import PackedInt4, pack_int4, unpack_int4
from tamp_modifier.sparse.int4_format import SYMMETRIC_ZERO, group_count
from tamp_modifier.sparse.serialization import storable

WEIGHT, ZERO_POINT, SHAPE = ".weight_packed", ".weight_zero_point", ".weight_shape"
ORDER = ".weight_g_idx"


def unpack_columns(words: Tensor, columns: int) -> Tensor:
    """Return the codes of words that hold columns, uint8 ``[rows, columns]``.

    Args:
        words: int32 ``[rows, ceil(columns / 8)]``.
        columns: number of columns.
    """
    pairs = words.contiguous().view(torch.uint8)
    return torch.stack((pairs & 15, pairs >> 4), -1).view(words.shape[0], -1)[:, :columns]


def unpack_rows(words: Tensor, rows: int) -> Tensor:
    """Return the codes of words that hold rows, as those of zero points: uint8 ``[rows, groups]``.

    Args:
        words: int32 ``[ceil(rows / 8), groups]``.
        rows: number of rows.
    """
    return unpack_columns(words.t(), rows).t().contiguous()


@dataclasses.dataclass(frozen=True)
class Codes:
    """The 4-bit codes of one Linear.

    Attributes:
        codes: uint8 ``[out, in]``.
        zeros: zero codes, uint8 ``[out, groups]``; None: 8 everywhere.
        group_size: columns of a group, -1 for one group a row.
        ordered: whether GPTQ's activation order has spread the columns of a group.
    """

    codes: Tensor
    zeros: Tensor | None
    group_size: int
    ordered: bool

    def kept(self) -> int:
        """Return the number of codes that are not the zero code of their group."""
        fill: Tensor | int = SYMMETRIC_ZERO
        if self.zeros is not None:
            columns = self.codes.shape[1]
            size = columns if self.group_size == -1 else self.group_size
            fill = self.zeros.repeat_interleave(max(1, size), 1)[:, :columns]
        return int((self.codes != fill).sum())


def read_codes(name: str, words: Tensor, look: Look) -> Codes | None:
    """Return the codes of a Linear; None where its tensors are not those of 4-bit codes.

    Args:
        name: of the words on disk, with ``.weight_packed``.
        words: int32 ``[rows, ceil(columns / 8)]``.
        look: finds another tensor of the checkpoint.
    """
    linear = name.removesuffix(WEIGHT)
    shape, zero_words = look(linear + SHAPE), look(linear + ZERO_POINT)
    if shape is None or shape.numel() != 2 or shape.is_floating_point():
        return None
    rows, columns = (int(size) for size in shape.flatten())
    if words.dtype != torch.int32 or tuple(words.shape) != (rows, math.ceil(columns / 8)):
        return None
    if not storable(rows, columns):
        return None
    zeros, size = None, -1
    if zero_words is not None:
        if zero_words.dtype != torch.int32 or zero_words.dim() != 2:
            return None
        if zero_words.shape[0] != math.ceil(rows / 8) or not zero_words.shape[1]:
            return None
        zeros = unpack_rows(zero_words, rows)
        groups = zeros.shape[1]
        # Groups of whole tiles, of which the last may be shorter, or smaller ones that all fit.
        size = math.ceil(columns / groups / TILE_COLUMNS) * TILE_COLUMNS
        if group_count(columns, size) != groups:
            size = columns // groups
        if not size or group_count(columns, size) != groups:
            return None
        size = -1 if groups == 1 else size
    ordered = look(linear + ORDER) is not None
    return Codes(unpack_columns(words, columns), zeros, size, ordered)


def pack_columns(codes: Tensor) -> Tensor:
    """Return the words that `unpack_columns` reads, int32 ``[rows, ceil(columns / 8)]``."""
    missing = -codes.shape[1] % 8
    padded = torch.nn.functional.pad(codes, (0, missing))
    pairs = padded[:, 0::2] | padded[:, 1::2] << 4
    return pairs.flatten().view(torch.int32).view(codes.shape[0], -1)


def pack_words(name: str, words: Tensor, look: Look) -> PackedInt4 | None:
    """Pack the codes of a Linear; None where they have to stay as they are.

    Arguments as in `read_codes`.
    """
    found = read_codes(name, words, look)
    if found is None or (found.ordered and found.zeros is not None):
        return None
    if found.group_size != -1 and found.group_size % TILE_COLUMNS:
        return None
    rows, groups = found.codes.shape[0], 1 if found.zeros is None else found.zeros.shape[1]
    scale = torch.ones(rows, groups, dtype=torch.bfloat16)
    packed = pack_int4(found.codes, scale, found.zeros, found.group_size)
    # What fills the last word of a row up is not stored.
    return packed if torch.equal(unpack_words(packed), words) else None


def unpack_words(packed: PackedInt4) -> Tensor:
    """Return the words that `pack_words` took."""
    return pack_columns(unpack_int4(packed))
