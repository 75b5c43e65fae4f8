"""Retention, its confidence interval, and paired tests, from the items of the cells.

Retention is accuracy relative to the dense model, mean over the tasks that the dense model can do:
what it guesses, a pruned one guesses as well, and their quotient is noise. Intervals are over
evaluation items: they are drawn again with replacement, the same ones for all methods, for the
dense model and for all calibration seeds; values of one item are means over the seeds. Items that
share a picture or sound, or are alike, are drawn together, whatever their tasks; where none does,
each task draws its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb
from typing import Any

import numpy as np

from benchmarks.quality.cells import Cell, ResultError

DRAWS = 2000
LEVEL = 0.95
GUESSED = 0.025
"""A task counts as one the dense model can do where guessing does as well less often than this."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is wholly on that side of zero, else 0."""
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """How far one method is ahead of another.

    Attributes:
        retention: difference of retention; positive is better.
        nll: difference of NLL, in nats; negative is better.
        by_seed: difference of NLL for every calibration seed alone.
        p: of a sign-flip test on the items' NLL, two-sided.
    """

    retention: Interval
    nll: Interval
    by_seed: tuple[float, ...]
    p: float

    @property
    def nll_sign(self) -> int:
        """`Interval.sign` of the NLL where every calibration seed is on the same side, else 0."""
        return self.nll.sign if all(self.nll.sign * one > 0 for one in self.by_seed) else 0


@dataclass(frozen=True)
class Items:
    """Values of every item, means over calibration seeds.

    Attributes:
        right: task -> [items], share of right answers or tokens.
        nll: task -> [items], nats per token.
        group: task -> [items], number of what an item shares with others; unique where it does not.
        shared: whether any item shares something.
        chance: task -> share of right answers by guessing.
        seeds: the calibration seeds.
        seed_nll: mean NLL over tasks of every seed.
    """

    right: Mapping[str, np.ndarray]
    nll: Mapping[str, np.ndarray]
    group: Mapping[str, np.ndarray]
    shared: bool
    chance: Mapping[str, float]
    seeds: tuple[int, ...]
    seed_nll: tuple[float, ...]

    @cached_property
    def drawn(self) -> dict[str, np.ndarray]:
        """`draws` of these items: all tables of a model take them from its dense cell."""
        return draws(self)

    @cached_property
    def able(self) -> tuple[str, ...]:
        """Tasks with so many right answers that guessing gives them once in `GUESSED` or less."""
        return tuple(
            task
            for task, right in self.right.items()
            if at_least(len(right), round(float(right.sum())), self.chance[task]) <= GUESSED
        )

    def able_of(self, tasks: Collection[str] | None) -> list[str]:
        """Those of the tasks, by default of all, that are in `able`."""
        return [task for task in self.able if tasks is None or task in tasks]


def items_of(cells: Sequence[Cell]) -> Items:
    """Means over the cells of one model, method and setting.

    Raises:
        ResultError: cells with different tasks or numbers of items.
    """
    first = cells[0]
    for cell in cells:
        if asked(cell) != asked(first):
            raise ResultError(
                f"{cell.model} {cell.method} {cell.setting}: seeds {first.seed} and {cell.seed} "
                "have different items"
            )
    right, nll, group = {}, {}, {}
    own = 1 + max((max(items.group, default=0) for items in first.tasks.values()), default=0)
    for task, items in first.tasks.items():
        of = np.array(items.of, dtype=float)
        right[task] = np.mean([np.array(c.tasks[task].right) / of for c in cells], axis=0)
        nll[task] = np.mean([np.array(c.tasks[task].nll) / 1e3 for c in cells], axis=0)
        group[task] = np.array(items.group or range(own, own + len(of)))
        own += len(of)
    shared = any(items.group for items in first.tasks.values())
    chance = {task: items.chance for task, items in first.tasks.items()}
    seeds = tuple(cell.seed for cell in cells)
    alone = tuple(
        float(np.mean([np.mean(items.nll) / 1e3 for items in cell.tasks.values()]))
        for cell in cells
    )
    return Items(right, nll, group, shared, chance, seeds, alone)


def at_least(count: int, right: int, chance: float) -> float:
    """Probability that guessing gets `right` or more of `count` questions right."""
    more = range(max(right, 0), count + 1)
    return sum(comb(count, k) * chance**k * (1 - chance) ** (count - k) for k in more)


def asked(cell: Cell) -> dict[str, tuple[list[int], list[int], float]]:
    """Return what tells the items of a cell."""
    return {task: (items.of, items.group, items.chance) for task, items in cell.tasks.items()}


def retention(found: Items, dense: Items, tasks: Collection[str] | None = None) -> float:
    """Mean of accuracy relative to dense over those of the tasks that dense can do.

    Raises:
        ResultError: there is no such task.
    """
    known = dense.able_of(tasks)
    if not known:
        raise ResultError("the dense model does no task better than guessing")
    return float(np.mean([found.right[task].mean() / dense.right[task].mean() for task in known]))


