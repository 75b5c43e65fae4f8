"""Masks: exact counts, ties, N:M, and the meaning that llm-compressor gives them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llmcompressor.modifiers.pruning.wanda.wanda_sparsify import sparsify_weight
from torch import Tensor

from tamp_modifier.masks import (
    apply_mask,
    has_structure,
    magnitude_mask,
    parse_mask_structure,
    pruned_columns,
    verify_sparsity,
    wanda_mask,
    weight_sparsity,
)


def slow_mask(metric: Tensor, pruned: int, group: int) -> Tensor:
    """Sort every group of every row by (value, position) and prune the first."""
    keep = torch.ones_like(metric, dtype=torch.bool)
    for row in range(metric.shape[0]):
        values = metric[row].tolist()
        for start in range(0, len(values), group):
            columns = range(start, start + group)
            for column in sorted(columns, key=lambda c: (values[c], c))[:pruned]:
                keep[row, column] = False
    return keep


def weights(rows: int, columns: int, seed: int, levels: int = 0) -> tuple[Tensor, Tensor]:
    """Random weights and row scalars; with levels > 0 integers, so that there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    if levels:
        weight = torch.randint(-levels, levels + 1, (rows, columns), generator=generator).float()
        return weight, torch.randint(0, 3, (columns,), generator=generator).float().square()
    return (
        torch.randn(rows, columns, generator=generator),
        torch.rand(columns, generator=generator),
    )


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 50),
    sparsity=st.floats(0.0, 1.0),
    levels=st.sampled_from([0, 1, 3]),
    seed=st.integers(0, 10_000),
)
def test_unstructured_prunes_the_smallest_of_each_row(
    rows: int, columns: int, sparsity: float, levels: int, seed: int
) -> None:
    weight, scalars = weights(rows, columns, seed, levels)
    mask = wanda_mask(weight, scalars, sparsity)
    metric = weight.abs() * scalars.sqrt()
    assert torch.equal(mask, slow_mask(metric, pruned_columns(columns, sparsity), columns))
    assert (((~mask).sum(1) - columns * sparsity).abs() <= 0.5 + 1e-6).all()


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 6),
    groups=st.integers(1, 6),
    structure=st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (5, 7), (8, 16), (16, 32)]),
    levels=st.sampled_from([0, 1, 3]),
    seed=st.integers(0, 10_000),
)
def test_structured_prunes_n_of_every_m(
    rows: int, groups: int, structure: tuple[int, int], levels: int, seed: int
) -> None:
    n, m = structure
    weight, scalars = weights(rows, groups * m, seed, levels)
    mask = wanda_mask(weight, scalars, 0.5, f"{n}:{m}")
    assert torch.equal(mask, slow_mask(weight.abs() * scalars.sqrt(), n, m))
    assert ((~mask).view(-1, m).sum(1) == n).all()


@settings(max_examples=50, deadline=None)
@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(0, 10_000))
def test_higher_sparsity_prunes_a_superset(low: float, high: float, seed: int) -> None:
    weight, scalars = weights(4, 40, seed, levels=2)
    low, high = min(low, high), max(low, high)
    kept_at_high = wanda_mask(weight, scalars, high)
    assert (wanda_mask(weight, scalars, low) | ~kept_at_high).all()


@pytest.mark.parametrize("structure", ["0:0", "2:4", "1:4", "3:4", "8:32"])
def test_means_what_it_means_in_llm_compressor(structure: str) -> None:
    weight, scalars = weights(24, 64, seed=1)
    module = torch.nn.Linear(64, 24, bias=False)
    module.weight.data = weight.clone()
    n, m = parse_mask_structure(structure)
    theirs = sparsify_weight(module, {module: scalars.clone()}, 0.5, n, m)
    apply_mask(weight, wanda_mask(weight, scalars, 0.5, structure))
    assert torch.equal(weight, theirs)


