"""The sequential solver: equal to a slow formula, exact counts, orders, rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight
from torch import Tensor

from tamp_modifier.masks import has_structure, parse_mask_structure, pruned_columns
from tamp_modifier.scores.damping import damp
from tamp_modifier.scores.solver import (
    BLOCK,
    Factor,
    activation_order,
    factorize,
    loss_order,
    solve,
)


def problem(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [rows, columns], and the damped Hessian of inputs that go together."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    mixing *= torch.logspace(0, -2, columns)[torch.randperm(columns, generator=generator), None]
    inputs = torch.randn(3 * columns, columns, generator=generator) @ mixing
    weight = torch.randn(rows, columns, generator=generator)
    return weight, damp(inputs.T @ inputs / len(inputs), len(inputs), 0.05)


def slow_solve(
    weight: Tensor,
    hessian: Tensor,
    sparsity: float,
    structure: str = "0:0",
    per_row: float = 0.0,
    quantize: Callable[[Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Optimal brain surgery in fp64, with the inverse Hessian of the columns that are left."""
    work, hessian = weight.double().clone(), hessian.double()
    rows, columns = weight.shape
    n, m = parse_mask_structure(structure)
    size, each = BLOCK // max(m, 1) * max(m, 1), pruned_columns(columns, sparsity)
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    cost = torch.stack([1.0 / inverse[0, 0] for inverse in inverses])
    keep = torch.ones(rows, columns, dtype=torch.bool)
    for j in range(columns):
        part = slice(j, j + m) if m else slice(j, min(j + size, columns))
        if j % (m or size) == 0:  # the choice, from weights as they are now
            metric = work[:, part].square() * cost[part]
            own = each * part.stop // columns - each * part.start // columns
            if m or per_row == 1:
                count = n if m else own
                keep[:, part].scatter_(1, metric.argsort(dim=1)[:, :count], False)
            else:
                total = rows * each
                count = total * part.stop // columns - total * part.start // columns
                if own:
                    metric = metric / metric.sort(dim=1).values[:, own - 1 : own] ** per_row
                some = torch.ones(metric.numel(), dtype=torch.bool)
                some[metric.flatten().argsort()[:count]] = False
                keep[:, part] = some.view_as(metric)
        wanted = work[:, j] if quantize is None else quantize(work[:, j].float(), j).double()
        error = work[:, j] - wanted * keep[:, j]
        work[:, j + 1 :] -= error[:, None] * inverses[j][0, 1:] / inverses[j][0, 0]
        work[:, j] -= error
    return work


def error(result: Tensor, weight: Tensor, hessian: Tensor) -> float:
    difference = (result - weight).double()
    return float(((difference @ hessian.double()) * difference).sum())


@pytest.mark.parametrize("columns", [24, 312])
@pytest.mark.parametrize(
    ("structure", "per_row"),
    [("0:0", 0), ("0:0", 0.5), ("0:0", 0.9), ("0:0", 1), ("2:4", 0), ("4:8", 0.5), ("5:12", 1)],
)
def test_it_is_the_slow_formula(structure: str, per_row: float, columns: int) -> None:
    weight, hessian = problem(20, columns)
    found = solve(weight, factorize(hessian), 0.5, structure, per_row=per_row)
    wanted = slow_solve(weight, hessian, 0.5, structure, per_row)
    assert torch.equal(found == 0, wanted == 0)
    torch.testing.assert_close(found, wanted.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("structure", ["2:4", "4:8"])
def test_masks_of_groups_are_those_of_upstream(structure: str) -> None:
    weight, hessian = problem(48, 320)
    linear = torch.nn.Linear(320, 48, bias=False)
    linear.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    n, m = parse_mask_structure(structure)
    _, theirs = sparsify_weight(linear, {linear: hessian.clone()}, 0.5, n, m, 128, 0.0, False)
    ours = solve(weight, factorize(hessian), 0.5, structure)
    assert torch.equal(ours == 0, theirs == 0)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 30),
    columns=st.sampled_from([1, 8, 100, 128, 130, 300]),
    sparsity=st.floats(0.0, 1.0),
    per_row=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_counts_are_exact_and_blocks_share_them(
    rows: int, columns: int, sparsity: float, per_row: float, dtype: torch.dtype
) -> None:
    weight, hessian = problem(rows, columns)
    weight = weight.to(dtype)
    before = weight.clone()
    zeros = solve(weight, factorize(hessian), sparsity, per_row=per_row) == 0
    each = pruned_columns(columns, sparsity)
    assert int(zeros.sum()) == rows * each
    assert per_row < 1 or zeros.sum(1).tolist() == [each] * rows
    for start in range(0, columns, BLOCK):
        block = zeros[:, start : start + BLOCK]
        share = rows * each * block.shape[1] / columns
        assert abs(int(block.sum()) - share) <= (rows if per_row == 1 else 1)
    assert torch.equal(weight, before)


