"""What an allocation rule wants to know of the dense model, collected in a pass over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from compressed_tensors.utils import align_module_device

from tamp_modifier.allocation.base import Allocation
from tamp_modifier.allocation.layerwise import MetricAllocation
from tamp_modifier.calibration.activations import Activations
from tamp_modifier.calibration.distributed import any_of, gather, sum_statistics
from tamp_modifier.calibration.targets import Target
from tamp_modifier.diversity import DiversityTotals, DiversityTracker, Pair
from tamp_modifier.statistics import RowScalars


class Measurement(Protocol):
    """Collect activations of the dense model and turn them into an importance per Linear.

    Attributes:
        sees_outputs: whether outputs that are not finite show in it, as they do in `is_finite`.
    """

    sees_outputs: ClassVar[bool]

    def collect(self, activations: Activations) -> None:
        """Add one Linear's activations in one sample."""

    def join(self) -> None:
        """Add what other processes collected; once, when the pass is over."""

    def has_seen(self, name: str) -> bool:
        """Whether a token passed through the Linear."""

    def reached(self, name: str) -> bool:
        """Whether a token was routed to the Linear."""

    def is_finite(self, name: str) -> bool:
        """Whether everything collected of it is finite."""

    def importance(self, name: str) -> float | None:
        """Return what was measured of the Linear, None if nothing was; for the report."""

    def similarities(self, name: str) -> dict[Pair, float]:
        """Mean cosine similarity per pair of modalities; empty where it is not measured."""

    def importance_of(self, names: Sequence[str]) -> dict[str, float]:
        """Return importance of the Linears, for the allocation rule."""


def measurement_for(rule: Allocation | None, targets: Sequence[Target]) -> Measurement | None:
    """Return what measures for this rule; None if nothing has to be measured."""
    if rule is None or not rule.needs_dense_pass:
        return None
    if isinstance(rule, MetricAllocation):
        return MetricCollector(rule, targets)
    return DiversityCollector(rule.positive_only)


class DiversityCollector:
    """Diversity of every Linear's outputs, for DAS.

    Args:
        positive_only: see `mean_similarities`.
    """

    sees_outputs: ClassVar[bool] = True

    def __init__(self, positive_only: bool = False) -> None:
        self._positive_only = positive_only
        self._trackers: dict[str, DiversityTracker] = {}
        self._totals: dict[str, DiversityTotals] = {}
        self._reached: set[str] = set()

    def collect(self, activations: Activations) -> None:
        """Add one Linear's activations in one sample."""
        tracker = self._trackers.setdefault(
            activations.target.name, DiversityTracker(self._positive_only)
        )
        if activations.routed:
            self._reached.add(activations.target.name)
            tracker.update(activations.outputs, activations.types)

    def join(self) -> None:
        """Add what other processes collected; once, when the pass is over."""
        for totals in gather({name: tracker.totals for name, tracker in self._trackers.items()}):
            for name, more in totals.items():
                self._totals[name] = self._totals.get(name, DiversityTotals()).plus(more)
        self._trackers.clear()

    def has_seen(self, name: str) -> bool:
        """Whether a token passed through the Linear."""
        return name in self._trackers or name in self._totals

    def reached(self, name: str) -> bool:
        """Whether a token was routed to the Linear."""
        return name in self._reached

    def is_finite(self, name: str) -> bool:
        """Whether all its outputs were finite."""
        return math.isfinite(self._read(name).mean_importance)

    def importance(self, name: str) -> float | None:
        """DAS importance of the Linear; None if no sample had two tokens."""
        totals = self._read(name)
        return totals.mean_importance if totals.pairs else None

    def _read(self, name: str) -> DiversityTotals:
        if name in self._totals:
            return self._totals[name]
        return self._trackers[name].totals if name in self._trackers else DiversityTotals()

    def similarities(self, name: str) -> dict[Pair, float]:
        """Mean cosine similarity per pair of modalities; empty if no sample had two tokens."""
        return self._read(name).similarities

    def importance_of(self, names: Sequence[str]) -> dict[str, float]:
        """Return importance of all Linears; experts without a routed token get the mean of the
        others.
        """
        found = {name: self._read(name) for name in names}
        measured = {name: each.mean_importance for name, each in found.items() if each.pairs}
        mean = sum(measured.values()) / max(len(measured), 1)
        return {name: measured.get(name, mean) for name in names}


class MetricCollector:
    """Sums |W_ij| ||x_j||_2 of the dense model up per decoder layer, for OWL and DLP.

    ||x_j||_2 is over all real tokens of all samples, or those routed to an expert. The metrics of
    one decoder layer at a time are made in fp32.

    Args:
        rule: tells how the metrics of a layer are summed up.
        targets: the Linears.
    """

    sees_outputs: ClassVar[bool] = False

    def __init__(self, rule: MetricAllocation, targets: Sequence[Target]) -> None:
        self._rule = rule
        self._targets = targets
        self._scalars: dict[str, RowScalars] = {}
        self._importance: dict[str, float] = {}
        self._reached: set[str] = set()

    def collect(self, activations: Activations) -> None:
        """Add one Linear's activations in one sample."""
        width = activations.inputs.shape[-1]
        scalars = self._scalars.setdefault(activations.target.name, RowScalars(width))
        if activations.routed:
            self._reached.add(activations.target.name)
            scalars.update(activations.inputs)

    def join(self) -> None:
        """Add what other processes collected; once, when the pass is over."""
        seen = any_of(self._scalars)
        targets = [target for target in self._targets if target.name in seen]
        self._scalars = sum_statistics(targets, self._scalars, RowScalars)

    def has_seen(self, name: str) -> bool:
        """Whether a token passed through the Linear."""
        return name in self._scalars

    def reached(self, name: str) -> bool:
        """Whether a token was routed to the Linear."""
        return name in self._reached

    def is_finite(self, name: str) -> bool:
        """Whether all its inputs were finite."""
        scalars = self._scalars.get(name)
        return scalars is None or scalars.is_finite()

    def importance(self, name: str) -> float | None:
        """Return importance of the Linear's decoder layer; None outside of the decoder layers."""
        return self._importance.get(name)

    def similarities(self, name: str) -> dict[Pair, float]:
        """Nothing: they are not measured."""
        return {}

    @torch.no_grad()
    def importance_of(self, names: Sequence[str]) -> dict[str, float]:
        """Return importance of the Linears that are in a decoder layer; the sums behind it are
        freed.
        """
        layers: dict[str, list[Target]] = {}
        for target in self._targets:
            if target.layer is not None and target.name not in self._importance:
                layers.setdefault(target.layer, []).append(target)
        for members in layers.values():
            # Experts that no token reached have none.
            seen = [target for target in members if target.name in self._scalars]
            value = self._rule.summarise([self._metric(target) for target in seen])
            self._importance |= {target.name: value for target in members}
        return {name: self._importance[name] for name in names if name in self._importance}

    def _metric(self, target: Target) -> torch.Tensor:
        """|W_ij| ||x_j||_2, fp32 [out, in]."""
        scalars = self._scalars.pop(target.name)
        with align_module_device(target.module):
            weight = target.module.weight.detach().float().abs()
        if scalars.tokens == 0:
            return weight.zero_()
        return weight.mul_((scalars.result().to(weight) * scalars.tokens).sqrt())
