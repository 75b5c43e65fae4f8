"""Fit kept weights on the quantized grid, after GPTQ: coordinate descent that knows mask and grid.

GPTQ fixes each column before it has seen the next ones, and its grid before it has seen any. Given
its result Q, the error of the outputs tr (W - Q) H (W - Q)^T is lowered weight by weight: the best
value of one weight, the others held, is Q_ij + R_ij / H_jj with R = (W - Q) H, rounded to the grid;
a pruned weight stays zero. Between two rounds over the columns each scale s of a group g takes its
best value for the codes that are there, s (1 + R_g Q_g^T / Q_g H_gg Q_g^T). No step makes the error
larger.

W may be the dense weight or the refitted one: a full refit has R = 0 at every kept weight, so both
have the same minimum on the masked grid.
"""

from __future__ import annotations

from typing import Any

import torch
from llmcompressor.modifiers.gptq import GPTQModifier
from torch import Tensor

from tamp_modifier.zeros.remembered import pruned_bits

BLOCK = 128
LEAST, LARGEST = 0.5, 1.5
"""A scale changes by no more than these factors a round."""
DAMPING = 0.01
"""Of the mean diagonal, as in GPTQ."""


@torch.no_grad()
def fit_on_grid(
    quantized: Tensor,
    scale: Tensor,
    weight: Tensor,
    hessian: Tensor,
    kept: Tensor,
    bits: int,
    rounds: int,
) -> tuple[Tensor, Tensor]:
    """Lower the error of a quantized weight on its calibration tokens.

    Args:
        quantized: fp32 [out, in], codes times scales, zero where not `kept`.
        scale: fp32 [out, groups], positive; groups are of neighbouring columns.
        weight: fp32 [out, in], what is to be approximated.
        hessian: fp32 [in, in], positive definite.
        kept: bool [out, in].
        bits: of a code; codes are -2^(bits-1) to 2^(bits-1) - 1.
        rounds: over scales and columns.

    Returns:
        The new weight and its scales.
    """
    quantized, scale = quantized.clone(), scale.clone()
    size = quantized.shape[1] // scale.shape[1]
    residual = (weight - quantized) @ hessian
    for _ in range(rounds):
        _fit_scales(quantized, scale, residual, hessian, size)
        steps = scale.repeat_interleave(size, 1)
        for start in range(0, len(hessian), BLOCK):
            _fit_block(quantized, steps, residual, hessian, kept, bits, start)
    return quantized, scale


def _fit_scales(q: Tensor, scale: Tensor, residual: Tensor, hessian: Tensor, size: int) -> None:
    for group in range(scale.shape[1]):
        part = slice(group * size, (group + 1) * size)
        curvature = ((q[:, part] @ hessian[part, part]) * q[:, part]).sum(1)
        gain = (residual[:, part] * q[:, part]).sum(1)
        factor = torch.where(curvature > 0, 1 + gain / curvature, torch.ones_like(gain))
        factor.clamp_(LEAST, LARGEST)
        change = q[:, part] * (factor - 1)[:, None]
        q[:, part] += change
        scale[:, group] *= factor
        residual.addmm_(change, hessian[part], alpha=-1.0)


def _fit_block(
    q: Tensor, steps: Tensor, residual: Tensor, hessian: Tensor, kept: Tensor, bits: int, start: int
) -> None:
    """One round over the columns of a block; what it does to the others is one product."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    end = min(start + BLOCK, len(hessian))
    change = torch.zeros_like(q[:, start:end])
    inside = residual[:, start:end].clone()
    for column in range(start, end):
        wanted = q[:, column] + inside[:, column - start] / hessian[column, column]
        step = steps[:, column]
        value = (wanted / step).round_().clamp_(low, high).mul_(step).mul_(kept[:, column])
        moved = value - q[:, column]
        change[:, column - start] = moved
        q[:, column] = value
        inside.addr_(moved, hessian[column, start:end], alpha=-1.0)
    residual.addmm_(change, hessian[start:end], alpha=-1.0)


class FittedGPTQModifier(GPTQModifier):
    """GPTQ, then `fit_on_grid`; symmetric integers in groups or rows only.

    Attributes:
        rounds: over scales and columns.
    """

    rounds: int = 3

    def compress_module_list(self, module_list: list[Any]) -> None:
        """Quantize modules, then fit each."""
        before = {
            module: (
                module.weight.detach().float().clone(),
                self._hessians[module] / self._num_samples[module],
            )
            for module in module_list
        }
        super().compress_module_list(module_list)
        for module, (weight, hessian) in before.items():
            hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
            bits = pruned_bits(module)
            kept = torch.ones_like(weight, dtype=torch.bool)
            if bits is not None:
                kept = bits.mask(weight.device).logical_not_()
            fitted, scale = fit_on_grid(
                module.weight.detach().float(),
                module.weight_scale.detach().float(),
                weight,
                hessian,
                kept,
                module.quantization_scheme.weights.num_bits,
                self.rounds,
            )
            with torch.no_grad():
                module.weight.copy_(fitted)
                module.weight_scale.copy_(scale)
