"""Tokens that count more than others: the balanced selection and weighted statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamp_modifier.selection import get_selection
from tamp_modifier.statistics import Hessian, RowScalars


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_balanced_modalities_count_the_same(kinds: list[int]) -> None:
    types = torch.tensor(kinds)
    rule = get_selection("balanced")
    picked = rule.select(torch.zeros(len(kinds), 2), types, None)  # type: ignore[union-attr]
    assert picked.tolist() == list(range(len(kinds)))
    weights = rule.weights(types)  # type: ignore[union-attr]
    assert float(weights.mean()) == pytest.approx(1.0, rel=1e-5)
    sums = {kind: float(weights[types == kind].sum()) for kind in set(kinds)}
    assert list(sums.values()) == pytest.approx([len(kinds) / len(sums)] * len(sums), rel=1e-5)


def test_other_selections_weigh_all_tokens_the_same() -> None:
    types = torch.tensor([0, 1, 1, 1])
    for name in ("all", "text", "amia"):
        assert get_selection(name).weights(types) is None  # type: ignore[union-attr]


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