@pytest.mark.parametrize(
    "columns, sparsity, pruned",
    [(100, 0.29, 29), (100, 0.285, 29), (7, 0.5, 4), (3, 0.1, 0), (3, 0.99, 3), (64, 0.5, 32)],
)
def test_rounds_to_the_nearest_column(columns: int, sparsity: float, pruned: int) -> None:
    # In fp64 0.29 * 100 is 28.999999999999996 and 0.285 * 100 is 28.499999999999996.
    assert pruned_columns(columns, sparsity) == pruned


@pytest.mark.parametrize("columns", [1, 3, 48, 97, 1000, 4096, 14336])
def test_a_share_of_columns_gives_the_same_columns_back(columns: int) -> None:
    assert all(pruned_columns(columns, k / columns) == k for k in range(columns + 1))


def test_equal_rows_keep_exact_counts() -> None:
    ones = torch.ones(3, 10)
    mask = wanda_mask(ones, torch.ones(10), 0.3)
    assert mask.tolist() == [[False] * 3 + [True] * 7] * 3
    zeros = wanda_mask(torch.zeros(3, 8), torch.zeros(8), 0.5, "2:4")
    assert zeros.tolist() == [[False, False, True, True] * 2] * 3


def test_ties_in_few_rows_leave_the_others_alone() -> None:
    weight, scalars = weights(20, 64, seed=2)
    weight[4] = 0.0
    weight[11, ::2] = 1.0
    metric = weight.abs() * scalars.sqrt()
    assert torch.equal(wanda_mask(weight, scalars, 0.5), slow_mask(metric, 32, 64))


def test_activations_decide_between_equal_weights() -> None:
    mask = wanda_mask(torch.ones(2, 4), torch.tensor([4.0, 1.0, 9.0, 2.0]), 0.5)
    assert mask.tolist() == [[True, False, True, False]] * 2
    assert magnitude_mask(torch.tensor([[3.0, -5.0, 1.0, -2.0]]), 0.5).tolist() == [
        [True, True, False, False]
    ]


def test_extremes() -> None:
    weight, scalars = weights(5, 9, seed=3)
    assert wanda_mask(weight, scalars, 0.0).all()
    assert not wanda_mask(weight, scalars, 1.0).any()
    assert wanda_mask(torch.ones(0, 4), torch.ones(4), 0.5).shape == (0, 4)


def test_half_precision_weights_are_compared_in_fp32() -> None:
    weight, scalars = weights(16, 128, seed=4)
    weight = weight.bfloat16()
    assert torch.equal(wanda_mask(weight, scalars, 0.5), wanda_mask(weight.float(), scalars, 0.5))
    # In bf16 the second product would be rounded to the first.
    close = torch.tensor([1.0, 1.001]).square()
    assert wanda_mask(torch.ones(1, 2).bfloat16(), close.flip(0), 0.5).tolist() == [[True, False]]


def test_weight_need_not_be_contiguous() -> None:
    weight, scalars = weights(32, 16, seed=5)
    transposed = weight.T.contiguous().T
    for structure in ("0:0", "2:4", "8:16"):
        assert torch.equal(
            wanda_mask(transposed, scalars, 0.5, structure),
            wanda_mask(weight, scalars, 0.5, structure),
        )
    apply_mask(transposed, wanda_mask(transposed, scalars, 0.5, "2:4"))
    assert has_structure(transposed, "2:4")


@pytest.mark.parametrize("structure", ["0:0", "2:4"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["weight", "row_scalars"])
def test_values_that_are_not_finite_are_refused(where: str, bad: float, structure: str) -> None:
    weight, scalars = weights(4, 8, seed=6)
    (weight[1] if where == "weight" else scalars)[3] = bad
    with pytest.raises(ValueError, match="not finite"):
        wanda_mask(weight, scalars, 0.5, structure)


def test_negative_row_scalars_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        wanda_mask(torch.ones(2, 2), torch.tensor([1.0, -1.0]), 0.5)


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, math.nan])
def test_sparsity_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\]"):
        wanda_mask(torch.ones(2, 4), torch.ones(4), sparsity)


