"""Importance -> sparsity per Linear, under one global budget.

The official code starts every Linear at the fewest weights that the cap allows and hands out what
is missing to (1 - sparsity) * total in proportion to the score, again and again, clamping Linears
that are full. Every round adds in the same proportion to all that are not full, so it ends at

    kept_g = min(numel_g, numel_g * (1 - max_sparsity) + level * score_g)

with the one level that meets the budget. It is found here directly: kept is piecewise linear in it.
Note what "das" means: the NUMBER of kept weights follows the score, so small Linears (k_proj and
v_proj under grouped-query attention) become dense. "das_numel" lets the SHARE follow the score.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import accumulate
from typing import ClassVar

from tamp_modifier.masks import pruned_columns


class Allocation(ABC):
    """How sparsity is shared out. A new rule is one subclass, listed in `ALLOCATIONS`."""

    name: ClassVar[str]
    needs_importance: ClassVar[bool] = True

    @abstractmethod
    def scores(self, importance: Mapping[str, float], numel: Mapping[str, int]) -> dict[str, float]:
        """Score of every Linear that the kept weights above the minimum follow."""

    def __call__(
        self,
        importance: Mapping[str, float],
        numel: Mapping[str, int],
        sparsity: float,
        max_sparsity: float,
    ) -> dict[str, float]:
        """Sparsity of every Linear, see `allocate_sparsity`."""
        _check_budget(numel, sparsity, max_sparsity)
        if self.needs_importance:
            _check_importance(importance, numel)
        return _fill(self.scores(importance, numel), numel, sparsity, max_sparsity)


class DAS(Allocation):
    """Kept weights follow the score, as in the official code."""

    name = "das"

    def scores(self, importance: Mapping[str, float], numel: Mapping[str, int]) -> dict[str, float]:
        return {name: importance[name] for name in numel}


class DASNumel(Allocation):
    """Kept weights follow score x numel: the kept share follows the score."""

    name = "das_numel"

    def scores(self, importance: Mapping[str, float], numel: Mapping[str, int]) -> dict[str, float]:
        return {name: importance[name] * numel[name] for name in numel}


class Uniform(Allocation):
    """The same sparsity everywhere."""

    name = "uniform"
    needs_importance = False

    def scores(self, importance: Mapping[str, float], numel: Mapping[str, int]) -> dict[str, float]:
        return {name: float(count) for name, count in numel.items()}


ALLOCATIONS: dict[str, Allocation] = {rule.name: rule for rule in (DAS(), DASNumel(), Uniform())}


def get_allocation(name: str) -> Allocation:
    """The allocation rule called `name`.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ALLOCATIONS:
        raise ValueError(f"allocation must be one of {', '.join(ALLOCATIONS)}, got {name!r}")
    return ALLOCATIONS[name]


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
        raise ValueError(f"allocation gives no sparsity for {_some(missing)}")
    if unknown:
        raise ValueError(f"allocation names what is no target Linear: {_some(unknown)}")
    for name, value in sparsities.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"allocation[{name!r}] must be in [0, 1), got {value}")
    return {name: float(sparsities[name]) for name in numel}


def round_to_budget(
    sparsities: Mapping[str, float], shapes: Mapping[str, tuple[int, int]]
) -> dict[str, float]:
    """Round every sparsity to whole columns a row, keeping the total.

    Every Linear moves by less than one column. Where rounding all to nearest misses the total,
    those nearest to the middle are rounded the other way where that brings the total nearer.

    Args:
        sparsities: Linear -> sparsity.
        shapes: Linear -> (rows, columns) of its weight.

    Returns:
        Linear -> pruned columns / columns, which `wanda_mask` reaches exactly.
    """
    exact = {name: shapes[name][1] * value for name, value in sparsities.items()}
    rounded = {name: pruned_columns(shapes[name][1], value) for name, value in sparsities.items()}
    # Weights still to prune (positive) or to give back (negative).
    missing = math.fsum((exact[name] - rounded[name]) * shapes[name][0] for name in exact)
    # Importance is only known to the rounding of fp32. Thousandths of a column and half a weight
    # keep its last bits from deciding which of two equal Linears moves.
    rest = {name: round(exact[name] - rounded[name], 3) for name in exact}
    for name in sorted(exact, key=lambda name: -abs(rest[name])):
        rows = shapes[name][0]
        step = (rest[name] > 0) - (rest[name] < 0)
        if step and abs(missing - step * rows) < abs(missing) - 0.5:
            rounded[name] += step
            missing -= step * rows
    return {name: rounded[name] / shapes[name][1] for name in sparsities}


def _fill(
    scores: Mapping[str, float], numel: Mapping[str, int], sparsity: float, max_sparsity: float
) -> dict[str, float]:
    """Sparsities of kept = min(numel, least + level * score) that meet the budget."""
    least = {name: count * (1.0 - max_sparsity) for name, count in numel.items()}
    room = {name: numel[name] - least[name] for name in numel}
    missing = math.fsum(numel.values()) * (1.0 - sparsity) - math.fsum(least.values())
    # Only ratios count. Scores from 1 to 1e-30 keep the sums in range; smaller ones count as 0.
    largest = max(scores.values()) or 1.0
    scores = {name: scores[name] / largest for name in numel}
    scores = {name: score if score > 1e-30 else 0.0 for name, score in scores.items()}
    added = dict.fromkeys(numel, 0.0)
    # In this order Linears fill up as the level rises.
    scored = sorted((n for n in numel if scores[n] > 0), key=lambda n: room[n] / scores[n])
    behind = list(accumulate(scores[name] for name in reversed(scored)))
    for name in scored:
        # If this one does not fill up, the level and so the shares of those behind it are final.
        added[name] = min(room[name], max(missing, 0.0) * (scores[name] / behind.pop()))
        missing -= added[name]
    # What the scored Linears cannot take goes to those of score 0, in proportion to their room.
    left = math.fsum(room[name] for name in numel if scores[name] <= 0)
    if missing > 0 and left > 0:
        for name in numel:
            if scores[name] <= 0:
                added[name] = room[name] * min(missing / left, 1.0)
    return {
        name: min(max(1.0 - (least[name] + added[name]) / numel[name], 0.0), max_sparsity)
        for name in numel
    }


def _check_budget(numel: Mapping[str, int], sparsity: float, max_sparsity: float) -> None:
    if not 0.0 < sparsity < 1.0:
        raise ValueError(f"sparsity must be between 0 and 1, got {sparsity}")
    if not sparsity <= max_sparsity <= 1.0:
        raise ValueError(f"max_sparsity must be in [{sparsity}, 1], got {max_sparsity}")
    if not numel:
        raise ValueError("there is no Linear to share the sparsity out to")
    for name, count in numel.items():
        if count <= 0:
            raise ValueError(f"numel of {name} must be positive, got {count}")


def _check_importance(importance: Mapping[str, float], numel: Mapping[str, int]) -> None:
    missing = [name for name in numel if name not in importance]
    if missing:
        raise ValueError(f"there is no importance for {_some(missing)}")
    for name in numel:
        if not (math.isfinite(importance[name]) and importance[name] >= 0):
            raise ValueError(
                f"importance of {name} must be finite and not negative, got {importance[name]}"
            )


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
