"""Measurements of the dense model -> sparsity per Linear, under one global budget.

DAS, as the official code has it, starts every Linear at the fewest weights that the cap allows and
hands out what is missing to (1 - sparsity) * total in proportion to the score, again and again,
clamping Linears that are full. Every round adds in the same proportion to all that are not full, so
it ends at

    kept_g = min(numel_g, numel_g * (1 - max_sparsity) + level * score_g)

with the one level that meets the budget. It is found here directly: kept is piecewise linear in it.
Note what "das" means: the NUMBER of kept weights follows the score, so small Linears (k_proj and
v_proj under grouped-query attention) become dense. "das_numel" lets the SHARE follow the score.

The rules that give all Linears of a decoder layer the same sparsity are in `layerwise`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tamp_modifier.budget import check_importance, fill_by_score, round_to_budget, some
from tamp_modifier.layerwise import ATP, DLP, OWL
from tamp_modifier.options import with_options
from tamp_modifier.rules import Allocation

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "allocate_sparsity",
    "explicit_allocation",
    "get_allocation",
    "round_to_budget",
]


@dataclass(frozen=True)
class DAS(Allocation):
    """Kept weights follow the score, as in the official code (TAMP, arXiv 2504.09897).

    Attributes:
        score_power: exponent of the importance.
        numel_power: exponent of the number of weights; the score is their product.
    """

    name = "das"
    measure = "diversity"
    score_power: float = 1.0
    numel_power: float = 0.0

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


ALLOCATIONS: dict[str, Allocation] = {
    rule.name: rule for rule in (DAS(), DASNumel(), Uniform(), OWL(), DLP(), ATP())
}


def get_allocation(name: str, **options: Any) -> Allocation:
    """The allocation rule called `name`, with its own options.

    Raises:
        ValueError: an unknown name, an option that the rule does not have or that is out of range.
    """
    if name not in ALLOCATIONS:
        raise ValueError(f"allocation must be one of {', '.join(ALLOCATIONS)}, got {name!r}")
    return with_options(ALLOCATIONS[name], f"allocation {name!r}", options)


def allocate_sparsity(
    importance: Mapping[str, float],
    numel: Mapping[str, int],
    sparsity: float,
    max_sparsity: float,
) -> dict[str, float]:
    """Share the sparsity out by DAS (TAMP, arXiv 2504.09897; the rule "das").

    Args:
        importance: Linear -> importance, not negative. If all are 0 every Linear gets `sparsity`.
        numel: Linear -> number of weights.
        sparsity: share of all weights that is pruned, in (0, 1).
        max_sparsity: cap of a single Linear, in [sparsity, 1].

    Returns:
        Linear -> sparsity in [0, max_sparsity]; numel x sparsity sums up to sparsity x total.

    Raises:
        ValueError: values out of range; importance missing, negative or not finite (with the name).
    """
    return ALLOCATIONS["das"](importance, numel, sparsity, max_sparsity)


def explicit_allocation(
    sparsities: Mapping[str, float], numel: Mapping[str, int]
) -> dict[str, float]:
    """Check sparsities that the user gives for every Linear by name.

    Raises:
        ValueError: a Linear without a sparsity, a name that is no target Linear, a value outside
            [0, 1).
    """
    missing = [name for name in numel if name not in sparsities]
    unknown = [name for name in sparsities if name not in numel]
    if missing:
        raise ValueError(f"allocation gives no sparsity for {some(missing)}")
    if unknown:
        raise ValueError(f"allocation names what is no target Linear: {some(unknown)}")
    for name, value in sparsities.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"allocation[{name!r}] must be in [0, 1), got {value}")
    return {name: float(sparsities[name]) for name in numel}