def test_shapes_that_do_not_agree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"row_scalars \[in\], got \(2, 4\) and \(2,\)"):
        wanda_mask(torch.ones(2, 4), torch.ones(2), 0.5)
    with pytest.raises(ValueError, match="columns divisible by 4, got 6"):
        wanda_mask(torch.ones(2, 6), torch.ones(6), 0.5, "2:4")


@pytest.mark.parametrize("text, pair", [("0:0", (0, 0)), ("2:4", (2, 4)), (" 4 : 8 ", (4, 8))])
def test_mask_structure_is_read(text: str, pair: tuple[int, int]) -> None:
    assert parse_mask_structure(text) == pair


@pytest.mark.parametrize(
    "text", ["", "2", "2-4", "4:2", "4:4", "0:4", "-2:4", "2:4:8", "a:b", "02:4"]
)
def test_other_mask_structures_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="mask_structure must be '0:0'.*got"):
        parse_mask_structure(text)


def test_apply_mask_changes_only_what_is_pruned() -> None:
    parameter = torch.nn.Parameter(torch.tensor([[1.5, -2.5], [math.nan, -0.5]]))
    apply_mask(parameter, torch.tensor([[True, False], [False, True]]))
    assert parameter.tolist() == [[1.5, 0.0], [0.0, -0.5]]
    assert not torch.signbit(parameter[0, 1])


def test_weight_sparsity_counts_zeros() -> None:
    assert weight_sparsity(torch.tensor([[0.0, 1.0], [-0.0, 2.0]])) == 0.5
    assert weight_sparsity(torch.ones(3, 3)) == 0.0


def test_has_structure_looks_at_every_group() -> None:
    weight = torch.tensor([[0.0, 0.0, 1.0, 2.0], [3.0, 0.0, 0.0, 0.0]])
    assert has_structure(weight, "2:4")
    assert not has_structure(weight, "3:4")
    assert not has_structure(weight, "1:3")
    assert not has_structure(torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]]), "2:4")
    assert has_structure(torch.ones(2, 3), "0:0")


def test_verify_returns_what_was_reached() -> None:
    pruned = {}
    for seed, name in enumerate(("a", "b")):
        weight, scalars = weights(8, 20, seed)
        apply_mask(weight, wanda_mask(weight, scalars, 0.25 + seed / 2))
        pruned[name] = weight
    assert verify_sparsity(pruned, {"a": 0.25, "b": 0.75}) == {"a": 0.25, "b": 0.75}


def test_verify_names_the_linears_that_fall_short() -> None:
    weight, scalars = weights(8, 20, seed=7)
    apply_mask(weight, wanda_mask(weight, scalars, 0.5))
    regrown = weight.clone()
    row, column = (int(i) for i in (regrown == 0).nonzero()[0])
    regrown[row, column] = 1e-3
    with pytest.raises(ValueError, match="do not have their sparsity: bad$"):
        verify_sparsity({"good": weight, "bad": regrown}, {"good": 0.5, "bad": 0.5})
    with pytest.raises(ValueError, match="do not have 2:4: bad$"):
        verify_sparsity({"good": torch.zeros(2, 4), "bad": torch.ones(2, 4)}, {}, "2:4")
    with pytest.raises(ValueError, match="no sparsity was given for these Linears: good"):
        verify_sparsity({"good": weight}, {})


def test_rows_may_differ_where_only_the_whole_linear_counts() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]])
    assert verify_sparsity({"a": weight}, {"a": 0.5}, by_row=False) == {"a": 0.5}
    with pytest.raises(ValueError, match="do not have their sparsity: a"):
        verify_sparsity({"a": weight}, {"a": 0.5})
    weight[0, 0] = 1.0
    with pytest.raises(ValueError, match="do not have their sparsity: a"):
        verify_sparsity({"a": weight}, {"a": 0.5}, by_row=False)