def test_features_that_were_never_active_go_first() -> None:
    weight, hessian = problem(10, 32)
    hessian[5], hessian[:, 5] = 0.0, 0.0
    found = solve(weight, factorize(damp(hessian, 1000, 0.05)), 0.1, per_row=1)
    assert bool((found[:, 5] == 0).all())


def test_a_row_that_is_small_loses_less_the_more_rows_count() -> None:
    weight, hessian = problem(20, 200)
    weight[:10] /= 10.0
    zeros = [
        int((solve(weight, factorize(hessian), 0.5, per_row=power)[:10] == 0).sum())
        for power in (0.0, 0.4, 0.8, 1.0)
    ]
    assert zeros == sorted(zeros, reverse=True) and zeros[0] > zeros[1] > zeros[2]
    assert zeros[-1] == 10 * 100


def test_a_row_of_zeros_does_not_keep_others() -> None:
    weight, hessian = problem(8, 100)
    weight[3] = 0.0
    found = solve(weight, factorize(hessian), 0.5, per_row=0.5)
    assert bool(torch.isfinite(found).all()) and int((found == 0).sum()) == 8 * 50
    assert bool((found[3] == 0).all())


@pytest.mark.parametrize("per_row", [0, 0.5, 1])
def test_of_equal_weights_the_first_go(per_row: float) -> None:
    found = solve(torch.ones(3, 8), factorize(torch.eye(8)), 0.5, per_row=per_row)
    assert found.tolist() == [[0.0] * 4 + [1.0] * 4] * 3


def test_one_factor_serves_all_weights_that_read_the_same_inputs() -> None:
    weight, hessian = problem(24, 200)
    factor = factorize(hessian)
    together = solve(weight, factor, 0.5, per_row=1)
    apart = torch.cat([solve(part, factor, 0.5, per_row=1) for part in weight.split(10)])
    assert torch.equal(together == 0, apart == 0)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("structure", ["0:0", "2:4", "3:6"])
def test_columns_are_pruned_in_the_order_that_is_given(structure: str) -> None:
    weight, hessian = problem(16, 300)
    for order in (
        loss_order(weight, hessian, 0.5, structure),
        activation_order(hessian, parse_mask_structure(structure)[1]),
    ):
        assert not torch.equal(order, torch.arange(300))
        found = solve(weight, factorize(hessian, order), 0.5, structure, per_row=1)
        wanted = slow_solve(weight[:, order], hessian[order][:, order], 0.5, structure, 1)
        assert torch.equal((found == 0)[:, order], wanted == 0)
        torch.testing.assert_close(found[:, order], wanted.float(), rtol=1e-3, atol=1e-3)
        assert has_structure(found, structure)


