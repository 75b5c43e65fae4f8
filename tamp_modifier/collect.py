"""What is kept of the activations of a calibration pass, per Linear."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tamp_modifier.diversity import DiversityTracker, Pair
from tamp_modifier.observer import Activations
from tamp_modifier.selection import Selection
from tamp_modifier.statistics import NonFiniteError, RowScalars


class DiversityCollector:
    """Diversity of every Linear's outputs, for DAS."""

    def __init__(self, positive_only: bool = False) -> None:
        self._positive_only = positive_only
        self._trackers: dict[str, DiversityTracker] = {}
        self._importance: dict[str, float] = {}

    def collect(self, activations: Activations) -> None:
        """Adds one Linear's activations in one sample."""
        tracker = self._trackers.setdefault(
            activations.target.name, DiversityTracker(self._positive_only)
        )
        if activations.routed:
            tracker.update(activations.outputs, activations.types)

    def has_seen(self, name: str) -> bool:
        """Whether a token passed through the Linear."""
        return name in self._trackers

    def is_finite(self, name: str) -> bool:
        """Whether all its outputs were finite."""
        return math.isfinite(self.importance(name))

    def importance(self, name: str) -> float:
        """DAS importance of the Linear; read from the device once, when its pass is over."""
        if name not in self._importance:
            self._importance[name] = self._trackers[name].importance
        return self._importance[name]

    def similarities(self, name: str) -> dict[Pair, float]:
        """Mean cosine similarity per pair of modalities; empty if no sample had two tokens."""
        return self._trackers[name].similarities if name in self._trackers else {}

    def importance_of(self, names: Sequence[str]) -> dict[str, float]:
        """Importance of all Linears; experts without a routed token get the mean of the others."""
        measured = {name: self.importance(name) for name in names if self.similarities(name)}
        mean = sum(measured.values()) / max(len(measured), 1)
        return {name: measured.get(name, mean) for name in names}


class SelectionCollector:
    """Selected tokens and their activation statistics, per Linear.

    Args:
        selection: the rule.
        keep_indices: remember which tokens were selected, for the report.
    """

    def __init__(self, selection: Selection, keep_indices: bool) -> None:
        self._selection = selection
        self._keep_indices = keep_indices
        self._scalars: dict[str, RowScalars] = {}
        # Statistics of all tokens, for experts that no token is routed to.
        self._unrouted: dict[str, RowScalars] = {}
        self._counts: dict[str, list[int]] = {}
        self._indices: dict[str, dict[int, torch.Tensor]] = {}
        self._not_finite: set[str] = set()

    def collect(self, activations: Activations) -> None:
        """Selects tokens of one Linear in one sample and adds them to its statistics."""
        name = activations.target.name
        outputs = activations.outputs
        if not activations.routed:
            if name not in self._scalars:
                self._statistics(self._unrouted, activations).update(activations.inputs)
            return
        attention = activations.attention
        if attention is None and self._selection.needs_attention:
            attention = torch.full(
                (outputs.shape[0],), 1.0 / outputs.shape[0], device=outputs.device
            )
        try:
            picked = self._selection.select(outputs, activations.types, attention)
        except NonFiniteError:
            self._not_finite.add(name)
            self._counts.setdefault(name, [])
            return
        everything = picked.numel() == outputs.shape[0]
        inputs = activations.inputs if everything else activations.inputs[picked]
        self._statistics(self._scalars, activations).update(inputs)
        self._unrouted.pop(name, None)
        self._counts.setdefault(name, []).append(picked.numel())
        if self._keep_indices:
            tokens = picked if activations.tokens is None else activations.tokens[picked]
            self._indices.setdefault(name, {})[activations.sample] = tokens.cpu()

    def has_seen(self, name: str) -> bool:
        """Whether a token passed through the Linear."""
        return name in self._counts or name in self._unrouted

    def is_finite(self, name: str) -> bool:
        """Whether its statistics, if still there, are finite."""
        return name not in self._not_finite and all(
            statistics[name].is_finite()
            for statistics in (self._scalars, self._unrouted)
            if name in statistics
        )

    def row_scalars(self, name: str) -> torch.Tensor:
        """Mean of x_j^2 over the selected tokens, fp32 [in_features]; frees the sums behind it."""
        statistics = self._scalars if name in self._scalars else self._unrouted
        return statistics.pop(name).result()

    def tokens_seen(self, name: str) -> int:
        """Number of tokens that entered the statistics of the Linear."""
        return sum(self._counts.get(name, []))

    def mean_selected(self, name: str) -> float:
        """Tokens selected per sample."""
        return self.tokens_seen(name) / max(len(self._counts.get(name, [])), 1)

    def indices(self, name: str, samples: int) -> list[list[int]]:
        """Selected token indices of every sample; empty if they were not kept."""
        if name not in self._indices:
            return []
        kept = self._indices[name]
        return [kept[sample].tolist() if sample in kept else [] for sample in range(samples)]

    @staticmethod
    def _statistics(where: dict[str, RowScalars], activations: Activations) -> RowScalars:
        name = activations.target.name
        if name not in where:
            where[name] = RowScalars(activations.inputs.shape[-1])
        return where[name]
