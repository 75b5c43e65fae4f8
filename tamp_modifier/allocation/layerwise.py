"""Allocation rules that give all Linears of a decoder layer the same sparsity.

Their importance is a property of the decoder layer, so all its Linears come with the same value.
Linears outside of the decoder layers come with none and get the requested sparsity.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tamp_modifier.allocation.base import Allocation
from tamp_modifier.allocation.budget import check_importance, shift_to_budget


class LayerwiseAllocation(Allocation):
    """Sparsities that differ by layer around the requested one, all shifted to meet the budget."""

    @abstractmethod
    def offsets(self, importance: Mapping[str, float], sparsity: float) -> dict[str, float]:
        """Sparsity of every Linear up to a constant that they share."""

    def share_out(
        self,
        importance: Mapping[str, float],
        numel: Mapping[str, int],
        sparsity: float,
        max_sparsity: float,
    ) -> dict[str, float]:
        inside = {name: count for name, count in numel.items() if name in importance}
        check_importance(importance, inside)
        found = dict.fromkeys(numel, sparsity)
        if inside:
            offsets = self.offsets({name: importance[name] for name in inside}, sparsity)
            found |= shift_to_budget(offsets, inside, sparsity, max_sparsity)
        return found


class MetricAllocation(LayerwiseAllocation):
    """Rules whose importance sums up the metrics |W_ij| ||x_j||_2 of a decoder layer."""

    measure = "metrics"

    @abstractmethod
    def summarise(self, metrics: Sequence[Tensor]) -> float:
        """Return importance of one decoder layer.

        Args:
            metrics: fp32 [out, in] of every Linear of the layer.
        """


@dataclass(frozen=True)
class OWL(MetricAllocation):
    """Outlier weighed layerwise sparsity (arXiv 2310.05175): more outliers, less sparsity.

    D_l is the share of the metrics |W_ij| ||x_j||_2 of layer l that are larger than m times their
    mean. D is scaled to a range of 2 lam, and the kept share of layer l is 1 - s + D_l - mean(D).
    The mean is over weights, so that the budget holds for layers of any size; for layers of equal
    size it is the paper's.

    Attributes:
        m: factor of the mean above which a weight counts as an outlier.
        lam: half the range of the sparsities.
    """

    name = "owl"
    m: float = 5.0
    lam: float = 0.08

    def __post_init__(self) -> None:
        _check_positive("m", self.m)
        _check_share("lam", self.lam)

    def summarise(self, metrics: Sequence[Tensor]) -> float:
        count = sum(metric.numel() for metric in metrics)
        mean = math.fsum(float(metric.sum(dtype=torch.float64)) for metric in metrics) / count
        return sum(int((metric > self.m * mean).sum()) for metric in metrics) / count

    def offsets(self, importance: Mapping[str, float], sparsity: float) -> dict[str, float]:
        scaled = _to_unit_range(importance)
        return {name: -2.0 * self.lam * value for name, value in scaled.items()}


@dataclass(frozen=True)
class DLP(MetricAllocation):
    """Dynamic layerwise pruning (arXiv 2505.23807): a larger median metric, more sparsity.

    The unimportance of layer l is the median of its metrics |W_ij| ||x_j||_2, its importance
    1 - median_l / sum of all medians. The importance is scaled to a range of 2 alpha, and the kept
    share of layer l is 1 - s + I_l - mean(I). The sum of the medians drops out in the scaling. As
    in OWL the mean is over weights.

    The paper takes the median; its published script for unstructured pruning takes the mean. The
    median of an even number of metrics is the lower one of the two in the middle.

    Attributes:
        alpha: half the range of the sparsities; 0.15 in the published code.
    """

    name = "dlp"
    alpha: float = 0.15

    def __post_init__(self) -> None:
        _check_share("alpha", self.alpha)

    def summarise(self, metrics: Sequence[Tensor]) -> float:
        return float(torch.cat([metric.flatten() for metric in metrics]).median())

    def offsets(self, importance: Mapping[str, float], sparsity: float) -> dict[str, float]:
        scaled = _to_unit_range(importance)
        return {name: 2.0 * self.alpha * value for name, value in scaled.items()}


@dataclass(frozen=True)
class ATP(LayerwiseAllocation):
    """Sparsity in an increasing arithmetic progression over depth (ATP, arXiv 2502.14770).

    Layer i = 1 ... L has the sparsity s - beta (L - 1) / 2 + beta (i - 1), where beta is at most
    min(2 s, 2 (1 - s)) / (L - 1), so that no sparsity leaves [0, 1]. Only layers with a pruned
    Linear count.

    Attributes:
        beta: common difference. The paper searches it for every model, in steps of 0.002, by
            perplexity.
        share: the slope as a share of the largest one allowed, in [0, 1]; 0.5 where neither of the
            other two is given.
        rise: the last layer is sparser than the first by rise (s - 1/2), or by the most that is
            allowed; no line below 1/2. Not in the paper, whose steepest line is widest at 1/2.
    """

    name = "atp"
    measure = "depth"
    beta: float | None = None
    share: float | None = None
    rise: float | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.beta, self.share, self.rise)) > 1:
            raise ValueError("beta, share and rise all say how steep the line is; give one of them")
        if self.beta is not None:
            _check_positive("beta", self.beta)
        if self.share is not None and not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share must be in [0, 1], got {self.share}")
        if self.rise is not None and not (math.isfinite(self.rise) and self.rise >= 0):
            raise ValueError(f"rise must be finite and >= 0, got {self.rise}")

    @staticmethod
    def steepest(sparsity: float, layers: int) -> float:
        """Return the largest slope at which no sparsity leaves [0, 1]."""
        return 2.0 * min(sparsity, 1.0 - sparsity) / max(layers - 1, 1)

    def offsets(self, importance: Mapping[str, float], sparsity: float) -> dict[str, float]:
        depths = {depth: number for number, depth in enumerate(sorted(set(importance.values())))}
        largest = self.steepest(sparsity, len(depths))
        if self.beta is not None:
            beta = self.beta
        elif self.rise is not None:
            wanted = max(self.rise * (sparsity - 0.5), 0.0)
            beta = min(wanted / max(len(depths) - 1, 1), largest)
        else:
            beta = largest * (0.5 if self.share is None else self.share)
        if beta > largest * (1.0 + 1e-9):
            raise ValueError(
                f"beta must be at most {largest:.6g} for sparsity {sparsity} and {len(depths)} "
                f"layers, got {beta}"
            )
        return {name: beta * depths[depth] for name, depth in importance.items()}


def _to_unit_range(values: Mapping[str, float]) -> dict[str, float]:
    """Values moved and scaled to [0, 1]; all 0 where they are all the same."""
    low, high = min(values.values()), max(values.values())
    span = high - low
    return {name: (value - low) / span if span > 0 else 0.0 for name, value in values.items()}


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and > 0, got {value}")


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
