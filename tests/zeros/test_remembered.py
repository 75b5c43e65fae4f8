"""Masks are remembered bit by bit, beside the state of the model, and what came back is counted."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tamp_modifier.zeros import remembered as preserve


@given(st.integers(1, 9), st.integers(1, 33), st.floats(0, 1), st.integers(0, 2**31))
def test_bits_give_the_mask_back(rows: int, columns: int, share: float, seed: int) -> None:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < share
    bits = preserve.PrunedBits.of(mask)
    assert torch.equal(bits.mask(), mask)
    assert bits.bits.numel() == -(-mask.numel() // 8)
    for index, pruned in enumerate(mask.flatten().tolist()):
        assert bool(bits.bits[index // 8] >> (index % 8) & 1) == pruned


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("turned", [False, True])
def test_what_is_pruned_is_cleared_and_nothing_else(dtype: torch.dtype, turned: bool) -> None:
    pruned = torch.rand(7, 13) < 0.5
    values = torch.randn(13, 7).T if turned else torch.randn(7, 13)
    values[pruned] = torch.tensor([float("nan"), float("inf"), -1.0]).repeat(31)[: pruned.sum()]
    values = values.to(dtype)
    bits = preserve.PrunedBits.of(pruned)
    cleared = bits.cleared(values)
    assert cleared.dtype == dtype and torch.equal(cleared[~pruned], values[~pruned])
    assert bool((cleared[pruned] == 0).all()) and not cleared[pruned].signbit().any()
    bits.clear(values)
    assert torch.equal(values, cleared)


def linear(share: float = 0.5) -> nn.Linear:
    module = nn.Linear(24, 10, bias=False)
    with torch.no_grad():
        module.weight[torch.rand(10, 24) < share] = 0
    return module


def test_only_remembered_zeros_that_changed_count() -> None:
    module = linear()
    pruned = module.weight == 0
    preserve.remember(module, module.weight)
    weight = module.weight.detach().clone()
    weight[~pruned] = 0  # more zeros are no loss
    assert preserve.came_back(module, weight) == 0
    some = pruned.nonzero()[:3]
    weight[some[0, 0], some[0, 1]] = float("nan")
    weight[some[1, 0], some[1, 1]] = 1e-30
    weight[some[2, 0], some[2, 1]] = -0.0
    assert preserve.came_back(module, weight) == 2


def test_nothing_is_lost_where_nothing_is_remembered() -> None:
    assert preserve.came_back(linear(), torch.ones(10, 24)) == 0


def test_another_shape_is_refused() -> None:
    module = linear()
    preserve.remember(module, module.weight)
    with pytest.raises(ValueError, match=r"\[10, 23\].*\[10, 24\]"):
        preserve.came_back(module, module.weight[:, 1:])


def test_masks_are_no_state_and_go_with_a_copy() -> None:
    model = nn.Sequential(linear(), linear())
    keys = list(model.state_dict())
    preserve.remember(model[0], model[0].weight)
    assert list(model.state_dict()) == keys
    assert list(preserve.remembered(copy.deepcopy(model))) == ["0"]
    preserve.set_pruned_bits(model[0], None)
    assert preserve.remembered(model) == {}