def mean_nll(found: Items, tasks: Collection[str] | None = None) -> float:
    """Mean over tasks, by default all, of the mean NLL."""
    return float(np.mean([found.nll[task].mean() for task in tasks or found.nll]))


def draws(items: Items, seed: int = 0, count: int = DRAWS) -> dict[str, np.ndarray]:
    """How often every item is drawn, by task, [count, items]; follows from groups and the seed."""
    generator = np.random.default_rng(seed)
    if not items.shared:
        return {
            task: generator.multinomial(len(own), np.full(len(own), 1 / len(own)), size=count)
            for task, own in items.group.items()
        }
    numbers, index = np.unique(np.concatenate(list(items.group.values())), return_inverse=True)
    often = generator.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=count)
    ends = np.cumsum([len(own) for own in items.group.values()])[:-1]
    return dict(zip(items.group, np.split(often[:, index], ends, axis=1), strict=True))


def _means(values: np.ndarray, often: np.ndarray) -> np.ndarray:
    """Mean of the drawn values, [count]; NaN where none was drawn."""
    total = often.sum(1)
    return np.where(total > 0, often @ values / np.maximum(total, 1), np.nan)


def _retentions(
    found: Items,
    dense: Items,
    drawn: Mapping[str, np.ndarray],
    tasks: Collection[str] | None = None,
) -> np.ndarray:
    shares = []
    for task in dense.able_of(tasks):
        base = _means(dense.right[task], drawn[task])
        # A draw in which the dense model is never right says nothing about this task.
        share = _means(found.right[task], drawn[task]) / np.where(base > 0, base, np.nan)
        shares.append(share)
    return np.nanmean(shares, axis=0)


def _nlls(
    found: Items, drawn: Mapping[str, np.ndarray], tasks: Collection[str] | None = None
) -> np.ndarray:
    return np.nanmean([_means(found.nll[task], drawn[task]) for task in tasks or drawn], axis=0)


def interval(value: float, drawn: np.ndarray) -> Interval:
    """Percentile interval of `LEVEL`."""
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def summarise(found: Items, dense: Items) -> tuple[Interval, Interval]:
    """Retention and NLL with their intervals."""
    drawn = dense.drawn
    return (
        interval(retention(found, dense), _retentions(found, dense, drawn)),
        interval(mean_nll(found), _nlls(found, drawn)),
    )


def compare(ours: Items, rival: Items, dense: Items) -> Comparison:
    """Paired differences over the same items.

    Raises:
        ResultError: the two were not calibrated with the same seeds.
    """
    if ours.seeds != rival.seeds:
        raise ResultError(f"calibration seeds {ours.seeds} and {rival.seeds} cannot be paired")
    return Comparison(
        kept_difference(ours, rival, dense),
        nll_difference(ours, rival, dense),
        tuple(a - b for a, b in zip(ours.seed_nll, rival.seed_nll, strict=True)),
        sign_flip(ours, rival),
    )


def kept_difference(
    ours: Items, rival: Items, dense: Items, tasks: Collection[str] | None = None
) -> Interval:
    """Paired difference of retention over those of the tasks that dense can do.

    Raises:
        ResultError: there is no such task.
    """
    value = retention(ours, dense, tasks) - retention(rival, dense, tasks)
    drawn = dense.drawn
    found = _retentions(ours, dense, drawn, tasks) - _retentions(rival, dense, drawn, tasks)
    return interval(value, found)


def nll_difference(
    ours: Items, rival: Items, dense: Items, tasks: Collection[str] | None = None
) -> Interval:
    """Paired difference of NLL over some tasks, by default all; negative is better."""
    drawn = dense.drawn
    found = _nlls(ours, drawn, tasks) - _nlls(rival, drawn, tasks)
    return interval(mean_nll(ours, tasks) - mean_nll(rival, tasks), found)


def gap_closed(
    found: Items, start: Items, dense: Items, tasks: Collection[str] | None = None
) -> Interval:
    """Share of the NLL between `start` and the dense model that is gone, over paired items."""

    def share(of: Any, begin: Any, end: Any) -> Any:
        return (begin - of) / (begin - end)

    drawn = dense.drawn
    value = share(*(mean_nll(items, tasks) for items in (found, start, dense)))
    return interval(value, share(*(_nlls(items, drawn, tasks) for items in (found, start, dense))))


def sign_flip(ours: Items, rival: Items, seed: int = 0, count: int = DRAWS) -> float:
    """Two-sided p of no difference in NLL: signs of the items' differences are flipped at random.

    Tasks weigh the same, as in `mean_nll`.
    """
    weighted = np.concatenate(
        [(ours.nll[task] - rival.nll[task]) / len(ours.nll[task]) for task in ours.nll]
    )
    _, index = np.unique(np.concatenate(list(ours.group.values())), return_inverse=True)
    weighted = np.bincount(index, weights=weighted)  # what is shared flips together
    generator = np.random.default_rng(seed)
    signs = generator.integers(2, size=(count, len(weighted))) * 2 - 1
    as_far = np.abs(signs @ weighted) >= abs(weighted.sum()) - 1e-12
    return float((1 + as_far.sum()) / (1 + count))
