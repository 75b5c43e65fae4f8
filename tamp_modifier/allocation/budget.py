"""Sharing one global budget out: the sparsities that sum up to it, and rounding them to columns."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate

from tamp_modifier.masks import pruned_columns
from tamp_modifier.messages import some


def fill_by_score(
    scores: Mapping[str, float], numel: Mapping[str, int], sparsity: float, max_sparsity: float
) -> dict[str, float]:
    """Sparsities of kept = min(numel, least + level * score) that meet the budget.

    `least` = numel * (1 - max_sparsity), and the level is the one that meets the budget.
    """
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


def shift_to_budget(
    values: Mapping[str, float], numel: Mapping[str, int], sparsity: float, max_sparsity: float
) -> dict[str, float]:
    """Sparsities clip(value + shift, 0, max_sparsity), with the one shift that meets the budget.

    Where nothing is clipped, the mean over all weights is moved to `sparsity` and all differences
    stay.
    """
    wanted = sparsity * math.fsum(numel.values())

    def pruned(shift: float) -> float:
        return math.fsum(
            numel[name] * min(max(value + shift, 0.0), max_sparsity)
            for name, value in values.items()
        )

    # The sum is piecewise linear in the shift and bends where a Linear reaches 0 or the cap.
    bends = sorted({end - value for value in values.values() for end in (0.0, max_sparsity)})
    right = min(max(bisect_left(bends, wanted, key=pruned), 1), len(bends) - 1)
    low, high = bends[right - 1], bends[right]
    at_low, at_high = pruned(low), pruned(high)
    part = (wanted - at_low) / (at_high - at_low) if at_high > at_low else 1.0
    shift = low + (high - low) * min(max(part, 0.0), 1.0)
    return {name: min(max(value + shift, 0.0), max_sparsity) for name, value in values.items()}


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


def check_budget(numel: Mapping[str, int], sparsity: float, max_sparsity: float) -> None:
    """Refuse a budget that cannot be shared out."""
    if not 0.0 < sparsity < 1.0:
        raise ValueError(f"sparsity must be between 0 and 1, got {sparsity}")
    if not sparsity <= max_sparsity <= 1.0:
        raise ValueError(f"max_sparsity must be in [{sparsity}, 1], got {max_sparsity}")
    if not numel:
        raise ValueError("there is no Linear to share the sparsity out to")
    for name, count in numel.items():
        if count <= 0:
            raise ValueError(f"numel of {name} must be positive, got {count}")


def check_importance(importance: Mapping[str, float], numel: Mapping[str, int]) -> None:
    """Refuse importance that is missing, negative or not finite."""
    missing = [name for name in numel if name not in importance]
    if missing:
        raise ValueError(f"importance is missing for {some(missing)}")
    for name in numel:
        if not (math.isfinite(importance[name]) and importance[name] >= 0):
            raise ValueError(
                f"importance of {name} must be finite and not negative, got {importance[name]}"
            )
