"""Selected tokens and the statistics of them that are kept, per Linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from compressed_tensors.offload import get_execution_device

from tamp_modifier.calibration.activations import Activations, LayerStates
from tamp_modifier.calibration.distributed import any_of, gather, sum_statistics
from tamp_modifier.calibration.targets import Target
from tamp_modifier.calibration.unreached import add_up, take_all_the_same
from tamp_modifier.scores.base import Score
from tamp_modifier.selection.base import Selection
from tamp_modifier.statistics import NonFiniteError, Statistics
from tamp_modifier.tokens import MODALITY_NAMES


class SelectionCollector:
    """Selected tokens and their activation statistics, per Linear.

    Args:
        selection: the rule.
        score: what the statistics are for.
        keep_indices: remember which tokens were selected, for the report.
    """

    def __init__(self, selection: Selection, score: Score, keep_indices: bool) -> None:
        self._selection = selection
        self._score = score
        self._keep_indices = keep_indices
        self._selected: dict[str, Statistics] = {}
        # Statistics of all tokens, for experts that get none of the selected ones.
        self._fallback: dict[str, Statistics] = {}
        self._counts: dict[str, list[int]] = {}
        self._indices: dict[str, dict[int, torch.Tensor]] = {}
        self._not_finite: set[str] = set()
        # By decoder layer: the Linear it is taken from, and by sample its share per modality.
        self._attention: dict[str, tuple[str, dict[int, list[float]]]] = {}

    def collect(self, activations: Activations) -> None:
        """Select tokens of one Linear in one sample and add them to its statistics."""
        name = activations.target.name
        outputs = activations.outputs
        if not activations.routed:
            if name not in self._selected:
                self._statistics(self._fallback, activations).update(activations.inputs)
            return
        attention = activations.attention
        if attention is None and self._selection.needs_attention:
            attention = torch.full(
                (outputs.shape[0],), 1.0 / outputs.shape[0], device=outputs.device
            )
        elif attention is not None:
            self._add_attention(activations, attention)
        try:
            if activations.cross:
                picked = torch.arange(outputs.shape[0], device=outputs.device)
            else:
                picked = self._selection.select(outputs, activations.types, attention)
        except NonFiniteError:
            self._not_finite.add(name)
            self._counts.setdefault(name, [])
            return
        everything = picked.numel() == outputs.shape[0]
        inputs = activations.inputs if everything else activations.inputs[picked]
        types = activations.types
        if not everything:
            types = types[picked.to(types.device)]
        weights = self._selection.weights(types, activations.sample_size)
        self._statistics(self._selected, activations).update(inputs, weights)
        self._fallback.pop(name, None)
        self._counts.setdefault(name, []).append(picked.numel())
        if self._keep_indices:
            tokens = picked if activations.tokens is None else activations.tokens[picked]
            self._indices.setdefault(name, {})[activations.sample] = tokens.cpu()

    def _add_attention(self, activations: Activations, attention: torch.Tensor) -> None:
        """Add up a decoder layer's attention by modality, once a sample, for the report."""
        target = activations.target
        if target.layer is None or target.expert is not None:
            return
        source, shares = self._attention.setdefault(target.layer, (target.name, {}))
        if source == target.name:
            sums = attention.new_zeros(len(MODALITY_NAMES), dtype=torch.float32)
            types = activations.types.to(attention.device)
            sums.index_add_(0, types, attention.float())
            shares[activations.sample] = sums.tolist()

    def attention(self) -> dict[str, dict[str, float]]:
        """Share of the attention that each modality gets, mean over samples, by decoder layer."""
        found = {}
        for layer, (_, shares) in self._attention.items():
            means = torch.tensor(list(shares.values())).mean(0).tolist()
            found[layer] = {n: m for n, m in zip(MODALITY_NAMES, means, strict=True) if m > 0}
        return found

    def has_seen(self, name: str) -> bool:
        """Whether a token passed through the Linear."""
        return name in self._counts or name in self._fallback

    def reached(self, name: str) -> bool:
        """Whether a token was routed to the Linear."""
        return bool(self._counts.get(name))

    def stand_in(self, target: Target, peers: Sequence[str], by_magnitude: bool) -> None:
        """Give an expert without a routed token something to be pruned by.

        Args:
            target: its Linear.
            peers: the same Linears of the experts that tokens were routed to.
            by_magnitude: treat all input features the same, instead of pooling what passed through
                the peers. What all tokens of the layer gave, if it is there, is a pool already.
        """
        if not by_magnitude and target.name in self._fallback:
            return
        width = target.module.in_features
        pool = self._score.statistics(width)
        device = get_execution_device(target.module)
        if by_magnitude:
            take_all_the_same(pool, width, device)
        else:
            both = (self._selected, self._fallback)
            add_up(pool, [where[name] for name in peers for where in both if name in where], device)
        self._fallback[target.name] = pool

    def is_finite(self, name: str) -> bool:
        """Whether its statistics, if still there, are finite."""
        return name not in self._not_finite and all(
            statistics[name].is_finite()
            for statistics in (self._selected, self._fallback)
            if name in statistics
        )

    def layer_done(self, layer: str, states: Sequence[LayerStates]) -> None:
        """Take in what a decoder layer got and gave in a batch, for rules that look at it."""

    def settle(self, targets: Sequence[Target]) -> None:
        """Tell that all samples have passed through these Linears."""

    def statistics(
        self, targets: Sequence[Target], owners: Mapping[str, int]
    ) -> dict[str, Statistics]:
        """Statistics of the selected tokens of all processes; handed over and forgotten.

        Args:
            targets: their Linears.
            owners: the process that gets them, by Linear.
        """
        names = [target.name for target in targets]
        with_tokens = any_of(n for n in names if n in self._selected and self._selected[n].tokens)
        local = {}
        for name in names:
            found = self._selected.pop(name, None), self._fallback.pop(name, None)
            statistics = found[0 if name in with_tokens else 1]
            if statistics is not None:
                local[name] = statistics
        return sum_statistics(targets, local, self._score.statistics, owners)

    def join(self) -> None:
        """Add what other processes know of their tokens, for the report."""
        everyone = gather((self._counts, self._indices, self._attention))
        self._counts, self._indices, self._attention = {}, {}, {}
        for counts, indices, attention in everyone:
            for layer, (source, shares) in attention.items():
                self._attention.setdefault(layer, (source, {}))[1].update(shares)
            for name, tokens in counts.items():
                self._counts.setdefault(name, []).extend(tokens)
            for name, kept in indices.items():
                self._indices.setdefault(name, {}).update(kept)

    def tokens_seen(self, name: str) -> int:
        """Return number of tokens that entered the statistics of the Linear."""
        return sum(self._counts.get(name, []))

    def mean_selected(self, name: str) -> float:
        """Tokens selected per sample."""
        return self.tokens_seen(name) / max(len(self._counts.get(name, [])), 1)

    def indices(self, name: str, samples: int) -> list[list[int]]:
        """Return selected token indices of every sample; empty if they were not kept."""
        if name not in self._indices:
            return []
        kept = self._indices[name]
        return [kept[sample].tolist() if sample in kept else [] for sample in range(samples)]

    def record(self, name: str) -> dict[str, Any]:
        """Return what was selected for a Linear, as JSON values."""
        indices = self._indices.get(name)
        kept = None if indices is None else [[s, t.tolist()] for s, t in indices.items()]
        attention = [
            [layer, list(shares.items())]
            for layer, (source, shares) in self._attention.items()
            if source == name
        ]
        return {"counts": self._counts.get(name), "indices": kept, "attention": attention}

    def recall(self, name: str, record: Mapping[str, Any]) -> None:
        """Take in what `record` told of a Linear in an earlier run."""
        self._counts[name] = record["counts"] or []
        if record["indices"] is not None:
            self._indices[name] = {s: torch.tensor(t) for s, t in record["indices"]}
        for layer, shares in record["attention"]:
            self._attention[layer] = (name, dict(shares))

    def _statistics(self, where: dict[str, Statistics], activations: Activations) -> Statistics:
        name = activations.target.name
        if name not in where:
            where[name] = self._score.statistics(activations.inputs.shape[-1])
        return where[name]
