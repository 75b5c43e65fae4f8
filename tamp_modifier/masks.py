"""Weight and activation statistics -> mask; applying, verifying and freezing masks.

Wanda (arXiv 2306.11695): weight W_ij has the metric |W_ij| * sqrt(s_j), s_j the row scalar of input
j, and the smallest are pruned within each output row, or within each group of M with "N:M".
"""

from __future__ import annotations

import importlib
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "apply_mask",
    "has_structure",
    "keep_largest",
    "magnitude_mask",
    "parse_mask_structure",
    "pruned_columns",
    "verify_sparsity",
    "wanda_mask",
    "weight_sparsity",
]

UNSTRUCTURED = (0, 0)
NUMBER = r"(0|[1-9][0-9]*)"  # of a mask structure: ASCII digits, so that each has one spelling
MAX_RANKED_GROUP = 16  # up to this M, comparing all pairs of a group beats selecting


def parse_mask_structure(mask_structure: str) -> tuple[int, int]:
    """Read "N:M": of every M consecutive weights of a row N are pruned (as WandaPruningModifier).

    Returns:
        (N, M), or (0, 0) for the unstructured "0:0".

    Raises:
        ValueError: not of the form N:M, or not 0 < N < M.
    """
    match = re.fullmatch(rf"\s*{NUMBER}\s*:\s*{NUMBER}\s*", mask_structure)
    prune_n, prune_m = (int(match[1]), int(match[2])) if match else (-1, -1)
    if (prune_n, prune_m) != UNSTRUCTURED and not 0 < prune_n < prune_m:
        raise ValueError(
            "mask_structure must be '0:0' (unstructured), 'N:M' with 0 < N < M, or, for "
            f"TAMPModifier, 'n:M' with a letter n, got {mask_structure!r}"
        )
    return prune_n, prune_m


def pruned_columns(columns: int, sparsity: float) -> int:
    """How many of `columns` weights of a row are pruned: the nearest number, halves rounded up."""
    # 100 * 0.285 is 28.499999999999996: take that for the half that it means.
    return math.floor(round(columns * sparsity, 6) + 0.5)


@torch.no_grad()
def wanda_mask(
    weight: Tensor, row_scalars: Tensor, sparsity: float, mask_structure: str = "0:0"
) -> Tensor:
    """Wanda mask of one Linear.

    Args:
        weight: [out, in], any floating dtype; compared in fp32.
        row_scalars: [in], mean of x_j^2.
        sparsity: share of each row that is pruned, in [0, 1]; with N:M the structure decides.
        mask_structure: "0:0" or "N:M", see `parse_mask_structure`.

    Returns:
        [out, in] bool, True = keep. Every row has exactly `pruned_columns` pruned weights, every
        group exactly N; of equal weights the first are pruned.

    Raises:
        ValueError: shapes that do not agree, columns not divisible by M, sparsity out of range,
            values that are not finite.
    """
    if weight.ndim != 2 or row_scalars.shape != weight.shape[1:]:
        raise ValueError(
            f"weight must be [out, in] and row_scalars [in], got {tuple(weight.shape)} and "
            f"{tuple(row_scalars.shape)}"
        )
    scale = row_scalars.to(device=weight.device, dtype=torch.float32).sqrt()
    return _mask(weight.float().abs() * scale, sparsity, mask_structure)


@torch.no_grad()
def magnitude_mask(weight: Tensor, sparsity: float, mask_structure: str = "0:0") -> Tensor:
    """Like `wanda_mask` with the metric |W_ij|."""
    return _mask(weight.float().abs(), sparsity, mask_structure)


def _mask(metric: Tensor, sparsity: float, mask_structure: str) -> Tensor:
    prune_n, prune_m = parse_mask_structure(mask_structure)
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must be in [0, 1], got {sparsity}")
    rows, columns = metric.shape
    if prune_m and columns % prune_m:
        raise ValueError(
            f"mask_structure {mask_structure} needs columns divisible by {prune_m}, got {columns}"
        )
    if metric.numel() == 0:
        return torch.ones_like(metric, dtype=torch.bool)
    if not math.isfinite(float(metric.max())):  # max passes NaN on, and no metric is negative
        raise ValueError("weights or row scalars are not finite, or row scalars are negative")
    if not prune_m:
        return _keep_largest(metric, pruned_columns(columns, sparsity))
    return keep_largest(metric.reshape(-1, prune_m), prune_n).view(rows, columns)


