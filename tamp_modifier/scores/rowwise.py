"""Scores that compare the weights of each output row: Wanda and magnitude."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tamp_modifier.masks import apply_mask, magnitude_mask, wanda_mask
from tamp_modifier.scores.base import COMPARED_BYTES, COPIED_BYTES, Score
from tamp_modifier.statistics import RowScalars, Statistics, TokenCount

AT_ONCE = 1 << 22
"""Weights that are compared at once."""


def _by_rows(weight: Tensor, mask: Callable[[Tensor], Tensor]) -> Tensor:
    """Masks a weight in place, some rows at a time.

    Each row is compared on its own, so the masks are those of the whole, and the fp32 copies that
    comparing makes stay small.
    """
    for rows in weight.split(max(AT_ONCE // max(weight.shape[1], 1), 1)):
        apply_mask(rows, mask(rows))
    return weight


class RowwiseScore(Score):
    """Scores that compare the weights of each output row, some rows at a time."""

    def pruning_bytes(self, in_features: int, out_features: int) -> int:
        weights = in_features * out_features
        return COPIED_BYTES * weights + COMPARED_BYTES * min(weights, AT_ONCE)


@dataclass(frozen=True)
class Wanda(RowwiseScore):
    """|W_ij| sqrt(mean of x_j^2), compared within each row (arXiv 2306.11695)."""

    name = "wanda"

    def statistics(self, in_features: int) -> RowScalars:
        return RowScalars(in_features)

    def statistics_bytes(self, in_features: int) -> int:
        return 8 * in_features

    def prune(
        self, weight: Tensor, statistics: Statistics, sparsity: float, mask_structure: str
    ) -> Tensor:
        assert isinstance(statistics, RowScalars)
        scalars = statistics.result()
        return _by_rows(weight, lambda rows: wanda_mask(rows, scalars, sparsity, mask_structure))


@dataclass(frozen=True)
class Magnitude(RowwiseScore):
    """|W_ij|, compared within each row as in Wanda; no token is looked at."""

    name = "magnitude"
    needs_tokens = False

    def statistics(self, in_features: int) -> TokenCount:
        return TokenCount(in_features)

    def prune(
        self, weight: Tensor, statistics: Statistics, sparsity: float, mask_structure: str
    ) -> Tensor:
        return _by_rows(weight, lambda rows: magnitude_mask(rows, sparsity, mask_structure))
