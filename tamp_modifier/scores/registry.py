"""What decides which weights of one Linear go: magnitude, Wanda's metric, or SparseGPT's solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tamp_modifier.masks import apply_mask, magnitude_mask, wanda_mask
from tamp_modifier.options import with_options
from tamp_modifier.sparsegpt import sparsegpt_weight
from tamp_modifier.statistics import Hessian, RowScalars, Statistics, TokenCount

AT_ONCE = 1 << 22
"""Weights that are compared at once."""

MOST_REFIT = 1000
"""Steps of the refit; 32 are as good as the exact solution, see docs/quality.md."""


class Score(ABC):
    """How one Linear is pruned. A new score is one subclass, listed in `SCORES`.

    Attributes:
        name: what the user calls it.
        needs_tokens: whether it looks at the selected tokens at all.
        keeps_weights: whether the weights that stay are as they were.
        by_row: whether every row has the same number of zeros.
    """

    name: ClassVar[str]
    needs_tokens: ClassVar[bool] = True
    keeps_weights: ClassVar[bool] = True
    by_row: ClassVar[bool] = True

    @abstractmethod
    def statistics(self, in_features: int) -> Statistics:
        """Empty statistics that take in the selected tokens of one Linear."""

    @abstractmethod
    def prune(
        self, weight: Tensor, statistics: Statistics, sparsity: float, mask_structure: str
    ) -> Tensor:
        """The pruned weight; `weight` [out, in] may be overwritten, `statistics` are used up.

        Raises:
            ValueError: no token was selected; weights or statistics that are not finite.
        """


def _by_rows(weight: Tensor, mask: Callable[[Tensor], Tensor]) -> Tensor:
    """Masks a weight in place, some rows at a time.

    Each row is compared on its own, so the masks are those of the whole, and the fp32 copies that
    comparing makes stay small.
    """
    for rows in weight.split(max(AT_ONCE // max(weight.shape[1], 1), 1)):
        apply_mask(rows, mask(rows))
    return weight


@dataclass(frozen=True)
class Wanda(Score):
    """|W_ij| sqrt(mean of x_j^2), compared within each row (arXiv 2306.11695)."""

    name = "wanda"

    def statistics(self, in_features: int) -> RowScalars:
        return RowScalars(in_features)

    def prune(
        self, weight: Tensor, statistics: Statistics, sparsity: float, mask_structure: str
    ) -> Tensor:
        assert isinstance(statistics, RowScalars)
        scalars = statistics.result()
        return _by_rows(weight, lambda rows: wanda_mask(rows, scalars, sparsity, mask_structure))


@dataclass(frozen=True)
class Magnitude(Score):
    """|W_ij|, compared within each row as in Wanda; no token is looked at."""

    name = "magnitude"
    needs_tokens = False

    def statistics(self, in_features: int) -> TokenCount:
        return TokenCount(in_features)

    def prune(
        self, weight: Tensor, statistics: Statistics, sparsity: float, mask_structure: str
    ) -> Tensor:
        return _by_rows(weight, lambda rows: magnitude_mask(rows, sparsity, mask_structure))


@dataclass(frozen=True)
class SparseGPT(Score):
    """llm-compressor's SparseGPT solver (arXiv 2301.00774) on the Hessian of the selected tokens.

    Removes weights block by block, compared over all rows of a block, and adapts those that stay
    to make up for them. Rows differ in sparsity; the Linear as a whole has exactly its share. See
    `sparsegpt` for the damping.

    Attributes:
        damping: the least share by which correlations are shrunk.
        refit: steps of conjugate gradients on the weights that stay, see `refit`.
    """

    name = "sparsegpt"
    keeps_weights = False
    by_row = False
    damping: float = 0.05
    refit: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.damping <= 1.0:
            raise ValueError(f"damping must be in (0, 1], got {self.damping}")
        if not 0 <= self.refit <= MOST_REFIT or self.refit != int(self.refit):
            raise ValueError(
                f"refit must be a whole number from 0 to {MOST_REFIT}, got {self.refit}"
            )

    def statistics(self, in_features: int) -> Hessian:
        return Hessian(in_features)

    def prune(
        self, weight: Tensor, statistics: Statistics, sparsity: float, mask_structure: str
    ) -> Tensor:
        assert isinstance(statistics, Hessian)
        hessian = statistics.result().to(weight.device)
        if not bool(torch.isfinite(weight).all()):
            raise ValueError("weights are not finite")
        pruned = sparsegpt_weight(
            weight,
            hessian,
            statistics.effective_tokens,
            sparsity,
            mask_structure,
            self.damping,
            int(self.refit),
        )
        if not bool(torch.isfinite(pruned).all()):
            raise ValueError("the solver gave weights that are not finite; try a larger damping")
        return pruned


SCORES: dict[str, Score] = {score.name: score for score in (Wanda(), SparseGPT(), Magnitude())}


def get_score(name: str, **options: Any) -> Score:
    """The score called `name`, with its own options.

    Raises:
        ValueError: an unknown name, an option that the score does not have or that is out of range.
    """
    if name not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {name!r}")
    return with_options(SCORES[name], f"score {name!r}", options)
