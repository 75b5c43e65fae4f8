"""Scores that compare the weights of each output row, as Wanda, and then fit those that stay.

Once the weights that stay are fitted, a weight that goes costs its part of the error that the
others cannot make up for: w_ij^2 / [H^-1]_jj if it were the only one (Hassibi and Stork, Second
order derivatives for network pruning, 1992). Wanda's w_ij^2 h_jj is what it costs if none makes up
for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tamp_modifier.masks import wanda_mask
from tamp_modifier.scores.hessian import HessianScore

STEPS = 8


@dataclass(frozen=True)
class WandaRefit(HessianScore):
    """Wanda's mask, and the weights that stay fitted to the calibration tokens.

    Attributes:
        refit: steps of conjugate gradients, see `refit`.
    """

    name = "wanda_refit"
    refit: int = STEPS

    def prepare(self, hessian: Tensor) -> Tensor:
        """Return what the squared weights of each column are multiplied with, fp32 [in]."""
        return hessian.diagonal()

    def choose(self, weight: Tensor, made: Tensor, sparsity: float, mask_structure: str) -> Tensor:
        kept = wanda_mask(weight, made, sparsity, mask_structure)
        return weight.masked_fill(kept.logical_not_(), 0.0)


@dataclass(frozen=True)
class OBS(WandaRefit):
    """Mask by w_ij^2 / [H^-1]_jj within each row, and the weights that stay fitted.

    Attributes:
        refit: steps of conjugate gradients, see `refit`.
    """

    name = "obs"

    def prepare(self, hessian: Tensor) -> Tensor:
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if int(failed):
            raise ValueError("the Hessian is not positive definite in fp32; try a larger damping")
        return torch.cholesky_inverse(lower).diagonal().reciprocal()

    def choosing(self, in_features: int, out_features: int) -> float:
        return float(in_features**3)