def test_columns_that_cost_most_come_first() -> None:
    weight, hessian = torch.ones(4, 2 * BLOCK + 8), torch.eye(2 * BLOCK + 8)
    hessian.diagonal()[BLOCK + 3] = 5.0
    order = activation_order(hessian).tolist()
    assert order[0] == BLOCK + 3 and order[1:4] == [0, 1, 2]
    weight[:, :BLOCK], weight[:, BLOCK : 2 * BLOCK] = 0.1, 0.2
    order = loss_order(weight, hessian, 2 * BLOCK / (2 * BLOCK + 8)).tolist()
    assert order[:BLOCK] == [BLOCK + 3, *(j for j in range(BLOCK, 2 * BLOCK) if j != BLOCK + 3)]
    # A block that is not full stays last, whatever it costs.
    assert order[BLOCK:] == [*range(BLOCK), *range(2 * BLOCK, 2 * BLOCK + 8)]


def on_a_grid(values: Tensor, column: int) -> Tensor:
    """Quarters, in odd columns halves."""
    step = 0.5 if column % 2 else 0.25
    return (values / step).round() * step


@pytest.mark.parametrize(("structure", "per_row"), [("0:0", 0), ("0:0", 1), ("2:4", 0)])
def test_rounding_is_made_up_for_as_pruning_is(structure: str, per_row: float) -> None:
    weight, hessian = problem(20, 144)
    factor = factorize(hessian)
    found = solve(weight, factor, 0.5, structure, per_row=per_row, quantize=on_a_grid)
    wanted = slow_solve(weight, hessian, 0.5, structure, per_row, on_a_grid)
    # A value on the edge between two steps of the grid may fall to either side.
    assert float((found != wanted).double().mean()) < 0.01
    assert error(found, weight, hessian) == pytest.approx(error(wanted, weight, hessian), rel=0.02)
    plain = solve(weight, factor, 0.5, structure, per_row=per_row)
    after = torch.stack([on_a_grid(plain[:, j], j) for j in range(144)], 1)
    assert torch.equal(torch.stack([on_a_grid(found[:, j], j) for j in range(144)], 1), found)
    assert error(found, weight, hessian) < 0.95 * error(after, weight, hessian)


def test_rounding_knows_columns_by_their_place_in_the_weight() -> None:
    weight, hessian = problem(4, 16)
    order, seen = torch.randperm(16, generator=torch.Generator().manual_seed(0)), []

    def remember(values: Tensor, column: int) -> Tensor:
        seen.append(column)
        return values

    found = solve(weight, factorize(hessian, order), 0.5, per_row=1, quantize=remember)
    assert seen == order.tolist()
    assert torch.equal(found, solve(weight, factorize(hessian, order), 0.5, per_row=1))


def test_what_cannot_be_is_refused() -> None:
    weight, hessian = torch.ones(2, 6), torch.eye(6)
    factor = factorize(hessian)
    with pytest.raises(ValueError, match=r"weight must be \[out, 6\] as its Hessian, got \(2, 5\)"):
        solve(weight[:, :5], factor, 0.5)
    with pytest.raises(ValueError, match=r"per_row must be in \[0, 1\], got 2"):
        solve(weight, factor, 0.5, per_row=2)
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\], got 1.5"):
        solve(weight, factor, 1.5)
    with pytest.raises(ValueError, match="2:4 needs columns divisible by 4, got 6"):
        solve(weight, factor, 0.5, "2:4")
    torn = Factor(factor.upper, torch.tensor([0, 1, 3, 2, 4, 5]))
    with pytest.raises(ValueError, match="tears groups of 3 apart"):
        solve(weight, torn, 0.5, "1:3")
    with pytest.raises(ValueError, match=r"hessian must be \[in, in\], got \(6, 5\)"):
        factorize(hessian[:, :5])
    with pytest.raises(ValueError, match="order must hold every column of 6 once"):
        factorize(hessian, torch.zeros(6, dtype=torch.int64))
    for bad in (-hessian, torch.ones(6, 6) - torch.eye(6), hessian * float("nan")):
        with pytest.raises(ValueError, match="not positive definite.*larger damping"):
            factorize(bad)
