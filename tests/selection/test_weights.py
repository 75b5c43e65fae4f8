"""Tokens that count more than others: the balanced selection and weighted statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamp_modifier.selection import get_selection
from tamp_modifier.statistics import Hessian, RowScalars

TYPES = st.lists(st.integers(0, 3), min_size=1, max_size=60)


@settings(deadline=None)
@given(TYPES)
def test_balanced_modalities_and_samples_count_the_same(kinds: list[int]) -> None:
    types = torch.tensor(kinds)
    rule = get_selection("balanced")
    picked = rule.select(torch.zeros(len(kinds), 2), types, None)  # type: ignore[union-attr]
    assert picked.tolist() == list(range(len(kinds)))
    weights = rule.weights(types, len(kinds))  # type: ignore[union-attr]
    sums = {kind: float(weights[types == kind].sum()) for kind in set(kinds)}
    assert list(sums.values()) == pytest.approx([1.0 / len(sums)] * len(sums), rel=1e-5)


@settings(deadline=None)
@given(TYPES, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_balanced_weights_follow_their_formula(
    kinds: list[int], modalities: float, samples: float
) -> None:
    rule = get_selection("balanced", modalities=modalities, samples=samples)
    weights = rule.weights(torch.tensor(kinds), len(kinds))  # type: ignore[union-attr]
    plain = [kinds.count(kind) ** -modalities for kind in kinds]
    expected = [value / sum(plain) * len(kinds) ** (1.0 - samples) for value in plain]
    assert weights.tolist() == pytest.approx(expected, rel=1e-4)


def test_an_expert_gets_of_a_sample_no_more_than_its_tokens() -> None:
    rule = get_selection("balanced", modalities=0.0, samples=1.0)
    weights = rule.weights(torch.tensor([0, 1]), 8)  # type: ignore[union-attr]
    assert weights.tolist() == pytest.approx([1 / 8, 1 / 8])


@pytest.mark.parametrize("name", ["modalities", "samples"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_balance_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\]"):
        get_selection("balanced", **{name: value})


def test_other_selections_weigh_all_tokens_the_same() -> None:
    types = torch.tensor([0, 1, 1, 1])
    for name in ("all", "text", "amia"):
        assert get_selection(name).weights(types, 4) is None  # type: ignore[union-attr]


def test_whole_weights_are_tokens_that_come_several_times() -> None:
    inputs = torch.randn(3, 4)
    weights = torch.tensor([2.0, 0.0, 1.0])
    repeated = torch.cat([inputs[:1], inputs[:1], inputs[2:]])
    for kind in (RowScalars, Hessian):
        plain, weighted = kind(4), kind(4)
        plain.update(repeated)
        weighted.update(inputs, weights)
        torch.testing.assert_close(weighted.result(), plain.result())


def test_few_heavy_tokens_say_less_than_as_many_equal_ones() -> None:
    inputs = torch.randn(4, 2)
    equal, heavy = Hessian(2), Hessian(2)
    equal.update(inputs)
    equal.update(inputs, torch.ones(4))
    heavy.update(inputs, torch.tensor([4.0, 0.0, 0.0, 0.0]))
    heavy.update(inputs, torch.tensor([0.0, 4.0, 0.0, 0.0]))
    assert equal.effective_tokens == equal.tokens == heavy.tokens == 8
    assert heavy.effective_tokens == 2


@pytest.mark.parametrize("kind", [RowScalars, Hessian])
def test_tokens_that_all_weigh_nothing_are_no_tokens(kind: type) -> None:
    statistics = kind(3)
    statistics.update(torch.randn(4, 3), torch.zeros(4))
    with pytest.raises(ValueError, match="all weigh nothing"):
        statistics.result()
    if kind is Hessian:
        assert statistics.effective_tokens == 0


def test_only_ratios_of_weights_matter() -> None:
    inputs, weights = torch.randn(6, 3), torch.rand(6) + 0.1
    for kind in (RowScalars, Hessian):
        found = []
        for factor in (1.0, 1e-3):
            statistics = kind(3)
            statistics.update(inputs[:4], weights[:4] * factor)
            statistics.update(inputs[4:], weights[4:] * factor)
            found.append(statistics)
        torch.testing.assert_close(found[0].result(), found[1].result())
        if kind is Hessian:
            assert found[0].effective_tokens == found[1].effective_tokens
