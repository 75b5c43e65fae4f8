"""Coordinate descent on a quantized grid, after GPTQ, that knows the mask.

GPTQ fixes each column before it has seen the next ones, and its grid before it has seen any. Given
its result Q, the error of the outputs tr (W - Q) H (W - Q)^T is lowered weight by weight: the best
value of one weight, the others held, is Q_ij + R_ij / H_jj with R = (W - Q) H, rounded to the grid;
a pruned weight stays zero. Between two rounds over the columns each scale s of a group g takes its
best value for the codes that are there, s (1 + R_g Q_g^T / Q_g H_gg Q_g^T). No step makes the error
larger, but for the rounding of scales to the type that they are stored in.

W may be the dense weight or the refitted one: a full refit has R = 0 at every kept weight, so both
have the same minimum on the masked grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
LEAST, LARGEST = 0.5, 1.5
"""A scale changes by no more than these factors a round."""


@torch.no_grad()
def fit_on_grid(
    quantized: Tensor,
    scale: Tensor,
    weight: Tensor,
    hessian: Tensor,
    kept: Tensor,
    bits: int,
    rounds: int,
    zero_point: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Lower the error of a quantized weight on its calibration tokens.

    Args:
        quantized: fp32 [out, in], codes minus zero points, times scales; zero where not `kept`.
        scale: fp32 [out, groups], positive; groups are of neighbouring columns.
        weight: fp32 [out, in], what is to be approximated.
        hessian: fp32 [in, in], positive definite.
        kept: bool [out, in].
        bits: of a code; codes are -2^(bits-1) to 2^(bits-1) - 1.
        rounds: over scales and columns.
        zero_point: [out, groups], the code that stands for zero; None where all are 0.
        dtype: that scales are stored in; they are what it can hold.

    Returns:
        The new weight and its scales, fp32.

    Raises:
        ValueError: columns that do not divide into the groups.
    """
    if quantized.shape[1] % scale.shape[1]:
        raise ValueError(f"{quantized.shape[1]} columns do not divide into {scale.shape[1]} groups")
    quantized, scale = quantized.clone(), scale.clone()
    size = quantized.shape[1] // scale.shape[1]
    zero = torch.zeros_like(scale) if zero_point is None else zero_point.to(scale)
    lowest = (-(2 ** (bits - 1)) - zero).repeat_interleave(size, 1)
    residual = (weight - quantized) @ hessian
    for _ in range(rounds):
        _fit_scales(quantized, scale, residual, hessian, size, dtype)
        steps = scale.repeat_interleave(size, 1)
        for start in range(0, len(hessian), BLOCK):
            _fit_block(quantized, steps, residual, hessian, kept, lowest, bits, start)
    return quantized, scale


def _fit_scales(
    q: Tensor, scale: Tensor, residual: Tensor, hessian: Tensor, size: int, dtype: torch.dtype
) -> None:
    for group in range(scale.shape[1]):
        part = slice(group * size, (group + 1) * size)
        curvature = ((q[:, part] @ hessian[part, part]) * q[:, part]).sum(1)
        gain = (residual[:, part] * q[:, part]).sum(1)
        factor = torch.where(curvature > 0, 1 + gain / curvature, torch.ones_like(gain))
        best = (scale[:, group] * factor.clamp_(LEAST, LARGEST)).to(dtype).float()
        change = q[:, part] * (best / scale[:, group] - 1)[:, None]
        q[:, part] += change
        scale[:, group] = best
        residual.addmm_(change, hessian[part], alpha=-1.0)


def _fit_block(
    q: Tensor,
    steps: Tensor,
    residual: Tensor,
    hessian: Tensor,
    kept: Tensor,
    lowest: Tensor,
    bits: int,
    start: int,
) -> None:
    """One round over the columns of a block; what it does to the others is one product."""
    end = min(start + BLOCK, len(hessian))
    change = torch.zeros_like(q[:, start:end])
    inside = residual[:, start:end].clone()
    for column in range(start, end):
        wanted = q[:, column] + inside[:, column - start] / hessian[column, column]
        step = steps[:, column]
        low = lowest[:, column]
        codes = (wanted / step).round_().clamp_(low, low + 2**bits - 1)
        value = codes.mul_(step).mul_(kept[:, column])
        moved = value - q[:, column]
        change[:, column - start] = moved
        q[:, column] = value
        inside.addr_(moved, hessian[column, start:end], alpha=-1.0)
    residual.addmm_(change, hessian[start:end], alpha=-1.0)
