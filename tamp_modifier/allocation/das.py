"""DAS, diversity-aware sparsity, and the uniform rule.

DAS, as the official code has it, starts every Linear at the fewest weights that the cap allows and
hands out what is missing to (1 - sparsity) * total in proportion to the score, again and again,
clamping Linears that are full. Every round adds in the same proportion to all that are not full, so
it ends at

    kept_g = min(numel_g, numel_g * (1 - max_sparsity) + level * score_g)

with the one level that meets the budget. It is found here directly: kept is piecewise linear in it.
Note what "das" means: the NUMBER of kept weights follows the score, so small Linears (k_proj and
v_proj under grouped-query attention) become dense. "das_numel" lets the SHARE follow the score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tamp_modifier.allocation.base import Allocation
from tamp_modifier.allocation.budget import check_importance, fill_by_score


@dataclass(frozen=True)
class DAS(Allocation):
    """Kept weights follow the score, as in the official code (TAMP, arXiv 2504.09897).

    Attributes:
        score_power: exponent of the importance.
        numel_power: exponent of the number of weights; the score is their product.
        positive_only: diversity over pairs of a modality with a positive cosine only, as the
            official code has it.
    """

    name = "das"
    measure = "diversity"
    score_power: float = 1.0
    numel_power: float = 0.0
    positive_only: bool = False

    def __post_init__(self) -> None:
        for name in ("score_power", "numel_power"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and >= 0, got {value}")

    def default_cap(self, sparsity: float) -> float:
        return min(1.0, sparsity + 0.1)

    def share_out(
        self,
        importance: Mapping[str, float],
        numel: Mapping[str, int],
        sparsity: float,
        max_sparsity: float,
    ) -> dict[str, float]:
        check_importance(importance, numel)
        largest = max(importance[name] for name in numel) or 1.0
        scores = {
            name: (importance[name] / largest) ** self.score_power * count**self.numel_power
            for name, count in numel.items()
        }
        return fill_by_score(scores, numel, sparsity, max_sparsity)


@dataclass(frozen=True)
class DASNumel(DAS):
    """Kept weights follow score x numel: the kept share follows the score."""

    name = "das_numel"
    numel_power: float = 1.0


@dataclass(frozen=True)
class Uniform(Allocation):
    """The same sparsity everywhere."""

    name = "uniform"
    measure = "nothing"

    def share_out(
        self,
        importance: Mapping[str, float],
        numel: Mapping[str, int],
        sparsity: float,
        max_sparsity: float,
    ) -> dict[str, float]:
        return dict.fromkeys(numel, sparsity)
