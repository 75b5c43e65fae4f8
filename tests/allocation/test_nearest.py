"""Whole steps under one budget: nearest of all, within a stated distance, whatever the sizes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamp_modifier.allocation.nearest import Steps, nearest_steps

Problem = tuple[dict[str, Steps], float]


def total(steps: dict[str, Steps], taken: dict[str, int]) -> int:
    return sum(steps[name].unit * count for name, count in taken.items())


def cost(steps: dict[str, Steps], taken: dict[str, int]) -> float:
    return sum(steps[n].unit * (count - steps[n].wanted) ** 2 for n, count in taken.items())


def badness(steps: dict[str, Steps], taken: dict[str, int], budget: float) -> tuple[float, float]:
    missed = abs(total(steps, taken) - budget)
    tolerance = min(step.unit for step in steps.values()) / 2
    return max(missed - tolerance, 0.0), cost(steps, taken)


@st.composite
def problems(draw: st.DrawFn, most_linears: int, sizes: list[int], largest: int) -> Problem:
    """Linears with wanted steps, and the budget that these sum up to."""
    most = draw(st.integers(1, largest))
    steps = {
        f"layers.{i}": Steps(draw(st.sampled_from(sizes)), most, draw(st.floats(0.0, float(most))))
        for i in range(draw(st.integers(1, most_linears)))
    }
    return steps, sum(step.unit * step.wanted for step in steps.values())


@settings(max_examples=150, deadline=None)
@given(problems(5, [8, 20, 28, 64, 97], 3))
def test_no_other_choice_is_nearer(problem: Problem) -> None:
    steps, budget = problem
    taken = nearest_steps(steps, budget)
    assert taken.keys() == steps.keys()
    every = (
        badness(steps, dict(zip(steps, counts, strict=True)), budget)
        for counts in itertools.product(*(range(step.most + 1) for step in steps.values()))
    )
    found, best = badness(steps, taken, budget), min(every)
    assert found[0] == pytest.approx(best[0], abs=1e-6)
    # Wanted steps are compared to six digits.
    assert found[1] <= best[1] + 1e-3


@settings(max_examples=60, deadline=None)
@given(problems(60, [4096, 1024, 14336, 5632, 12347], 15))
def test_the_budget_is_met_within_half_of_the_largest_step(problem: Problem) -> None:
    steps, budget = problem
    taken = nearest_steps(steps, budget)
    assert all(0 <= taken[name] <= step.most for name, step in steps.items())
    largest = max(step.unit for step in steps.values())
    assert abs(total(steps, taken) - budget) <= largest / 2 + 1e-6


@settings(max_examples=40, deadline=None)
@given(
    wanted=st.lists(st.floats(0.0, 1.0), min_size=28, max_size=28),
    share=st.floats(0.05, 0.95),
)
def test_the_shapes_of_a_decoder_meet_it_within_half_of_the_smallest_step(
    wanted: list[float], share: float
) -> None:
    # Four layers of grouped-query attention and an MLP, every Linear 2:4 or dense.
    sizes = [4096 * 4096, 1024 * 4096, 1024 * 4096, 4096 * 4096, *[14336 * 4096] * 3] * 4
    mean = sum(wanted) / 28
    scale = share / mean if mean > 1e-9 else 0.0
    steps = {
        str(i): Steps(size // 2, 1, want * scale)
        for i, (size, want) in enumerate(zip(sizes, wanted, strict=True))
    }
    budget = share * sum(step.unit for step in steps.values())
    taken = nearest_steps(steps, budget)
    assert abs(total(steps, taken) - budget) <= 1024 * 4096 / 4


def test_who_wants_more_takes_the_step() -> None:
    steps = {
        name: Steps(10, 1, want) for name, want in zip("abcd", (0.9, 0.2, 0.6, 0.3), strict=True)
    }
    assert nearest_steps(steps, 20.0) == {"a": 1, "b": 0, "c": 1, "d": 0}


def test_steps_that_nobody_wants_more_are_spread_evenly() -> None:
    steps = {str(i): Steps(10, 4, 1.5) for i in range(16)}
    taken = list(nearest_steps(steps, 240.0).values())
    assert sorted(taken) == [1] * 8 + [2] * 8
    assert all(5 <= sum(taken[start : start + 4]) <= 7 for start in range(0, 16, 4))


def test_the_last_digits_do_not_decide() -> None:
    steps = {str(i): Steps(10, 1, 0.4 + (i % 3) * 1e-9) for i in range(10)}
    same = {name: Steps(10, 1, 0.4) for name in steps}
    assert nearest_steps(steps, 40.0) == nearest_steps(same, 40.0)


def test_many_different_sizes_are_merged_and_still_near() -> None:
    steps = {str(i): Steps(10_007 + 7919 * i, 1, (i * 7 % 10) / 10) for i in range(60)}
    budget = sum(step.unit * step.wanted for step in steps.values())
    taken = nearest_steps(steps, budget)
    assert abs(total(steps, taken) - budget) <= 10_007 / 2
    # Near the continuous optimum, which takes who wants most.
    best = sorted(steps, key=lambda name: -steps[name].wanted)
    assert sum(taken[name] for name in best[:20]) >= 18


@pytest.mark.parametrize("budget, taken", [(-5.0, 0), (0.0, 0), (1000.0, 3)])
def test_a_budget_out_of_reach_gives_the_nearest_end(budget: float, taken: int) -> None:
    assert nearest_steps({"a": Steps(10, 3, 1.0)}, budget) == {"a": taken}
    assert nearest_steps({}, budget) == {}
