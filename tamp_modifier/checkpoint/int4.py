"""INT4 weights as compressed-tensors packs them: eight codes in a word of 32 bits, lowest first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tamp_modifier.sparse.int4_format import SYMMETRIC_ZERO

WEIGHT, ZERO_POINT, SHAPE = ".weight_packed", ".weight_zero_point", ".weight_shape"


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
