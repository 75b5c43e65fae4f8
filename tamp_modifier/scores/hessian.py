"""Scores that look at how inputs go together, and fit the weights that stay to what is gone."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tamp_modifier.masks import parse_mask_structure, pruned_columns
from tamp_modifier.scores.base import Score
from tamp_modifier.scores.damping import damp
from tamp_modifier.scores.refit import product_dtype, refit
from tamp_modifier.statistics import STRIP, Hessian, Statistics

MOST_REFIT = 1000
"""Steps of the refit; 32 are as good as the exact solution, see docs/quality.md."""


@dataclass(eq=False)
class Prepared:
    """The Hessian of the last Linear, and what was made of it.

    q, k and v read the same inputs, as gate and up do: one factorisation serves them all. They are
    known by their Hessian, which is the same to the last bit.

    Attributes:
        hessian: fp32 [in, in], damped.
        made: what `HessianScore.prepare` gave.
    """

    hessian: Tensor | None = None
    made: Any = None


@dataclass(frozen=True)
class HessianScore(Score):
    """Base of the scores that keep the Hessian of the selected tokens.

    Attributes:
        damping: the least share by which correlations are shrunk, see `damp`.
        refit: steps of conjugate gradients on the weights that stay, see `refit`.
    """

    keeps_weights = False
    damping: float = 0.05
    refit: int = 0
    _last: Prepared = field(default_factory=Prepared, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.damping <= 1.0:
            raise ValueError(f"damping must be in (0, 1], got {self.damping}")
        if not 0 <= self.refit <= MOST_REFIT or self.refit != int(self.refit):
            raise ValueError(
                f"refit must be a whole number from 0 to {MOST_REFIT}, got {self.refit}"
            )

    @abstractmethod
    def prepare(self, hessian: Tensor) -> Any:
        """Return what `choose` needs of a Hessian.

        Args:
            hessian: fp32 [in, in], damped; must stay as it is.

        Raises:
            ValueError: it is not positive definite in fp32.
        """

    @abstractmethod
    def choose(self, weight: Tensor, made: Any, sparsity: float, mask_structure: str) -> Tensor:
        """Return the pruned weight, before the refit.

        Args:
            weight: [out, in], any floating dtype, finite; must stay as it is.
            made: from `prepare`; must stay as it is.
            sparsity: share of all weights that goes; with N:M the structure decides.
            mask_structure: "0:0" or "N:M".

        Returns:
            [out, in] in any floating dtype.
        """

    def prune_weight(
        self,
        weight: Tensor,
        hessian: Tensor,
        tokens: int,
        sparsity: float,
        mask_structure: str = "0:0",
    ) -> Tensor:
        """Prune one Linear and adapt the weights that stay.

        Args:
            weight: [out, in], any floating dtype, finite.
            hessian: fp32 [in, in], mean of x x^T over the selected tokens; overwritten.
            tokens: number of tokens behind it.
            sparsity: share of all weights that is pruned; with N:M the structure decides.
            mask_structure: "0:0" or "N:M"; every group of M has N zeros.

        Returns:
            [out, in] in the dtype of `weight`. Unstructured, it has rows * `pruned_columns` zeros
            in all; more only where `weight` had more before.
        """
        rows, columns = weight.shape
        wanted = rows * pruned_columns(columns, sparsity)
        if not parse_mask_structure(mask_structure)[1] and wanted in (0, weight.numel()):
            return weight.clone() if wanted == 0 else torch.zeros_like(weight)
        hessian = damp(hessian, tokens, self.damping)
        # Rounded first: what rounds to zero is a zero for the refit as well.
        made = self._prepared(hessian)
        pruned = self.choose(weight, made, sparsity, mask_structure).to(weight.dtype)
        if not self.refit:
            return pruned
        dtype = product_dtype(weight, hessian, self.damping)
        fitted = refit(pruned.float(), weight.float(), hessian, int(self.refit), dtype)
        return fitted.to(weight.dtype)

    def _prepared(self, hessian: Tensor) -> Any:
        """Return what `prepare` makes of a damped Hessian, which must stay as it is afterwards."""
        last = self._last
        same = last.hessian is not None and last.hessian.device == hessian.device
        if not (same and torch.equal(last.hessian, hessian)):  # type: ignore[arg-type]
            self.forget()
            last.made, last.hessian = self.prepare(hessian), hessian
        return last.made

    def forget(self) -> None:
        self._last.hessian = self._last.made = None

    def prune(
        self, weight: Tensor, statistics: Statistics, sparsity: float, mask_structure: str
    ) -> Tensor:
        assert isinstance(statistics, Hessian)
        hessian = statistics.result().to(weight.device)
        if not bool(torch.isfinite(weight).all()):
            raise ValueError("weights are not finite")
        tokens = statistics.effective_tokens
        pruned = self.prune_weight(weight, hessian, tokens, sparsity, mask_structure)
        if not bool(torch.isfinite(pruned).all()):
            raise ValueError("the solver gave weights that are not finite; try a larger damping")
        return pruned

    def statistics(self, in_features: int) -> Hessian:
        return Hessian(in_features)

    # -- what it costs

    def collecting(self, in_features: int) -> float:
        return float(in_features * (in_features + min(in_features, STRIP)))  # what is not mirrored

    def solving(self, in_features: int, out_features: int) -> float:
        products = 2.0 * out_features * in_features**2
        return products * (self.refit + 1 if self.refit else 0) + self.choosing(
            in_features, out_features
        )

    def choosing(self, in_features: int, out_features: int) -> float:
        """Floating-point operations of `choose`; next to none by default."""
        return 0.0

    def statistics_bytes(self, in_features: int) -> int:
        return 4 * in_features**2

    def pruning_bytes(self, in_features: int, out_features: int) -> int:
        # The Hessian is turned round and factorised.
        return super().pruning_bytes(in_features, out_features) + 3 * 4 * in_features**2
