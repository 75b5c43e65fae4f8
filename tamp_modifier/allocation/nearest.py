"""Whole steps under one budget: the reachable point that is nearest to an allocation.

N:M patterns let a Linear g lose only whole steps: k_g = 0 ... most_g steps of unit_g weights each
(a fourth of its weights with n:4; half of them, once, where it is either 2:4 or dense). An
allocation rule would take a real number t_g of them. Of all k that meet the budget,

    minimise  sum_g unit_g (k_g - t_g)^2,

which is the squared distance of the sparsities, weighted by the number of weights. Where every
Linear takes one step or none, this maximises sum unit_g t_g over those that take it: a knapsack
whose values are what the rule wanted to remove.

"Meets the budget" means that the sum of unit_g k_g is within half of the smallest unit. If no k
does, those nearest to the budget are taken; that is never further away than half of the largest
unit, as adding steps one by one has to cross the budget.

Linears with the same unit are interchangeable for the budget, and the cost is convex in k, so the
best way for them to take n steps together is the first n of a sorted list. What is left is how many
each group takes: few groups, as a model has few shapes. The rounded-down solution of the
continuous problem is the start, and a dynamic programme over the sums looks at up to `WINDOW` steps
more or less of every group. It is exact where that covers a group and no more than `MOST_SUMS` sums
are reachable; beyond that, sums that are nearly the same are merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

WINDOW = 16
MOST_SUMS = 1024
GOLDEN = 0.6180339887498949

# Steps of the last group behind those of the groups before it.
_Path = tuple[Any, int]
# Sum of the added weights -> cost, and the steps that lead there.
_Sums = dict[int, tuple[float, _Path | None]]


@dataclass(frozen=True)
class Steps:
    """The steps that one Linear can take.

    Attributes:
        unit: weights that one step prunes.
        most: how many steps there are.
        wanted: how many the allocation rule would take, a real number.
    """

    unit: int
    most: int
    wanted: float


@dataclass(frozen=True)
class _Group:
    """Linears with the same unit: in which order they take steps, and what each step costs."""

    unit: int
    order: list[tuple[float, float, str]]  # (steps above the wanted ones, tie-break, Linear)
    costs: list[float]  # of the first 0, 1, ... steps

    @classmethod
    def of(cls, unit: int, order: list[tuple[float, float, str]]) -> _Group:
        order = sorted(order)
        # (j + 1 - t)^2 - (j - t)^2 = 2 (j - t) + 1 for step j
        steps = [unit * (2.0 * above + 1.0) for above, _, _ in order]
        return cls(unit, order, list(accumulate(steps, initial=0.0)))


def nearest_steps(steps: Mapping[str, Steps], budget: float) -> dict[str, int]:
    """How many steps every Linear takes.

    Args:
        steps: Linear -> its steps, with positive units.
        budget: number of weights that all of them prune together.

    Returns:
        Linear -> number of steps in 0 ... most. Of Linears that want the same, those that take a
        step more are spread evenly over the order of `steps`.
    """
    orders: dict[int, list[tuple[float, float, str]]] = {}
    for index, (name, step) in enumerate(steps.items()):
        # Importance is known to the rounding of fp32: its last bits must not decide.
        orders.setdefault(step.unit, []).extend(
            (round(taken - step.wanted, 6), index * GOLDEN % 1.0, name)
            for taken in range(step.most)
        )
    groups = [_Group.of(unit, order) for unit, order in sorted(orders.items(), reverse=True)]
    start, total, crossing = _fill(groups, budget)
    tolerance = groups[-1].unit / 2.0 if groups else 0.0

    def badness(total: int, cost: float) -> tuple[float, float, float]:
        missed = abs(total - budget)
        return max(missed - tolerance, 0.0), cost, missed

    def badness_of(counts: list[int]) -> tuple[float, float, float]:
        pairs = list(zip(groups, counts, strict=True))
        total = sum(group.unit * count for group, count in pairs)
        return badness(total, sum(group.costs[count] for group, count in pairs))

    sums = _nearby_sums(groups, start, budget - total)
    found = [start]
    if sums:
        added = min(sums, key=lambda added: badness(total + added, sums[added][0]))
        found.append(_counts(sums[added][1]))
    if crossing is not None:
        found.append([n + (i == crossing) for i, n in enumerate(start)])
    best = min(found, key=badness_of)
    taken = dict.fromkeys(steps, 0)
    for group, count in zip(groups, best, strict=True):
        for _, _, name in group.order[:count]:
            taken[name] += 1
    return taken


def _fill(groups: list[_Group], budget: float) -> tuple[list[int], int, int | None]:
    """Take the cheapest step of all groups, again and again, as long as the budget holds.

    Returns:
        Steps of every group, the weights that they prune, and the group whose step would have been
        the next; None if there is no step left.
    """
    counts, total = [0] * len(groups), 0
    every = sorted(
        (above, tie, index) for index, group in enumerate(groups) for above, tie, _ in group.order
    )
    for _, _, index in every:
        if total + groups[index].unit > budget:
            return counts, total, index
        counts[index] += 1
        total += groups[index].unit
    return counts, total, None


def _nearby_sums(groups: list[_Group], start: list[int], gap: float) -> _Sums:
    """Return what can be added to `start` by other step counts, and the cheapest way to each such
    sum.

    Args:
        groups: from the largest unit to the smallest.
        start: steps of every group.
        gap: weights that are missing to the budget.
    """
    windows = [
        range(max(-WINDOW, -count), min(WINDOW, len(group.order) - count) + 1)
        for group, count in zip(groups, start, strict=True)
    ]
    # Sums from which the groups behind cannot come back to the budget are dropped.
    slack = max((group.unit for group in groups), default=0)
    least = [0.0] * (len(groups) + 1)
    most = [0.0] * (len(groups) + 1)
    for i in reversed(range(len(groups))):
        least[i] = least[i + 1] + groups[i].unit * windows[i].start
        most[i] = most[i + 1] + groups[i].unit * (windows[i].stop - 1)
    sums: _Sums = {0: (0.0, None)}
    for i, (group, count, window) in enumerate(zip(groups, start, windows, strict=True)):
        longer: _Sums = {}
        for before, (cost, path) in sums.items():
            for step in window:
                after = before + group.unit * step
                if not least[i + 1] - slack <= gap - after <= most[i + 1] + slack:
                    continue
                new = cost + group.costs[count + step]
                if after not in longer or new < longer[after][0]:
                    longer[after] = (new, (path, count + step))
        sums = _merge(longer)
    return sums


def _counts(path: _Path | None) -> list[int]:
    counts: list[int] = []
    while path is not None:
        path, count = path
        counts.append(count)
    return counts[::-1]


def _merge(sums: _Sums) -> _Sums:
    """At most about `MOST_SUMS` of the sums: of those that are nearly the same the cheapest."""
    if len(sums) <= MOST_SUMS:
        return sums
    width = (max(sums) - min(sums)) / MOST_SUMS
    cheapest: dict[int, int] = {}
    for value, (cost, _) in sums.items():
        bucket = int(value // width)
        if bucket not in cheapest or cost < sums[cheapest[bucket]][0]:
            cheapest[bucket] = value
    return {value: sums[value] for value in cheapest.values()}
