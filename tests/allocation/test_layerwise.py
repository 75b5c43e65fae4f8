"""OWL, DLP, ATP and the options of rules, against the papers' formulas written plainly."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamp_modifier.allocation import get_allocation
from tamp_modifier.allocation.budget import shift_to_budget
from tamp_modifier.allocation.layerwise import DLP, OWL

LINEARS = {"q": 4, "k": 2, "up": 10}


def layers_of(values: list[float]) -> tuple[dict[str, float], dict[str, int]]:
    """The same value for all Linears of a layer, and their sizes."""
    names = [(f"{i}.{name}", i, size) for i in range(len(values)) for name, size in LINEARS.items()]
    return {n: values[i] for n, i, _ in names}, {n: size for n, _, size in names}


def per_layer(found: dict[str, float]) -> list[float]:
    """The sparsity that all Linears of each layer share."""
    layers: dict[str, set[float]] = {}
    for name, value in found.items():
        layers.setdefault(name.partition(".")[0], set()).add(value)
    assert all(len(values) == 1 for values in layers.values())
    return [values.pop() for values in layers.values()]


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_owl_gives_layers_with_more_outliers_less_sparsity(sparsity: float) -> None:
    outliers = [0.01, 0.03, 0.02, 0.05]
    importance, numel = layers_of(outliers)
    found = per_layer(get_allocation("owl")(importance, numel, sparsity, 1.0))
    # Section 3 of the paper: D scaled to [0, 2 lambda], S_l = 1 - (1 - s + D_l - mean(D)).
    scaled = [(d - min(outliers)) / (max(outliers) - min(outliers)) * 0.08 * 2 for d in outliers]
    expected = [1 - (1 - sparsity + d - statistics.mean(scaled)) for d in scaled]
    assert found == pytest.approx(expected)
    assert found[3] < found[1] < found[2] < found[0]


@pytest.mark.parametrize("alpha", [0.15, 0.05])
def test_dlp_gives_layers_with_a_larger_median_more_sparsity(alpha: float) -> None:
    medians = [0.2, 0.5, 0.3, 1.4]
    importance, numel = layers_of(medians)
    found = per_layer(get_allocation("dlp", alpha=alpha)(importance, numel, 0.6, 1.0))
    relative = [1 - m / sum(medians) for m in medians]
    low, high = min(relative), max(relative)
    scaled = [(r - low) / (high - low) * 2 * alpha for r in relative]
    kept = [1 - 0.6 + r - statistics.mean(scaled) for r in scaled]
    assert found == pytest.approx([1 - k for k in kept])
    assert found[0] < found[2] < found[1] < found[3]


@pytest.mark.parametrize("layers", [2, 5, 32])
def test_atp_is_an_arithmetic_progression_over_depth(layers: int) -> None:
    importance, numel = layers_of([float(i) for i in range(layers)])
    beta = 0.4 / (layers - 1)
    found = per_layer(get_allocation("atp", beta=beta)(importance, numel, 0.7, 1.0))
    assert found == pytest.approx([0.7 - beta * (layers - 1) / 2 + beta * i for i in range(layers)])
    steepest = get_allocation("atp", beta=0.6 / (layers - 1))(importance, numel, 0.7, 1.0)
    assert per_layer(steepest)[-1] == pytest.approx(1.0)
    default = per_layer(get_allocation("atp")(importance, numel, 0.7, 1.0))
    assert default[1] - default[0] == pytest.approx(0.3 / (layers - 1))


def test_atp_refuses_a_beta_that_leaves_the_range() -> None:
    importance, numel = layers_of([0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="beta must be at most 0.3 for sparsity 0.7 and 3 layers"):
        get_allocation("atp", beta=0.31)(importance, numel, 0.7, 1.0)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(0.0, 1e3), min_size=1, max_size=8),
    sizes=st.lists(st.integers(1, 10**6), min_size=8, max_size=8),
    sparsity=st.floats(0.01, 0.99),
    rule=st.sampled_from(["owl", "dlp", "atp"]),
    data=st.data(),
)
def test_layers_of_any_size_meet_the_budget_within_the_cap(
    values: list[float], sizes: list[int], sparsity: float, rule: str, data: st.DataObject
) -> None:
    importance = {str(i): value for i, value in enumerate(values)}
    numel = {str(i): sizes[i] for i in range(len(values))}
    cap = data.draw(st.floats(sparsity, 1.0))
    found = get_allocation(rule)(importance, numel, sparsity, cap)
    assert all(0.0 <= value <= cap for value in found.values())
    pruned = math.fsum(numel[name] * found[name] for name in numel)
    assert pruned == pytest.approx(sparsity * sum(numel.values()), rel=1e-9)


def test_clipped_layers_hand_their_surplus_to_the_others() -> None:
    numel = {"a": 10, "b": 10, "c": 10}
    found = shift_to_budget({"a": 0.0, "b": 0.2, "c": 0.9}, numel, 0.5, 0.6)
    assert found == pytest.approx({"a": 0.35, "b": 0.55, "c": 0.6})
    found = shift_to_budget({"a": -1.0, "b": 0.2, "c": 0.4}, numel, 0.2, 1.0)
    assert found == pytest.approx({"a": 0.0, "b": 0.2, "c": 0.4})


def test_equal_layers_are_uniform() -> None:
    for rule in ("owl", "dlp", "atp"):
        importance, numel = layers_of([0.3, 0.3, 0.3])
        assert per_layer(get_allocation(rule)(importance, numel, 0.6, 1.0)) == pytest.approx(
            [0.6] * 3
        )


def test_linears_outside_of_the_layers_get_the_requested_sparsity() -> None:
    importance, numel = layers_of([1.0, 2.0])
    found = get_allocation("owl")(importance, {"tower.q": 7, **numel}, 0.5, 1.0)
    assert found.pop("tower.q") == 0.5
    assert per_layer(found) == pytest.approx([0.58, 0.42])


def test_owl_counts_metrics_above_five_times_their_mean() -> None:
    parts = [torch.rand(6, 5) ** 8, torch.rand(3, 5) ** 8]
    flat = torch.cat([part.flatten() for part in parts]).tolist()
    for m in (5.0, 2.0):
        mean = sum(flat) / len(flat)
        expected = sum(value > m * mean for value in flat) / len(flat)
        assert OWL(m=m).summarise(parts) == expected > 0


def test_dlp_takes_the_lower_median_of_the_whole_layer() -> None:
    parts = [torch.rand(6, 5), torch.rand(2, 5) * 3]
    flat = torch.cat([part.flatten() for part in parts]).tolist()
    assert DLP().summarise(parts) == pytest.approx(statistics.median_low(flat))


def test_das_with_exponents_lies_between_the_two_rules() -> None:
    importance, numel = {"a": 1.0, "b": 4.0, "c": 2.0}, {"a": 100, "b": 400, "c": 900}
    found = get_allocation("das", score_power=2, numel_power=0.5)(importance, numel, 0.5, 1.0)
    scores = {name: importance[name] ** 2 * numel[name] ** 0.5 for name in numel}
    assert found == pytest.approx(get_allocation("das")(scores, numel, 0.5, 1.0))
    as_das = get_allocation("das_numel", numel_power=0)(importance, numel, 0.5, 0.6)
    assert as_das == get_allocation("das")(importance, numel, 0.5, 0.6)
    equal = get_allocation("das_numel", score_power=0)(importance, numel, 0.5, 0.6)
    assert equal == pytest.approx(dict.fromkeys(numel, 0.5))


def test_default_caps() -> None:
    caps = {name: get_allocation(name).default_cap(0.5) for name in ("das", "das_numel", "owl")}
    assert caps == {"das": 0.6, "das_numel": 0.6, "owl": 1.0}
    assert get_allocation("das").default_cap(0.95) == 1.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("owl", {"beta": 1}, "allocation 'owl' has no option 'beta'; its options are m, lam"),
        ("uniform", {"alpha": 1}, "allocation 'uniform' has no option 'alpha'; it has none"),
        ("owl", {"lam": 1.0}, r"lam must be in \[0, 1\), got 1"),
        ("owl", {"m": 0}, "m must be finite and > 0, got 0"),
        ("dlp", {"alpha": math.nan}, r"alpha must be in \[0, 1\), got nan"),
        ("atp", {"beta": -0.1}, "beta must be finite and > 0, got -0.1"),
        ("atp", {"beta": 0.1, "rise": 0.1}, "give one of them"),
        ("atp", {"share": 0.5, "rise": 0.1}, "give one of them"),
        ("atp", {"rise": -1}, "rise must be finite and >= 0, got -1"),
        ("atp", {"share": 1.1}, r"share must be in \[0, 1\], got 1.1"),
        ("das", {"score_power": -1}, "score_power must be finite and >= 0, got -1"),
        ("das", {"score_power": "2"}, "option score_power of allocation 'das' must be a number"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_allocation(name, **options)


def atp_rise(sparsity: float, layers: int, **options: float) -> float:
    """By how much the last layer is sparser than the first; the mean must be the sparsity."""
    depth = {f"layer {number}": float(number) for number in range(layers)}
    numel = dict.fromkeys(depth, 100)
    values = list(get_allocation("atp", **options)(depth, numel, sparsity, 1.0).values())
    assert sum(values) / layers == pytest.approx(sparsity)
    return values[-1] - values[0]


@given(st.floats(0.1, 0.9), st.floats(0.0, 1.0), st.integers(2, 12))
def test_atp_takes_the_share_of_the_steepest_line_that_it_is_given(
    sparsity: float, share: float, layers: int
) -> None:
    widest = 2.0 * min(sparsity, 1.0 - sparsity)
    assert atp_rise(sparsity, layers, share=share) == pytest.approx(share * widest, abs=1e-6)


@given(st.floats(0.05, 0.95), st.floats(0.0, 4.0), st.integers(2, 12))
def test_atp_rises_with_what_the_sparsity_is_above_one_half(
    sparsity: float, rise: float, layers: int
) -> None:
    wanted = min(max(rise * (sparsity - 0.5), 0.0), 2.0 * min(sparsity, 1.0 - sparsity))
    assert atp_rise(sparsity, layers, rise=rise) == pytest.approx(wanted, abs=1e-6)
