"""SparseGPT (arXiv 2301.00774) from the Hessian of the selected tokens.

The solver is llm-compressor's own `sparsify_weight`. Around it are two rules of ours: damping that
depends on how many tokens were selected, and the exact number of pruned weights.

Damping. With H the mean of x x^T over n tokens, the solver gets (1 - r) H + r diag(H) with

    r = max(damping, r_OAS),   r_OAS = min(1, (F (1 - 2/d) + d^2) / ((n + 1 - 2/d) (F - d)))

where d is the number of features that were ever active and F the squared Frobenius norm of the
correlation matrix h_ij / sqrt(h_ii h_jj): oracle approximating shrinkage (Chen, Wiesel, Eldar and
Hero, arXiv 0907.4698) of the correlations towards none. With many tokens r is the floor: damping as
in SparseGPT, but relative to each feature, so that a few huge features do not drown the others.
With a handful of tokens, where H has rank n < d and the solver would move weights freely along
directions that no token has shown, r nears 1: the Hessian becomes diagonal, the solver compares
w_ij^2 h_jj, Wanda's metric, and the weights that stay hardly change. Features that were never
active get a tiny diagonal entry: their weights are the first to go, instead of all of them whatever
the sparsity, as upstream has it.

Measured on an earlier state of the model in the box (12 Linears, 70 %): relative error of the
outputs on samples that were not used, by number of tokens. A plain ridge of 0.1 does as well there;
the rule is for models with outlier features, which this one lacks.

    tokens                                     6     40    160    640   1960
    this rule, damping 0.05                0.308  0.209  0.173  0.156  0.150
    r = 0.01                               0.356  0.257  0.205  0.172  0.164
    upstream, 0.01 of the mean diagonal    0.298  0.242  0.199  0.168  0.161
    ridge, 0.1 of the mean diagonal        0.276  0.206  0.173  0.155  0.150
    Wanda                                  0.341  0.290  0.281  0.276  0.274

Exactness. Upstream prunes int(n * sparsity) + 1 of the n weights of every block of columns,
compared over all rows of the block, and all weights that tie with the last one (bf16 weights of one
column often do). So rows differ in sparsity, and the Linear ends slightly above its share. Here
factors within 2e-5 of 1, below the resolution of half precision, break ties, and the solver is
asked for the largest count that is not above the wanted one. What is missing to it, about one
weight a block, goes by Wanda's metric; what went too much by ties that are left comes back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight
from torch import Tensor, nn

from tamp_modifier.masks import (
    parse_mask_structure,
    pruned_columns,
)
from tamp_modifier.scores.base import Score
from tamp_modifier.scores.refit import product_dtype, refit
from tamp_modifier.statistics import Hessian, Statistics

BLOCK_SIZE = 128  # columns, as in the paper and upstream
TIE_BREAK = 2e-5
LEAST_DIAGONAL = 1e-10  # relative to the mean; keeps features that were never active in range


@torch.no_grad()
def sparsegpt_weight(
    weight: Tensor,
    hessian: Tensor,
    tokens: int,
    sparsity: float,
    mask_structure: str = "0:0",
    damping: float = 0.01,
    refit_steps: int = 0,
) -> Tensor:
    """Prune one Linear and adapt the weights that stay.

    Args:
        weight: [out, in], any floating dtype.
        hessian: fp32 [in, in], mean of x x^T over the selected tokens; overwritten.
        tokens: number of tokens behind it.
        sparsity: share of all weights that is pruned; with N:M the structure decides.
        mask_structure: "0:0" or "N:M"; every group of M has N zeros.
        damping: least share of the diagonal, see above.
        refit_steps: steps of `refit` after the solver.

    Returns:
        [out, in] in the dtype of `weight`. Unstructured, it has rows * `pruned_columns` zeros in
        all, as Wanda's, but not in every row; more only where `weight` had more before.
    """
    rows, columns = weight.shape
    prune_n, prune_m = parse_mask_structure(mask_structure)
    wanted = rows * pruned_columns(columns, sparsity)
    if not prune_m and wanted in (0, weight.numel()):
        return weight.clone() if wanted == 0 else torch.zeros_like(weight)
    hessian = damp(hessian, tokens, damping)
    scale = hessian.diagonal().sqrt()
    # The solver overwrites its Hessian.
    curvature = hessian.clone() if refit_steps else None
    # Groups start anew in every block, so a block has to hold whole ones.
    block = max(BLOCK_SIZE // prune_m, 1) * prune_m if prune_m else BLOCK_SIZE
    asked = 0.0 if prune_m else _largest_sparsity(rows, columns, block, wanted)
    start = weight.float() if prune_m else weight.float() * _near_one(weight)
    if asked is None:
        pruned = weight.float()
    else:
        linear = nn.Linear(columns, rows, bias=False, device="meta")
        linear.weight = nn.Parameter(start, requires_grad=False)
        _, pruned = sparsify_weight(
            module=linear,
            hessians_dict={linear: hessian},
            sparsity=asked,
            prune_n=prune_n,
            prune_m=prune_m,
            block_size=block,
            dampening_frac=0.0,
            preserve_sparsity_mask=False,
        )
    # Rounded first: what rounds to zero is a zero for the refit as well.
    pruned = pruned.to(weight.dtype)
    if not prune_m:
        pruned = _with_zeros(pruned, weight, scale, wanted)
    if curvature is not None:
        dtype = product_dtype(weight, curvature, damping)
        fitted = refit(pruned.float(), weight.float(), curvature, refit_steps, dtype)
        pruned = fitted.to(weight.dtype)
    return pruned


def damp(hessian: Tensor, tokens: int, damping: float) -> Tensor:
    """Shrink the off-diagonal entries of a Hessian, in place; see the top of this file.

    Returns:
        The Hessian with a mean diagonal of 1; only ratios count for the solver.
    """
    mean = hessian.diagonal().mean()
    if mean == 0:
        return hessian.copy_(torch.eye(len(hessian)))
    diagonal = hessian.div_(mean).diagonal().clone()
    active = diagonal > LEAST_DIAGONAL
    count = int(active.sum())
    inverse = torch.where(active, diagonal.rsqrt(), torch.zeros_like(diagonal))
    frobenius = float((hessian * inverse[:, None] * inverse).double().square().sum())
    shrinkage = max(damping, oas(frobenius, count, tokens))
    hessian *= 1.0 - shrinkage
    hessian.diagonal().copy_(diagonal.clamp_min(LEAST_DIAGONAL))
    return hessian


def oas(frobenius: float, features: int, tokens: int) -> float:
    """Oracle approximating shrinkage of a correlation matrix towards the identity.

    Args:
        frobenius: its squared Frobenius norm, at least `features`.
        features: its size d.
        tokens: number of samples n behind it.

    Returns:
        The weight of the identity, in [0, 1].
    """
    spread = frobenius - features
    if spread <= 0:
        return 1.0
    above = (1.0 - 2.0 / features) * frobenius + features**2
    return min(1.0, above / ((tokens + 1.0 - 2.0 / features) * spread))


def _with_zeros(pruned: Tensor, weight: Tensor, scale: Tensor, wanted: int) -> Tensor:
    """`pruned` with `wanted` zeros; by the metric |w_ij| * scale_j few more go or come back."""
    zero = pruned == 0
    missing = wanted - int(zero.sum())
    if missing > 0:
        metric = (pruned.float().abs() * scale).masked_fill_(zero, torch.inf).flatten()
        pruned.view(-1)[metric.topk(missing, largest=False).indices] = 0.0
    elif missing < 0:
        metric = (weight.float().abs() * scale).masked_fill_(~zero, 0.0).flatten()
        back = metric.topk(-missing).indices
        pruned.view(-1)[back] = weight.reshape(-1)[back]
    return pruned


def _near_one(weight: Tensor) -> Tensor:
    """Factors [out, in] in [1, 1 + TIE_BREAK] that follow no pattern; the same in every run."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(weight.shape, generator=generator)
    return factors.mul_(TIE_BREAK).add_(1.0).to(weight.device)


