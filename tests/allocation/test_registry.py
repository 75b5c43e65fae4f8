"""Allocation: the budget, the cap, and what each rule follows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamp_modifier.allocation import (
    ALLOCATIONS,
    allocate_sparsity,
    explicit_allocation,
    get_allocation,
    round_to_budget,
)
from tamp_modifier.masks import pruned_columns, wanda_mask

Case = tuple[dict[str, float], dict[str, int], float, float]


@st.composite
def cases(draw: st.DrawFn, least_score: float = 0.0) -> Case:
    names = [f"linear{i}" for i in range(draw(st.integers(1, 12)))]
    scores = st.floats(least_score, 1e6, allow_subnormal=False)
    importance = {name: draw(scores) for name in names}
    numel = {name: draw(st.integers(1, 10**8)) for name in names}
    sparsity = draw(st.floats(0.01, 0.99))
    return importance, numel, sparsity, draw(st.floats(sparsity, 1.0))


def slow_loop(
    importance: dict[str, float], numel: dict[str, int], sparsity: float, cap: float
) -> dict[str, float]:
    """The loop of the method: hand out what is missing by score, clamp, again."""
    keep = {name: count * (1 - cap) for name, count in numel.items()}
    wanted = (1 - sparsity) * sum(numel.values())
    for _ in range(10_000):
        missing = wanted - sum(keep.values())
        score = {name: importance[name] * (keep[name] < numel[name]) for name in numel}
        if missing < 1e-9 * wanted or sum(score.values()) == 0:
            break
        for name in numel:
            share = score[name] / sum(score.values()) * missing
            keep[name] = min(keep[name] + share, numel[name])
    return {name: 1 - keep[name] / numel[name] for name in numel}


@pytest.mark.parametrize("rule", list(ALLOCATIONS))
@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_budget_is_met_within_the_cap(rule: str, case: Case) -> None:
    importance, numel, sparsity, cap = case
    found = get_allocation(rule)(importance, numel, sparsity, cap)
    assert list(found) == list(numel)
    assert all(0.0 <= value <= cap for value in found.values())
    pruned = math.fsum(numel[name] * value for name, value in found.items())
    assert pruned == pytest.approx(sparsity * sum(numel.values()), rel=1e-9, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(cases(least_score=1e-3))
def test_das_ends_where_the_loop_ends(case: Case) -> None:
    assert allocate_sparsity(*case) == pytest.approx(slow_loop(*case), abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(cases(least_score=1e-3))
def test_das_keeps_more_weights_above_the_minimum_where_the_score_is_higher(case: Case) -> None:
    importance, numel, _, cap = case
    found = allocate_sparsity(*case)
    above = {name: numel[name] * (cap - value) for name, value in found.items()}
    slack = 1e-9 * sum(numel.values())
    for a in numel:
        for b in numel:
            if importance[a] >= importance[b] and found[a] > 0:
                assert above[a] >= above[b] - slack


@settings(max_examples=100, deadline=None)
@given(cases())
def test_das_numel_keeps_a_larger_share_where_the_score_is_higher(case: Case) -> None:
    importance, numel, _, _ = case
    found = get_allocation("das_numel")(*case)
    for a in numel:
        for b in numel:
            if importance[a] >= importance[b]:
                assert found[a] <= found[b] + 1e-6


@settings(max_examples=50, deadline=None)
@given(cases(), st.floats(1e-3, 1e3))
def test_order_and_unit_of_the_scores_do_not_matter(case: Case, unit: float) -> None:
    importance, numel, sparsity, cap = case
    found = allocate_sparsity(importance, numel, sparsity, cap)
    again = allocate_sparsity(
        {name: unit * score for name, score in reversed(importance.items())},
        dict(reversed(numel.items())),
        sparsity,
        cap,
    )
    assert again == pytest.approx(found, abs=1e-6)
    assert allocate_sparsity(importance, numel, sparsity, cap) == found


def test_uniform_gives_every_linear_the_same_and_needs_no_importance() -> None:
    rule = get_allocation("uniform")
    assert rule.measure == "nothing"
    found = rule({}, {"a": 10, "b": 1000}, 0.6, 0.7)
    assert found == pytest.approx({"a": 0.6, "b": 0.6})


@pytest.mark.parametrize(
    "sparsity, kv, qo, mlp", [(0.5, 0.0, 0.400, 0.543), (0.6, 0.0, 0.51, 0.646)]
)
def test_das_leaves_small_linears_dense_on_llama_3_8b(
    sparsity: float, kv: float, qo: float, mlp: float
) -> None:
    shapes = {"q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096)}
    shapes |= {"gate": (14336, 4096), "up": (14336, 4096), "down": (4096, 14336)}
    numel = {name: rows * columns for name, (rows, columns) in shapes.items()}
    found = allocate_sparsity(dict.fromkeys(numel, 1.0), numel, sparsity, sparsity + 0.1)
    expected = {"q": qo, "k": kv, "v": kv, "o": qo, "gate": mlp, "up": mlp, "down": mlp}
    assert found == pytest.approx(expected, abs=5e-3)
    by_share = get_allocation("das_numel")(
        dict.fromkeys(numel, 1.0), numel, sparsity, sparsity + 0.1
    )
    assert by_share == pytest.approx(dict.fromkeys(numel, sparsity))


def test_cap_equal_to_sparsity_is_uniform() -> None:
    found = allocate_sparsity({"a": 1.0, "b": 9.0}, {"a": 10, "b": 20}, 0.5, 0.5)
    assert found == pytest.approx({"a": 0.5, "b": 0.5})


def test_scores_that_are_all_zero_give_uniform_sparsity() -> None:
    for rule in ALLOCATIONS.values():
        found = rule({"a": 0.0, "b": 0.0}, {"a": 10, "b": 90}, 0.5, 0.6)
        assert found == pytest.approx({"a": 0.5, "b": 0.5})


def test_score_zero_gets_what_the_others_cannot_take() -> None:
    numel = {"a": 100, "b": 100, "c": 200}
    found = allocate_sparsity({"a": 1.0, "b": 0.0, "c": 0.0}, numel, 0.5, 1.0)
    assert found == pytest.approx({"a": 0.0, "b": 2 / 3, "c": 2 / 3})


def test_scores_of_any_size_stay_in_range() -> None:
    numel = {"a": 100, "b": 100, "c": 100}
    found = allocate_sparsity({"a": 1e308, "b": 1e308, "c": 1e-308}, numel, 0.5, 0.9)
    assert sum(found.values()) == pytest.approx(1.5)
    assert found["a"] == pytest.approx(found["b"])


def test_scores_next_to_nothing_count_as_zero() -> None:
    importance = {"a": 0.0, "b": 2.2e-308, "c": 94.0, "d": 5e-307}
    found = get_allocation("das_numel")(importance, {"a": 1, "b": 6, "c": 1, "d": 1}, 0.5, 1.0)
    assert found == pytest.approx({"a": 0.5625, "b": 0.5625, "c": 0.0, "d": 0.5625})


def test_many_linears_take_no_time() -> None:
    # A mixture of experts: 60 layers x 128 experts x 3. The time is linear but for a sort.
    names = [f"linear{i}" for i in range(23_040)]
    importance = {name: 1.0 + (i * 7919 % 1000) for i, name in enumerate(names)}
    numel = {name: 1 + i % 97 for i, name in enumerate(names)}
    found = allocate_sparsity(importance, numel, 0.5, 0.6)
    pruned = math.fsum(numel[name] * found[name] for name in names)
    assert pruned == pytest.approx(0.5 * sum(numel.values()))


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_importance_out_of_range_is_refused_with_the_name(bad: float) -> None:
    with pytest.raises(ValueError, match="importance of layers.1.q_proj must be finite"):
        allocate_sparsity(
            {"a": 1.0, "layers.1.q_proj": bad}, {"a": 4, "layers.1.q_proj": 4}, 0.5, 0.6
        )


def test_missing_importance_is_refused_with_the_names() -> None:
    with pytest.raises(ValueError, match="importance is missing for b, c"):
        allocate_sparsity({"a": 1.0}, {"a": 4, "b": 4, "c": 4}, 0.5, 0.6)


@pytest.mark.parametrize("sparsity, cap", [(0.0, 0.5), (1.0, 1.0), (math.nan, 1.0), (-0.5, 0.5)])
def test_sparsity_out_of_range_is_refused(sparsity: float, cap: float) -> None:
    with pytest.raises(ValueError, match="sparsity must be between 0 and 1"):
        allocate_sparsity({"a": 1.0}, {"a": 4}, sparsity, cap)


@pytest.mark.parametrize("cap", [0.49, 1.01, math.nan])
def test_cap_out_of_range_is_refused(cap: float) -> None:
    with pytest.raises(ValueError, match=r"max_sparsity must be in \[0.5, 1\]"):
        allocate_sparsity({"a": 1.0}, {"a": 4}, 0.5, cap)


def test_nothing_to_prune_is_refused() -> None:
    with pytest.raises(ValueError, match="no Linear"):
        allocate_sparsity({}, {}, 0.5, 0.6)
    with pytest.raises(ValueError, match="numel of a must be positive"):
        allocate_sparsity({"a": 1.0}, {"a": 0}, 0.5, 0.6)


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="das, das_numel, uniform, owl, dlp, atp, got 'owls'"):
        get_allocation("owls")


def test_explicit_allocation_is_returned_in_the_order_of_the_linears() -> None:
    found = explicit_allocation({"b": 0, "a": 0.75}, {"a": 4, "b": 4})
    assert list(found.items()) == [("a", 0.75), ("b", 0.0)]


def test_explicit_allocation_is_checked() -> None:
    with pytest.raises(ValueError, match="no sparsity for b"):
        explicit_allocation({"a": 0.5}, {"a": 4, "b": 4})
    with pytest.raises(ValueError, match="not targets: c, d, e, f, g and 1 more"):
        explicit_allocation(dict.fromkeys("acdefgh", 0.5), {"a": 4})
    for bad in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"allocation\['a'\] must be in \[0, 1\)"):
            explicit_allocation({"a": bad}, {"a": 4})


@st.composite
def rounding_cases(draw: st.DrawFn) -> tuple[dict[str, float], dict[str, tuple[int, int]]]:
    names = [f"linear{i}" for i in range(draw(st.integers(1, 10)))]
    shapes = {n: (draw(st.integers(1, 3000)), draw(st.integers(1, 300))) for n in names}
    return {n: draw(st.floats(0.0, 1.0)) for n in names}, shapes


@settings(max_examples=150, deadline=None)
@given(rounding_cases())
def test_rounding_keeps_the_total_within_one_weight_a_row(
    case: tuple[dict[str, float], dict[str, tuple[int, int]]],
) -> None:
    sparsities, shapes = case
    found = round_to_budget(sparsities, shapes)
    wanted = math.fsum(shapes[n][0] * shapes[n][1] * s for n, s in sparsities.items())
    pruned = nearest = 0
    for name, (rows, columns) in shapes.items():
        count = round(found[name] * columns)
        assert found[name] == count / columns
        assert 0 <= count <= columns
        assert abs(count - sparsities[name] * columns) < 1.0
        pruned += rows * count
        nearest += rows * pruned_columns(columns, sparsities[name])
    assert abs(pruned - wanted) <= sum(rows for rows, _ in shapes.values())
    assert abs(pruned - wanted) <= abs(nearest - wanted) + 1e-6


def test_rounding_evens_out_over_equal_linears() -> None:
    # 100 Linears that want 2.4 of 8 columns: rounding each alone would lose 40 columns.
    names = [f"linear{i}" for i in range(100)]
    found = round_to_budget(dict.fromkeys(names, 0.3), dict.fromkeys(names, (16, 8)))
    assert sum(found.values()) * 8 == pytest.approx(240)
    assert set(found.values()) == {2 / 8, 3 / 8}


@pytest.mark.parametrize("noise", [1e-12, 1e-7])
@pytest.mark.parametrize("sparsity", [0.23, 0.27, 0.3])
def test_rounding_does_not_hang_on_the_last_bits(sparsity: float, noise: float) -> None:
    names = [f"linear{i}" for i in range(9)]
    shapes = dict.fromkeys(names, (16, 10))
    clean = round_to_budget(dict.fromkeys(names, sparsity), shapes)
    for sign in (1, -1):
        noisy = {name: sparsity + sign * noise * (-1) ** i for i, name in enumerate(names)}
        assert round_to_budget(noisy, shapes) == clean


def test_masks_reach_the_rounded_sparsity_exactly() -> None:
    shapes = {"a": (64, 48), "b": (16, 48), "c": (96, 100)}
    numel = {name: rows * columns for name, (rows, columns) in shapes.items()}
    sparsities = allocate_sparsity({"a": 1.3, "b": 0.9, "c": 1.7}, numel, 0.61, 0.71)
    found = round_to_budget(sparsities, shapes)
    pruned = 0
    for name, shape in shapes.items():
        mask = wanda_mask(torch.randn(shape), torch.rand(shape[1]), found[name])
        pruned += int((~mask).sum())
        assert int((~mask).sum()) == round(found[name] * numel[name])
    assert abs(pruned - 0.61 * sum(numel.values())) <= 96
