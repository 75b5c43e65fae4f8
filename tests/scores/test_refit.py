"""Refitting what a mask leaves."""

from __future__ import annotations

import pytest
import torch

from tamp_modifier.masks import has_structure
from tamp_modifier.scores import get_score
from tamp_modifier.scores import refit as refitting
from tamp_modifier.scores.damping import damp
from tamp_modifier.scores.refit import product_dtype, refit
from tamp_modifier.scores.sparsegpt import sparsegpt_weight


def problem(rows: int = 6, columns: int = 12, tokens: int = 60) -> tuple[torch.Tensor, ...]:
    """Dense weight, pruned weight, inputs, and their mean of x x^T."""
    weight = torch.randn(rows, columns)
    inputs = torch.randn(tokens, columns) @ torch.randn(columns, columns)
    pruned = weight * (torch.rand(rows, columns) > 0.5)
    return weight, pruned, inputs, inputs.T @ inputs / tokens


def error(pruned: torch.Tensor, weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Per row."""
    difference = (pruned - weight).double()
    return ((difference @ hessian.double()) * difference).sum(1)


def test_many_steps_reach_the_least_squares_solution_of_every_row() -> None:
    weight, pruned, inputs, hessian = problem()
    found = refit(pruned.clone(), weight, hessian, 40)
    for row in range(len(weight)):
        kept = pruned[row].nonzero().flatten()
        wanted = torch.linalg.lstsq(inputs[:, kept], inputs @ weight[row]).solution
        torch.testing.assert_close(found[row, kept], wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(found == 0, pruned == 0)


def test_no_step_makes_a_row_worse() -> None:
    weight, pruned, _, hessian = problem()
    before = error(pruned, weight, hessian)
    for steps in range(1, 12):
        after = error(refit(pruned.clone(), weight, hessian, steps), weight, hessian)
        assert bool((after <= before * (1 + 1e-5) + 1e-6).all())
        before = after


@pytest.mark.parametrize("damping", [0.05, 0.001])
def test_bfloat16_products_end_within_two_percent_of_exact_ones(damping: float) -> None:
    mixed = torch.randn(96, 96) * torch.logspace(0, -3, 96)[:, None]
    inputs = torch.randn(1000, 96) @ mixed
    inputs[:, :2] *= 30.0  # outlier features
    hessian = damp(inputs.T @ inputs / 1000, 1000, damping)
    weight = torch.randn(40, 96)
    pruned = weight * (torch.rand(40, 96) > 0.5)
    for steps in (4, 60):
        exact, rounded = (
            error(refit(pruned.clone(), weight, hessian, steps, dtype), weight, hessian)
            for dtype in (torch.float32, torch.bfloat16)
        )
        assert float(rounded.sum()) < 1.02 * float(exact.sum())
        assert bool((rounded < error(pruned, weight, hessian)).all())


def correlated(common: float, width: int = 1024) -> torch.Tensor:
    """A damped Hessian of inputs that share a component."""
    inputs = torch.randn(1500, width) + common * torch.randn(1, width)
    return damp(inputs.T @ inputs / 1500, 1500, 0.05)


@pytest.mark.parametrize(("common", "safe"), [(0.3, True), (4.0, False)])
def test_products_are_in_bfloat16_only_where_the_hessian_survives_rounding(
    common: float, safe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refitting, "has_bfloat16", lambda device: True)
    hessian, weight = correlated(common), torch.randn(4, 1024)
    dtype = product_dtype(weight.bfloat16(), hessian, 0.05)
    assert dtype == (torch.bfloat16 if safe else torch.float32)
    assert product_dtype(weight, hessian, 0.05) == torch.float32
    if safe:  # as promised: no eigenvalue moves by more than half of the damping
        scale = hessian.diagonal().rsqrt()
        moved = (hessian.bfloat16() - hessian) * scale[:, None] * scale
        assert float(torch.linalg.matrix_norm(moved, 2)) <= 0.05 / 2.0


def test_products_are_in_float32_where_bfloat16_is_emulated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = torch.randn(4, 8).bfloat16()
    for supported, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda value=supported: value, raising=False
        )
        assert product_dtype(weight, torch.eye(8), 0.05) == dtype


def test_a_hessian_that_rounding_makes_indefinite_does_not_make_weights_infinite() -> None:
    weight = torch.randn(16, 1024)
    pruned = weight * (torch.rand(16, 1024) > 0.5)
    assert bool(torch.isfinite(refit(pruned, weight, correlated(6.0), 60, torch.bfloat16)).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_fitted_as_well(dtype: torch.dtype) -> None:
    weight, _, _, hessian = problem(rows=32, columns=64, tokens=400)
    weight = weight.to(dtype)
    plain, fitted = (
        error(sparsegpt_weight(weight, hessian.clone(), 400, 0.5, "0:0", 0.01, n), weight, hessian)
        for n in (0, 16)
    )
    assert float(fitted.sum()) < 0.9 * float(plain.sum())


def test_rows_that_are_dense_or_empty_stay_as_they_are() -> None:
    weight, pruned, _, hessian = problem()
    pruned[0], pruned[1] = weight[0], 0.0
    found = refit(pruned.clone(), weight, hessian, 5)
    assert torch.equal(found[0], weight[0])
    assert torch.equal(found[1], torch.zeros_like(weight[1]))
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("structure", ["0:0", "2:4"])
def test_after_the_solver_it_lowers_the_error_and_keeps_the_sparsity(structure: str) -> None:
    weight, _, _, hessian = problem(rows=32, columns=64, tokens=400)
    plain, fitted = (
        sparsegpt_weight(weight, hessian.clone(), 400, 0.5, structure, 0.01, steps)
        for steps in (0, 16)
    )
    assert float((fitted == 0).float().mean()) == float((plain == 0).float().mean()) == 0.5
    assert structure == "0:0" or has_structure(fitted, structure)
    assert float(error(fitted, weight, hessian).sum()) < 0.9 * float(
        error(plain, weight, hessian).sum()
    )


@pytest.mark.parametrize("steps", [-1, 0.5, 1001, 1e300])
def test_steps_that_are_no_number_of_steps_are_refused(steps: float) -> None:
    with pytest.raises(ValueError, match="refit must be a whole number from 0 to 1000"):
        get_score("sparsegpt", refit=steps)