def keep_largest(metric: Tensor, pruned: int) -> Tensor:
    """Mask [rows, columns] (True = keep) without the `pruned` smallest of each row.

    Args:
        metric: [rows, columns], no NaN.
        pruned: from 0 to the number of columns; of equal ones the first go.
    """
    short = metric.shape[1] <= MAX_RANKED_GROUP
    return (_keep_largest_by_rank if short else _keep_largest)(metric, pruned)


def _keep_largest(metric: Tensor, pruned: int) -> Tensor:
    """Mask [rows, columns] without the `pruned` smallest of each row; of equal ones the first go.

    One selection per row, several times faster than sorting rows.
    """
    columns = metric.shape[1]
    if pruned in (0, columns):
        return torch.full_like(metric, pruned == 0, dtype=torch.bool)
    largest_pruned = metric.kthvalue(pruned, dim=1, keepdim=True).values  # [rows, 1]
    keep = metric > largest_pruned
    # Rows where weights equal to the boundary must stay in part: those after the first few.
    tied = (keep.sum(1) < columns - pruned).nonzero().flatten()
    if tied.numel():
        some, boundary = metric[tied], largest_pruned[tied]
        equal = some == boundary
        quota = pruned - (some < boundary).sum(1, keepdim=True)
        keep[tied] |= equal & (equal.cumsum(1) > quota)
    return keep


def _keep_largest_by_rank(groups: Tensor, pruned: int) -> Tensor:
    """`_keep_largest` for many short rows [groups, M]: rank by comparing all pairs of columns."""
    columns = groups.unbind(1)
    rank = torch.zeros(len(columns), len(groups), dtype=torch.int8, device=groups.device)
    for i, left in enumerate(columns):
        for j in range(i + 1, len(columns)):
            left_first = left <= columns[j]
            rank[j] += left_first
            rank[i] += left_first.logical_not_()
    return (rank >= pruned).t().contiguous()


@torch.no_grad()
def apply_mask(weight: Tensor, mask: Tensor) -> None:
    """Set the weights that `mask` (True = keep) does not keep to zero, in place."""
    weight.masked_fill_(mask.logical_not(), 0.0)


def weight_sparsity(weight: Tensor) -> float:
    """Share of weights that are exactly zero."""
    # Comparing is two to three times faster than count_nonzero on bfloat16.
    return int((weight == 0).sum()) / max(weight.numel(), 1)


def has_structure(weight: Tensor, mask_structure: str) -> bool:
    """Whether every group of M consecutive weights of a row has at least N zeros."""
    prune_n, prune_m = parse_mask_structure(mask_structure)
    if not prune_m:
        return True
    if weight.shape[-1] % prune_m:
        return False
    zeros = (weight == 0).reshape(-1, prune_m).sum(1)
    return bool((zeros >= prune_n).all())


def verify_sparsity(
    weights: Mapping[str, Tensor],
    sparsities: Mapping[str, float],
    mask_structure: str = "0:0",
    by_row: bool = True,
) -> dict[str, float]:
    """Check that every Linear has the sparsity that it was given, and return what was reached.

    Every row must have at least the zeros asked for (the model may have had more before), or every
    group of M at least N of them.

    Args:
        weights: name -> [out, in].
        sparsities: name -> sparsity, for the same names; not used with N:M.
        mask_structure: "0:0" or "N:M".
        by_row: False where rows may differ and only the whole Linear counts (SparseGPT).

    Returns:
        name -> share of weights that are zero.

    Raises:
        ValueError: naming the Linears that fall short, or that `sparsities` does not hold.
    """
    _, prune_m = parse_mask_structure(mask_structure)
    unknown = [name for name in weights if not prune_m and name not in sparsities]
    if unknown:
        raise ValueError(f"no sparsity was given for these Linears: {', '.join(unknown)}")
    short = []
    for name, weight in weights.items():
        if prune_m:
            enough = has_structure(weight, mask_structure)
        else:
            zeros = (weight == 0).sum(1)  # [out]
            least = pruned_columns(weight.shape[1], sparsities[name])
            enough = bool((zeros if by_row else zeros.double().mean()).ge(least).all())
        if not enough:
            short.append(name)
    if short:
        wanted = mask_structure if prune_m else "their sparsity"
        raise ValueError(f"these Linears do not have {wanted}: {', '.join(short)}")
    return {name: weight_sparsity(weight) for name, weight in weights.items()}


def __getattr__(name: str) -> Any:
    # Training is no pure step. Looked up by name: nothing here depends on it.
    if name != "freeze":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "tamp_modifier.masks.freeze is now tamp_modifier.zeros.freeze.freeze and goes in 0.3",
        DeprecationWarning,
        stacklevel=2,
    )
    return importlib.import_module("tamp_modifier.zeros.freeze").freeze