def _largest_sparsity(rows: int, columns: int, block: int, wanted: int) -> float | None:
    """Return the largest sparsity at which the solver prunes at most `wanted` weights; None if none
    is.
    """
    sizes = [rows * (min(start + block, columns) - start) for start in range(0, columns, block)]

    def pruned(sparsity: float) -> int:
        return sum(int(size * sparsity) + 1 for size in sizes)

    if pruned(0.0) > wanted:
        return None
    low, high = 0.0, 1.0  # at 1 the solver would look behind the end
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if pruned(middle) <= wanted else (low, middle)
    return low


MOST_REFIT = 1000
"""Steps of the refit; 32 are as good as the exact solution, see docs/quality.md."""


@dataclass(frozen=True)
class SparseGPT(Score):
    """llm-compressor's SparseGPT solver (arXiv 2301.00774) on the Hessian of the selected tokens.

    Removes weights block by block, compared over all rows of a block, and adapts those that stay
    to make up for them. Rows differ in sparsity; the Linear as a whole has exactly its share. See
    `sparsegpt` for the damping.

    Attributes:
        damping: the least share by which correlations are shrunk.
        refit: steps of conjugate gradients on the weights that stay, see `refit`.
    """

    name = "sparsegpt"
    keeps_weights = False
    by_row = False
    damping: float = 0.05
    refit: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.damping <= 1.0:
            raise ValueError(f"damping must be in (0, 1], got {self.damping}")
        if not 0 <= self.refit <= MOST_REFIT or self.refit != int(self.refit):
            raise ValueError(
                f"refit must be a whole number from 0 to {MOST_REFIT}, got {self.refit}"
            )

    def statistics(self, in_features: int) -> Hessian:
        return Hessian(in_features)

    def collecting(self, in_features: int) -> float:
        return 2.0 * in_features**2

    def solving(self, in_features: int, out_features: int) -> float:
        return float(out_features * in_features**2 + in_features**3)

    def statistics_bytes(self, in_features: int) -> int:
        return 4 * in_features**2

    def pruning_bytes(self, in_features: int, out_features: int) -> int:
        # The Hessian is copied, factorised and inverted.
        return super().pruning_bytes(in_features, out_features) + 3 * 4 * in_features**2

    def prune(
        self, weight: Tensor, statistics: Statistics, sparsity: float, mask_structure: str
    ) -> Tensor:
        assert isinstance(statistics, Hessian)
        hessian = statistics.result().to(weight.device)
        if not bool(torch.isfinite(weight).all()):
            raise ValueError("weights are not finite")
        pruned = sparsegpt_weight(
            weight,
            hessian,
            statistics.effective_tokens,
            sparsity,
            mask_structure,
            self.damping,
            int(self.refit),
        )
        if not bool(torch.isfinite(pruned).all()):
            raise ValueError("the solver gave weights that are not finite; try a larger damping")
        return pruned
