"""Retention, its confidence interval, and paired tests, from the items of the cells.

Retention is accuracy relative to the dense model, mean over tasks. Intervals are over evaluation
items: items are drawn again with replacement within every task, the same ones for all methods, for
the dense model and for all calibration seeds; values of one item are means over the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.quality.cells import Cell, ResultError

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """How far one method is ahead of another.

    Attributes:
        retention: difference of retention; positive is better.
        nll: difference of NLL, in nats; negative is better.
        p: of a sign-flip test on the items' NLL, two-sided.
    """

    retention: Interval
    nll: Interval
    p: float


@dataclass(frozen=True)
class Items:
    """Values of every item, means over calibration seeds.

    Attributes:
        right: task -> [items], share of right answers or tokens.
        nll: task -> [items], nats per token.
        seeds: the calibration seeds.
    """

    right: Mapping[str, np.ndarray]
    nll: Mapping[str, np.ndarray]
    seeds: tuple[int, ...]


def items_of(cells: Sequence[Cell]) -> Items:
    """Means over the cells of one model, method and setting.

    Raises:
        ResultError: cells with different tasks or numbers of items.
    """
    first = cells[0]
    for cell in cells:
        if {t: i.of for t, i in cell.tasks.items()} != {t: i.of for t, i in first.tasks.items()}:
            raise ResultError(
                f"{cell.model} {cell.method} {cell.setting}: seeds {first.seed} and {cell.seed} "
                "have different items"
            )
    right, nll = {}, {}
    for task, items in first.tasks.items():
        of = np.array(items.of, dtype=float)
        right[task] = np.mean([np.array(c.tasks[task].right) / of for c in cells], axis=0)
        nll[task] = np.mean([np.array(c.tasks[task].nll) / 1e3 for c in cells], axis=0)
    return Items(right, nll, tuple(cell.seed for cell in cells))


def retention(found: Items, dense: Items) -> float:
    """Mean over tasks of accuracy relative to dense; tasks that dense cannot do are left out."""
    shares = [
        found.right[task].mean() / dense.right[task].mean()
        for task in found.right
        if dense.right[task].mean() > 0
    ]
    return float(np.mean(shares))


def mean_nll(found: Items) -> float:
    """Mean over tasks of the mean NLL."""
    return float(np.mean([values.mean() for values in found.nll.values()]))


def draws(items: Items, seed: int = 0, count: int = DRAWS) -> dict[str, np.ndarray]:
    """Drawn items of every task, int [count, items]; they follow from the sizes and the seed."""
    generator = np.random.default_rng(seed)
    return {
        task: generator.integers(len(values), size=(count, len(values)))
        for task, values in items.right.items()
    }


def _retentions(found: Items, dense: Items, drawn: Mapping[str, np.ndarray]) -> np.ndarray:
    shares = []
    for task, index in drawn.items():
        if dense.right[task].mean() > 0:
            base = dense.right[task][index].mean(1)
            # A draw in which the dense model is never right says nothing about this task.
            share = found.right[task][index].mean(1) / np.where(base > 0, base, np.nan)
            shares.append(share)
    return np.nanmean(shares, axis=0)


def _nlls(found: Items, drawn: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.mean([found.nll[task][index].mean(1) for task, index in drawn.items()], axis=0)


def interval(value: float, drawn: np.ndarray) -> Interval:
    """Percentile interval of `LEVEL`."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def summarise(found: Items, dense: Items) -> tuple[Interval, Interval]:
    """Retention and NLL with their intervals."""
    drawn = draws(dense)
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
    drawn = draws(dense)
    kept = _retentions(ours, dense, drawn) - _retentions(rival, dense, drawn)
    nll = _nlls(ours, drawn) - _nlls(rival, drawn)
    return Comparison(
        interval(retention(ours, dense) - retention(rival, dense), kept),
        interval(mean_nll(ours) - mean_nll(rival), nll),
        sign_flip(ours, rival),
    )


def sign_flip(ours: Items, rival: Items, seed: int = 0, count: int = DRAWS) -> float:
    """Two-sided p of no difference in NLL: signs of the items' differences are flipped at random.

    Tasks weigh the same, as in `mean_nll`.
    """
    weighted = np.concatenate(
        [(ours.nll[task] - rival.nll[task]) / len(ours.nll[task]) for task in ours.nll]
    )
    generator = np.random.default_rng(seed)
    signs = generator.integers(2, size=(count, len(weighted))) * 2 - 1
    at_least = np.abs(signs @ weighted) >= abs(weighted.sum()) - 1e-12
    return float((1 + at_least.sum()) / (1 + count))
