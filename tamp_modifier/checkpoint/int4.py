"""INT4 weights as compressed-tensors packs them: eight codes in a word of 32 bits, lowest first.

On disk ``tamp pack`` keeps the codes that are not zero; scales, zero points and shape stay as they
are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

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


class ZeroCounts:
    """Counts the zeros of the INT4 weights of a checkpoint, tensor by tensor.

    Args:
        quantization: ``quantization_config``.

    Attributes:
        found: by name of a Linear its shape ``(out, in)`` and its number of zeros.
    """

    def __init__(self, quantization: Mapping[str, Any]) -> None:
        groups = (quantization.get("config_groups") or {}).values()
        weights = [group.get("weights") or {} for group in groups]
        self.found: dict[str, tuple[tuple[int, int], int]] = {}
        self._parts: dict[str, dict[str, Tensor]] = {}
        self._kinds: set[str] = set()
        if any(w.get("num_bits") == 4 and w.get("type", "int") == "int" for w in weights):
            symmetric = all(w.get("symmetric", True) for w in weights)
            self._kinds = {WEIGHT, SHAPE} | (set() if symmetric else {ZERO_POINT})

    def see(self, name: str, tensor: Tensor) -> None:
        """Take a tensor of the checkpoint; those of one Linear are kept until all have come."""
        module, _, kind = name.rpartition(".")
        if f".{kind}" not in self._kinds:
            return
        parts = self._parts.setdefault(module, {})
        parts[f".{kind}"] = tensor
        if parts.keys() == self._kinds:
            del self._parts[module]
            count = _count(parts)
            if count is not None:
                self.found[module] = count


def _count(parts: Mapping[str, Tensor]) -> tuple[tuple[int, int], int] | None:
    """Shape and number of zeros of a weight; None if the tensors do not fit each other."""
    words, zeros = parts[WEIGHT], parts.get(ZERO_POINT)
    if parts[SHAPE].numel() != 2 or words.dtype != torch.int32 or words.dim() != 2:
        return None
    rows, columns = parts[SHAPE].flatten().tolist()
    if tuple(words.shape) != (rows, math.ceil(columns / 8)):
        return None
    codes = unpack_columns(words, columns)
    if zeros is None:
        return (rows, columns), int((codes == SYMMETRIC_ZERO).sum())
    if zeros.dtype != torch.int32 or zeros.dim() != 2 or zeros.shape[0] != math.ceil(rows / 8):
        return None
    size = math.ceil(columns / max(1, zeros.shape[1]))
    per_column = unpack_rows(zeros, rows).repeat_interleave(size, 1)[:, :columns]
    return (rows, columns), int((codes == per_column).sum())


def pack_columns(codes: Tensor) -> Tensor:
    """Return the words that `unpack_columns` reads, int32 ``[rows, ceil(columns / 8)]``."""
    missing = -codes.shape[1] % 8
    padded = torch.nn.functional.pad(codes, (0, missing))
    pairs = padded[:, 0::2] | padded[:, 1::2] << 4
    return pairs.flatten().view(torch.int32).view(codes.shape[0], -1)


def pack_words(name: str, words: Tensor, look: Callable[[str], Tensor | None]) -> PackedInt4 | None:
    """Pack the codes of a Linear; None where they have to stay as they are.

    Args:
        name: of the words on disk, with ``.weight_packed``.
        words: int32 ``[rows, ceil(columns / 8)]``.
        look: finds a tensor of the same file by its name; None if it is not there.
    """
    linear = name.removesuffix(WEIGHT)
    shape, words_of_zeros = look(linear + SHAPE), look(linear + ZERO_POINT)
    if shape is None or shape.numel() != 2 or words.dtype != torch.int32 or words.dim() != 2:
        return None
    rows, columns = (int(size) for size in shape.flatten())
    if tuple(words.shape) != (rows, math.ceil(columns / 8)) or not storable(rows, columns):
        return None
    zeros, size = None, -1
    if words_of_zeros is not None:
        fits = words_of_zeros.dim() == 2 and words_of_zeros.dtype == torch.int32
        if not fits or words_of_zeros.shape[0] != math.ceil(rows / 8):
            return None
        if look(linear + ORDER) is not None:  # a group's columns are anywhere
            return None
        zeros = unpack_rows(words_of_zeros, rows)
        size = math.ceil(columns / max(1, zeros.shape[1]) / TILE_COLUMNS) * TILE_COLUMNS
        if group_count(columns, size) != zeros.shape[1]:
            return None
    groups = 1 if zeros is None else zeros.shape[1]
    scale = torch.ones(rows, groups, dtype=torch.bfloat16)
    packed = pack_int4(unpack_columns(words, columns), scale, zeros, size)
    # What fills the last word of a row up is not stored.
    return packed if torch.equal(unpack_words(packed), words) else None


def unpack_words(packed: PackedInt4) -> Tensor:
    """Return the words that `pack_words` took."""
    return pack_columns(unpack_int4(packed))
