"""The search on the quantized grid against its formula, weight by weight in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tamp_modifier.scores.grid import LARGEST, LEAST, fit_on_grid

BITS, SIZE = 4, 32


def problem(rows: int, columns: int) -> tuple[Tensor, ...]:
    """Weight, Hessian, mask, and the weight rounded with scales of groups."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(4 * columns, columns, generator=generator)
    x += 0.5 * x.roll(1, 1)
    hessian = x.T @ x / len(x)
    kept = torch.rand(rows, columns, generator=generator) > 0.5
    grouped = weight.view(rows, -1, SIZE)
    scale = grouped.abs().amax(-1) / 7.5
    rounded = (grouped / scale[..., None]).round().clamp(-8, 7) * scale[..., None]
    return weight, hessian, kept, rounded.view_as(weight) * kept, scale


def error(weight: Tensor, found: Tensor, hessian: Tensor) -> float:
    """Squared error of the outputs."""
    difference = (weight - found).double()
    return float(((difference @ hessian.double()) * difference).sum())


def by_formula(weight: Tensor, hessian: Tensor, kept: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """One round, every product made anew."""
    w, h, q, s = weight.double(), hessian.double(), q.double().clone(), scale.double().clone()
    for row in range(len(w)):
        for group in range(s.shape[1]):
            part = torch.zeros(len(h), dtype=torch.float64)
            part[group * SIZE : (group + 1) * SIZE] = q[row, group * SIZE : (group + 1) * SIZE]
            curvature = part @ h @ part
            if curvature > 0:
                factor = 1 + ((w[row] - q[row]) @ h @ part) / curvature
                factor = factor.clamp(LEAST, LARGEST)
                q[row] += (factor - 1) * part
                s[row, group] *= factor
        for column in range(len(h)):
            step = s[row, column // SIZE]
            best = q[row, column] + (w[row] - q[row]) @ h[column] / h[column, column]
            code = (best / step).round().clamp(-8, 7)
            q[row, column] = code * step if kept[row, column] else 0.0
    return q


def test_one_round_is_the_formula() -> None:
    weight, hessian, kept, rounded, scale = problem(4, 160)
    found, _ = fit_on_grid(rounded, scale, weight, hessian, kept, BITS, 1)
    wanted = by_formula(weight, hessian, kept, rounded, scale)
    # A weight half way between two codes may go either way.
    assert ((found.double() - wanted).abs() > 1e-3).float().mean() < 0.01


@pytest.mark.parametrize("columns", [64, 160])
def test_the_error_falls_and_zeros_and_grid_hold(columns: int) -> None:
    weight, hessian, kept, rounded, scale = problem(8, columns)
    errors = [error(weight, rounded, hessian)]
    for rounds in (1, 2, 4):
        found, scales = fit_on_grid(rounded, scale, weight, hessian, kept, BITS, rounds)
        errors.append(error(weight, found, hessian))
        assert bool((found[~kept] == 0).all())
        codes = found.view(len(found), -1, SIZE) / scales[..., None]
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
        assert codes.min() > -8.5 and codes.max() < 7.5
    assert errors[1] < 0.9 * errors[0]
    assert errors == sorted(errors, reverse=True)


def test_zero_points_shift_the_codes_and_scales_are_what_their_type_holds() -> None:
    weight, hessian, kept, _, scale = problem(8, 64)
    scale = scale.bfloat16().float()
    zero_point = torch.tensor([-3, 4], dtype=torch.int8).repeat(8, 1)
    shift = zero_point.float()[..., None]
    codes = (weight.view(8, -1, SIZE) / scale[..., None] + shift).round().clamp(-8, 7)
    rounded = ((codes - shift) * scale[..., None]).view_as(weight) * kept
    arguments = (weight, hessian, kept, BITS, 3, zero_point, torch.bfloat16)
    found, scales = fit_on_grid(rounded, scale, *arguments)
    assert error(weight, found, hessian) < 0.9 * error(weight, rounded, hessian)
    assert torch.equal(scales, scales.bfloat16().float()) and not torch.equal(scales, scale)
    assert bool((found[~kept] == 0).all())
    codes = found.view(8, -1, SIZE) / scales[..., None] + shift
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert codes.min() > -8.5 and codes.max() < 7.5


def test_groups_that_do_not_fit_the_columns_are_refused() -> None:
    weight, hessian, kept, rounded, scale = problem(2, 64)
    with pytest.raises(ValueError, match="64 columns do not divide into 3 groups"):
        fit_on_grid(rounded, scale.repeat(1, 2)[:, :3], weight, hessian, kept, BITS, 1)


def test_the_refitted_weight_has_the_same_minimum() -> None:
    """What no kept weight can make up for is the same for every weight on the grid."""
    weight, hessian, kept, rounded, scale = problem(8, 64)
    refitted = torch.zeros_like(weight)
    for row, mask in enumerate(kept):
        solved = torch.linalg.solve(hessian[mask][:, mask], hessian[mask] @ weight[row])
        refitted[row, mask] = solved
    once = fit_on_grid(rounded, scale, weight, hessian, kept, BITS, 3)[0]
    again = fit_on_grid(rounded, scale, refitted, hessian, kept, BITS, 3)[0]
    assert ((once - again).abs() > 1e-3).float().mean() < 0.02
