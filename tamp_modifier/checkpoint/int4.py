"""INT4 weights as compressed-tensors packs them: eight codes in a word of 32 bits, lowest first.

On disk ``tamp pack`` keeps the codes that are not zero; scales, zero points and shape stay as they
are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tamp_modifier.checkpoint.files import Look
from tamp_modifier.sparse.format import TILE_COLUMNS
from tamp_modifier.sparse.int4 import (
    PackedInt4,
    join_rows_int4,
    pack_int4,
    row_slice_int4,
    unpack_int4,
)
from tamp_modifier.sparse.int4_format import SYMMETRIC_ZERO, group_count
from tamp_modifier.sparse.serialization import storable

CHUNK_BYTES = 1 << 20
"""Of codes that are unpacked at a time; a byte a code, while a word on disk holds eight."""
CHUNK_ROWS = 8
"""Rows of a chunk are a multiple of it: chunks cut neither blocks nor words of zero points."""

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


def chunks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Cut rows into ranges whose codes, a byte each, take about `CHUNK_BYTES`."""
    step = max(1, CHUNK_BYTES // max(1, columns) // CHUNK_ROWS) * CHUNK_ROWS
    for begin in range(0, rows, step):
        yield begin, min(rows, begin + step)


@dataclasses.dataclass(frozen=True)
class Codes:
    """The 4-bit codes of one Linear, eight in a word.

    Attributes:
        words: int32 ``[out, ceil(in / 8)]``.
        shape: ``(out, in)``.
        zeros: zero codes, uint8 ``[out, groups]``; None: 8 everywhere.
        group_size: columns of a group, -1 for one group a row.
        ordered: whether GPTQ's activation order has spread the columns of a group.
    """

    words: Tensor
    shape: tuple[int, int]
    zeros: Tensor | None
    group_size: int
    ordered: bool

    def kept(self) -> int:
        """Return the number of codes that are not the zero code of their group."""
        rows, columns = self.shape
        size = columns if self.group_size == -1 else self.group_size
        found = 0
        for begin, end in chunks(rows, columns):
            fill: Tensor | int = SYMMETRIC_ZERO
            if self.zeros is not None:
                fill = self.zeros[begin:end].repeat_interleave(max(1, size), 1)[:, :columns]
            found += int((unpack_columns(self.words[begin:end], columns) != fill).sum())
        return found


def group_sizes(quantization: Mapping[str, Any]) -> set[int]:
    """Return the columns of a group that a ``quantization_config`` names, -1 for one group a row.

    Which Linears a group of the config takes is not looked at.
    """
    found = set()
    for group in (quantization.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        if weights.get("num_bits") == 4:
            size = weights.get("group_size")
            found.add(size if weights.get("strategy") == "group" and size else -1)
    return found


def read_codes(name: str, words: Tensor, look: Look, named: Collection[int] = ()) -> Codes | None:
    """Return the codes of a Linear; None where its tensors are not those of 4-bit codes.

    Args:
        name: of the words on disk, with ``.weight_packed``.
        words: int32 ``[rows, ceil(columns / 8)]``.
        look: finds another tensor of the checkpoint.
        named: of `group_sizes`. Where none of them fits the zero points, or several do, the size
            follows from the number of groups.
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
        found = _group_size(columns, zeros.shape[1], named)
        if found is None:
            return None
        size = found
    ordered = look(linear + ORDER) is not None
    return Codes(words, (rows, columns), zeros, size, ordered)


def _group_size(columns: int, groups: int, named: Collection[int]) -> int | None:
    """Return the columns of a group, -1 for one group a row; None where the groups fit no size."""
    if groups == 1:
        return -1
    fits = {size for size in named if size > 0 and group_count(columns, size) == groups}
    if len(fits) == 1:
        return fits.pop()
    # Groups of whole tiles, of which the last may be shorter, or smaller ones that all fit.
    size = math.ceil(columns / groups / TILE_COLUMNS) * TILE_COLUMNS
    if group_count(columns, size) != groups:
        size = columns // groups
    return size if size and group_count(columns, size) == groups else None


def pack_columns(codes: Tensor) -> Tensor:
    """Return the words that `unpack_columns` reads, int32 ``[rows, ceil(columns / 8)]``."""
    missing = -codes.shape[1] % 8
    padded = torch.nn.functional.pad(codes, (0, missing))
    pairs = padded[:, 0::2] | padded[:, 1::2] << 4
    return pairs.flatten().view(torch.int32).view(codes.shape[0], -1)


def pack_words(
    name: str, words: Tensor, look: Look, named: Collection[int] = ()
) -> PackedInt4 | None:
    """Pack the codes of a Linear; None where they have to stay as they are.

    Memory: the words, twice what is packed, and a few megabytes. Arguments as in `read_codes`.
    """
    found = read_codes(name, words, look, named)
    if found is None or (found.ordered and found.zeros is not None):
        return None
    if found.group_size != -1 and found.group_size % TILE_COLUMNS:
        return None
    parts = []
    for begin, end in chunks(*found.shape):
        zeros = None if found.zeros is None else found.zeros[begin:end]
        part = _pack_rows(words[begin:end], found, zeros)
        # What fills the last word of a row up is not stored.
        if not torch.equal(unpack_words(part), words[begin:end]):
            return None
        parts.append(part)
    return join_rows_int4(parts) if parts else _pack_rows(words, found, found.zeros)


def _pack_rows(words: Tensor, found: Codes, zeros: Tensor | None) -> PackedInt4:
    groups = 1 if zeros is None else zeros.shape[1]
    scale = torch.ones(words.shape[0], groups, dtype=torch.bfloat16)
    return pack_int4(unpack_columns(words, found.shape[1]), scale, zeros, found.group_size)


def unpack_words(packed: PackedInt4) -> Tensor:
    """Return the words that `pack_words` took."""
    rows, columns = packed.shape
    words = torch.empty(rows, math.ceil(columns / 8), dtype=torch.int32)
    for begin, end in chunks(rows, columns):
        part = packed if (begin, end) == (0, rows) else row_slice_int4(packed, begin, end)
        words[begin:end] = pack_columns(unpack_int4(part))
    return words
