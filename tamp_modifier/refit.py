"""Refitting the weights that a mask leaves: least squares on the calibration tokens, row by row.

With w a row of the dense weight, H the (damped) Hessian and m the row's mask, the best row of that
mask solves

    min over v of (v - w) H (v - w)^T,   v_j = 0 where m_j = 0

SparseGPT goes through the columns once and fixes every column before it has seen the next ones, so
it ends away from this minimum. A few steps of conjugate gradients, preconditioned with the diagonal
of H, get most of the way there. Rows are independent problems with the same H: all of them take
their steps in one matrix product.

The idea that the weights left by a mask should be solved for, with matrix products that all rows
share, is from Boza, Fast and Effective Weight Update for Pruned Large Language Models
(arXiv 2401.02938), which does it by ADMM; conjugate gradients need no factorisation, no penalty to
tune, and never end worse than they began.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def refit(pruned: Tensor, weight: Tensor, hessian: Tensor, steps: int) -> Tensor:
    """Move the weights that are not zero towards the least error on the calibration tokens.

    Args:
        pruned: fp32 [out, in], where to begin; its zeros stay zero. Overwritten.
        weight: fp32 [out, in], the dense weight.
        hessian: fp32 [in, in], positive definite.
        steps: steps of conjugate gradients; with as many as a row has weights left the result is
            the minimum, but for rounding.

    Returns:
        `pruned`.
    """
    kept = pruned != 0
    inverse = hessian.diagonal().reciprocal()
    residual = ((weight - pruned) @ hessian).mul_(kept)  # minus half of the gradient
    scaled = residual * inverse
    direction = scaled.clone()
    norm = (residual * scaled).sum(1, keepdim=True)  # [out, 1]
    for _ in range(steps):
        curved = (direction @ hessian).mul_(kept)
        curvature = (direction * curved).sum(1, keepdim=True)
        # A row that has arrived has norm and curvature 0 and stays where it is.
        step = norm / curvature.clamp_min(torch.finfo(norm.dtype).tiny)
        pruned.addcmul_(step, direction)
        residual.addcmul_(step, curved, value=-1.0)
        torch.mul(residual, inverse, out=scaled)
        before, norm = norm, (residual * scaled).sum(1, keepdim=True)
        direction.mul_(norm / before.clamp_min(torch.finfo(norm.dtype).tiny)).add_(scaled)
    return pruned
