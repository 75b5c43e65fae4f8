"""SparseGPT (arXiv 2301.00774) from the Hessian of the selected tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tamp_modifier.scores.hessian import HessianScore
from tamp_modifier.scores.solver import Factor, factorize, solve


def sparsegpt_weight(
    weight: Tensor,
    hessian: Tensor,
    tokens: int,
    sparsity: float,
    mask_structure: str = "0:0",
    damping: float = 0.01,
    refit_steps: int = 0,
) -> Tensor:
    """Prune one Linear by `SparseGPT` with these options, see `HessianScore.prune_weight`."""
    score = SparseGPT(damping=damping, refit=refit_steps)
    return score.prune_weight(weight, hessian, tokens, sparsity, mask_structure)


@dataclass(frozen=True)
class SparseGPT(HessianScore):
    """The sequential solver (arXiv 2301.00774) on the Hessian of the selected tokens, see `solve`.

    Removes weights block by block of columns, and adapts those that stay to make up for them.

    Attributes:
        per_row: 0 compares weights over all rows of a block, as in the paper: rows differ in
            sparsity, and the Linear as a whole has exactly its share. 1 compares them within each
            row. Between, rows differ less.
    """

    name = "sparsegpt"
    per_row: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.per_row <= 1.0:
            raise ValueError(f"per_row must be in [0, 1], got {self.per_row}")

    @property
    def by_row(self) -> bool:
        return self.per_row == 1

    def prepare(self, hessian: Tensor) -> Factor:
        return factorize(hessian)

    def choose(self, weight: Tensor, made: Factor, sparsity: float, mask_structure: str) -> Tensor:
        return solve(weight, made, sparsity, mask_structure, per_row=self.per_row)

    def choosing(self, in_features: int, out_features: int) -> float:
        return float(out_features * in_features**2 + in_features**3 / 3)
