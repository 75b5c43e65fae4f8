"""Collecting for selections that choose when all samples have passed a decoder layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from tamp_modifier.calibration.activations import Activations, LayerStates
from tamp_modifier.calibration.collect import SelectionCollector
from tamp_modifier.calibration.distributed import gather
from tamp_modifier.calibration.targets import Target
from tamp_modifier.scores.base import Score
from tamp_modifier.selection.base import LayerSelection, Selection, visual_ranks
from tamp_modifier.tokens import TEXT


@dataclass(frozen=True, eq=False)
class _Held:
    """Tokens of one Linear and sample that may still be selected.

    Attributes:
        sample: number of the sample.
        entry: where the Linear's tokens of this sample are counted.
        text: number of text tokens of the sample.
        visual: number of its other tokens.
        ranks: int64 [n], of these tokens.
        tokens: int64 [n], their indices in the sample.
        inputs: [n, in_features].
    """

    sample: int
    entry: int
    text: int
    visual: int
    ranks: torch.Tensor
    tokens: torch.Tensor
    inputs: torch.Tensor


class LayerCollector(SelectionCollector):
    """Statistics of the tokens that a `LayerSelection` chooses, once a decoder layer.

    Args:
        rule: the rule.
        score: what the statistics are for.
        keep_indices: remember which tokens were selected, for the report.
    """

    def __init__(self, rule: LayerSelection, score: Score, keep_indices: bool) -> None:
        super().__init__(rule, score, keep_indices)
        self._rule = rule
        self._sums: dict[str, tuple[torch.Tensor, int]] = {}
        self._passing: dict[str, dict[int, tuple[torch.Tensor, int]]] = {}
        self._held: dict[str, list[_Held]] = {}
        self._layers: dict[str, str] = {}

    def layer_done(self, layer: str, states: Sequence[LayerStates]) -> None:
        """Take in what a decoder layer got and gave in a batch; its activations come next."""
        self._passing[layer] = {}
        for state in states:
            values = self._rule.measure(state.inputs, state.outputs)
            visual = state.types != TEXT
            total, count = self._sums.get(layer, (values.new_zeros((), dtype=torch.float64), 0))
            seen = int(visual.sum())
            self._sums[layer] = (total + values[visual].double().sum(), count + seen)
            ranks = visual_ranks(values, state.types)
            self._passing[layer][state.sample] = (ranks, seen)

    def mean(self, layer: str) -> float:
        """Return what the rule measures, mean over the visual tokens so far; 0 without any."""
        total, count = self._sums[layer]
        return float(total) / max(count, 1)

    def collect(self, activations: Activations) -> None:
        """Add the text tokens of one Linear in one sample and hold back what may be selected."""
        name, layer = activations.target.name, activations.target.layer
        if layer is None or not activations.routed or activations.cross:
            super().collect(activations)
            return
        ranks, visual = self._passing[layer][activations.sample]
        text = ranks.numel() - visual
        if text == 0:
            super().collect(activations)
            return
        if activations.target.expert is not None:
            self._statistics(self._fallback, activations).update(activations.inputs)
        tokens = activations.tokens
        tokens = torch.arange(len(ranks), device=ranks.device) if tokens is None else tokens
        ranks = ranks[tokens]
        now, later = ranks < 0, (ranks >= 0) & (ranks < self._rule.most(text, visual))
        self._statistics(self._selected, activations).update(activations.inputs[now])
        self._counts.setdefault(name, []).append(int(now.sum()))
        if self._keep_indices:
            self._indices.setdefault(name, {})[activations.sample] = tokens[now].cpu()
        self._layers[name] = layer
        self._held.setdefault(name, []).append(
            _Held(
                activations.sample,
                len(self._counts[name]) - 1,
                text,
                visual,
                ranks[later].cpu(),
                tokens[later].cpu(),
                activations.inputs[later].cpu(),
            )
        )

    def settle(self, targets: Sequence[Target]) -> None:
        """Add the visual tokens, now that the means of their layers are known."""
        layers = {target.layer for target in targets if target.layer is not None}
        for layer, sums in _added_up(self._sums, layers).items():
            self._sums[layer] = sums
        for target in targets:
            self._settle(target.name)

    def _settle(self, name: str) -> None:
        held = self._held.pop(name, [])
        if not held:
            return
        mean = self.mean(self._layers[name])
        if not math.isfinite(mean):
            self._not_finite.add(name)
            return
        for tokens in held:
            picked = tokens.ranks < self._rule.kept(mean, tokens.text, tokens.visual)
            self._selected[name].update(tokens.inputs[picked])
            self._counts[name][tokens.entry] += int(picked.sum())
            if self._keep_indices:
                kept = self._indices[name]
                both = torch.cat((kept[tokens.sample], tokens.tokens[picked]))
                kept[tokens.sample] = both.sort().values


def collector_for(selection: Selection, score: Score, keep_indices: bool) -> SelectionCollector:
    """Return what collects for this rule.

    Args:
        selection: the rule.
        score: what the statistics are for.
        keep_indices: remember which tokens were selected, for the report.
    """
    if isinstance(selection, LayerSelection):
        return LayerCollector(selection, score, keep_indices)
    return SelectionCollector(selection, score, keep_indices)


def _added_up(
    local: Mapping[str, tuple[torch.Tensor, int]], layers: Collection[str]
) -> dict[str, tuple[torch.Tensor, int]]:
    """Sum and counts of some layers over all processes."""
    mine = {name: (float(local[name][0]), local[name][1]) for name in layers if name in local}
    totals: dict[str, tuple[torch.Tensor, int]] = {}
    for sums in gather(mine):
        for name, (total, count) in sums.items():
            before, number = totals.get(name, (torch.zeros((), dtype=torch.float64), 0))
            totals[name] = (before + total, number + count)
    return totals
