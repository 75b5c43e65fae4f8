"""Retention, intervals and tests against slow formulas."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest

from benchmarks.quality.cells import Cell, ResultError, TaskItems
from benchmarks.quality.statistics import (
    Items,
    at_least,
    compare,
    draws,
    gap_closed,
    items_of,
    kept_difference,
    mean_nll,
    nll_difference,
    retention,
    sign_flip,
    summarise,
)


def cell(method: str, seed: int, tasks: dict[str, TaskItems]) -> Cell:
    """A cell with these answers."""
    setting = "0" if method == "dense" else "50"
    return Cell(
        "m", method, setting, seed, "id", 1, {}, 0.5, 1.0, "cpu", "2026-01-01", {}, "", tasks
    )


def answers(right: float, nll: float, seed: int, sizes: tuple[int, ...] = (20, 30)) -> dict:
    """Random answers to two tasks."""
    rng = random.Random(seed)
    return {
        f"task {number}": TaskItems.from_values(
            [int(rng.random() < right) for _ in range(size)],
            [1] * size,
            [nll * rng.random() for _ in range(size)],
            [],
            0.0,
        )
        for number, size in enumerate(sizes)
    }


def slow_retention(cells: list[Cell], dense: Cell, picked: dict[str, list[int]]) -> float:
    shares = []
    for task, index in picked.items():
        mine = mean(
            mean(c.tasks[task].right[i] / c.tasks[task].of[i] for c in cells) for i in index
        )
        base = mean(dense.tasks[task].right[i] / dense.tasks[task].of[i] for i in index)
        shares.append(mine / base)
    return mean(shares)


def slow_nll(cells: list[Cell], picked: dict[str, list[int]]) -> float:
    return mean(
        mean(mean(c.tasks[task].nll[i] / 1000 for c in cells) for i in index)
        for task, index in picked.items()
    )


def test_retention_and_nll_are_means_over_tasks_of_means_over_seeds_and_items() -> None:
    dense = cell("dense", 0, answers(0.9, 0.1, 0))
    cells = [cell("a", seed, answers(0.6, 1.0, 10 + seed)) for seed in (0, 1, 2)]
    everything = {task: list(range(len(items.of))) for task, items in dense.tasks.items()}
    found, base = items_of(cells), items_of([dense])
    assert retention(found, base) == pytest.approx(slow_retention(cells, dense, everything))
    assert mean_nll(found) == pytest.approx(slow_nll(cells, everything))


def test_items_with_several_answers_count_by_their_share() -> None:
    dense = cell("dense", 0, {"t": TaskItems([4, 8], [8, 8], [0, 0], [], 0.0)})
    mine = cell("a", 0, {"t": TaskItems([2, 4], [8, 8], [0, 0], [], 0.0)})
    assert retention(items_of([mine]), items_of([dense])) == pytest.approx(0.5)


def test_tasks_that_the_dense_model_only_guesses_are_left_out_of_retention() -> None:
    def tasks(guessed: int, known: int) -> dict[str, TaskItems]:
        rights = {"guessed": guessed, "known": known}
        return {
            name: TaskItems.from_values(
                [1] * right + [0] * (20 - right), [1] * 20, [0.5] * 20, [], 0.5
            )
            for name, right in rights.items()
        }

    dense = items_of([cell("dense", 0, tasks(11, 20))])
    mine = items_of([cell("a", 0, tasks(20, 15))])
    assert dense.able == ("known",)
    assert retention(mine, dense) == pytest.approx(0.75)
    kept, nll = summarise(mine, dense)
    assert kept.value == pytest.approx(0.75) and kept.high <= 1
    assert nll.value == pytest.approx(0.5)  # likelihood means something at chance too


@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5, 1.0])
def test_the_probability_of_guessing_is_that_of_all_outcomes(chance: float) -> None:
    for right in range(7):
        slow = sum(
            np.prod([chance if hit else 1 - chance for hit in hits])
            for hits in itertools.product((0, 1), repeat=5)
            if sum(hits) >= right
        )
        assert at_least(5, right, chance) == pytest.approx(slow)


def test_intervals_are_those_of_a_slow_bootstrap() -> None:
    dense = cell("dense", 0, answers(0.9, 0.1, 0))
    cells = [cell("a", seed, answers(0.6, 1.0, 10 + seed)) for seed in (0, 1)]
    kept, nll = summarise(items_of(cells), items_of([dense]))
    drawn = draws(items_of([dense]))
    slow = [
        {
            task: [item for item, often in enumerate(counts[number]) for _ in range(often)]
            for task, counts in drawn.items()
        }
        for number in range(2000)
    ]
    wanted = np.quantile([slow_retention(cells, dense, d) for d in slow], [0.025, 0.975])
    assert (kept.low, kept.high) == pytest.approx(tuple(wanted))
    wanted = np.quantile([slow_nll(cells, d) for d in slow], [0.025, 0.975])
    assert (nll.low, nll.high) == pytest.approx(tuple(wanted))
    assert kept.low < kept.value < kept.high


def test_a_method_is_not_ahead_of_itself() -> None:
    dense = items_of([cell("dense", 0, answers(0.9, 0.1, 0))])
    mine = items_of([cell("a", 0, answers(0.6, 1.0, 1))])
    same = compare(mine, mine, dense)
    assert (same.retention.value, same.retention.low, same.retention.high) == (0.0, 0.0, 0.0)
    assert same.p == 1.0


def test_the_sign_flip_test_is_the_exact_one_up_to_sampling() -> None:
    sizes = (4, 6)
    ours = items_of([cell("a", 0, answers(0.5, 1.0, 3, sizes))])
    rival = items_of([cell("b", 0, answers(0.5, 1.6, 4, sizes))])
    weighted = [
        float(a - b) / len(ours.nll[task])
        for task in ours.nll
        for a, b in zip(ours.nll[task], rival.nll[task], strict=True)
    ]
    flips = [
        abs(sum(sign * value for sign, value in zip(signs, weighted, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(weighted))
    ]
    exact = mean(flip >= abs(sum(weighted)) - 1e-12 for flip in flips)
    assert sign_flip(ours, rival, count=20000) == pytest.approx(exact, abs=0.02)


def test_a_clear_lead_has_an_interval_above_zero() -> None:
    dense = items_of([cell("dense", 0, answers(0.95, 0.1, 0, (200, 200)))])
    ours = items_of([cell("a", 0, answers(0.9, 0.2, 1, (200, 200)))])
    rival = items_of([cell("b", 0, answers(0.5, 2.0, 2, (200, 200)))])
    lead = compare(ours, rival, dense)
    assert lead.retention.low > 0 > lead.nll.high
    assert lead.p < 0.01
    assert lead.by_seed == pytest.approx((lead.nll.value,))


def test_the_lead_of_some_tasks_is_that_of_cells_with_these_alone() -> None:
    cells = {
        name: [cell(name, k, answers(0.8, 1 + k, 7 * k + len(name))) for k in (0, 1)]
        for name in ("a", "bb")
    }
    dense = items_of([cell("dense", 0, answers(0.9, 0.1, 0))])
    ours, rival = items_of(cells["a"]), items_of(cells["bb"])
    task = "task 1"
    alone = mean(
        mean(c.tasks[task].nll) - mean(r.tasks[task].nll)
        for c, r in zip(cells["a"], cells["bb"], strict=True)
    )
    found = nll_difference(ours, rival, dense, [task])
    assert found.value == pytest.approx(alone / 1000)
    assert found.low < found.value < found.high
    whole = compare(ours, rival, dense)
    assert whole.nll == nll_difference(ours, rival, dense, list(dense.nll))
    assert mean(whole.by_seed) == pytest.approx(whole.nll.value)

    base = cell("dense", 0, answers(0.9, 0.1, 0))
    picked = {task: list(range(30))}
    kept = kept_difference(ours, rival, dense, [task])
    wanted = slow_retention(cells["a"], base, picked) - slow_retention(cells["bb"], base, picked)
    assert kept.value == pytest.approx(wanted) and kept.low < kept.value < kept.high
    assert whole.retention == kept_difference(ours, rival, dense)
    with pytest.raises(ResultError, match="no task better than guessing"):
        kept_difference(ours, rival, dense, ["another task"])


def test_other_seeds_or_items_cannot_be_paired() -> None:
    dense = items_of([cell("dense", 0, answers(0.9, 0.1, 0))])
    ours, other = (items_of([cell("a", seed, answers(0.6, 1.0, 1))]) for seed in (0, 1))
    with pytest.raises(ResultError, match="cannot be paired"):
        compare(ours, other, dense)
    with pytest.raises(ResultError, match="different items"):
        items_of([cell("a", 0, answers(0.6, 1, 1)), cell("a", 1, answers(0.6, 1, 1, (5, 5)))])


def test_items_that_share_a_picture_are_drawn_together_in_all_tasks() -> None:
    rng = random.Random(0)
    groups = {"a": [0, 0, 1, 2], "b": [0, 2, 2, 3, 4]}
    tasks = {
        name: TaskItems([1] * len(own), [1] * len(own), [rng.randrange(999) for _ in own], own, 0)
        for name, own in groups.items()
    }
    items = items_of([cell("a", 0, tasks)])
    drawn = draws(items, count=200)
    for a, b in zip(drawn["a"], drawn["b"], strict=True):
        assert a[0] == a[1] == b[0] and a[3] == b[1] == b[2]
        assert a[0] + a[2] + a[3] + b[3] + b[4] == 5  # as many groups as there are
    # Signs flip by group, so five groups have 32 outcomes and none is rarer than 1 in 16.
    zero = {name: replace(items, nll=[0] * len(items.of)) for name, items in tasks.items()}
    assert sign_flip(items, items_of([cell("b", 0, zero)]), count=5000) > 0.04


def test_the_gap_is_closed_as_far_as_the_nll_went() -> None:
    def items(nll: list[int]) -> Items:
        task = TaskItems([1] * 4, [1] * 4, nll, [], 0.1)
        return items_of([cell("best", 0, {"one": task})])

    dense, start = items([100, 200, 300, 400]), items([200, 400, 600, 800])
    half = gap_closed(items([150, 300, 450, 600]), start, dense)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    assert gap_closed(dense, start, dense).value == pytest.approx(1)
    assert gap_closed(start, start, dense).value == 0
