"""Drift selection against the rule of ATV-Pruning written plainly, and its deferred collecting."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tamp_modifier.calibration.activations import Activations, LayerStates
from tamp_modifier.calibration.collect_layer import LayerCollector, collector_for
from tamp_modifier.calibration.targets import Target
from tamp_modifier.scores import get_score
from tamp_modifier.selection import get_selection
from tamp_modifier.selection.base import visual_ranks
from tamp_modifier.selection.drift import DriftSelection

Sample = tuple[Tensor, Tensor, Tensor, Tensor]
"""Layer input, layer output, inputs of a Linear, token types."""


def samples(moved: float = 0.6, seed: int = 0) -> list[Sample]:
    """Samples of one decoder layer that moves tokens by about `moved`."""
    torch.manual_seed(seed)
    found = []
    for text, image in ((4, 12), (9, 3), (6, 30)):
        types = torch.tensor([0] * (text // 2) + [1] * image + [0] * (text - text // 2))
        x = torch.randn(len(types), 16)
        found.append((x, x + moved * torch.randn_like(x), torch.randn(len(types), 8), types))
    return found


def slow_drift(found: list[Sample], alpha: float) -> list[list[int]]:
    """Selected tokens of every sample."""
    drifts = []
    for x, y, _, types in found:
        drift = {}
        for v in (types > 0).nonzero().flatten().tolist():
            cosine = float(x[v] @ y[v]) / (float(x[v].norm()) * float(y[v].norm()))
            drift[v] = 1 - cosine
        drifts.append(drift)
    everything = [value for drift in drifts for value in drift.values()]
    mean = sum(everything) / len(everything)
    picked = []
    for (_, _, _, types), drift in zip(found, drifts, strict=True):
        text = (types == 0).nonzero().flatten().tolist()
        k = min(len(drift), round(min(1, alpha * mean) * len(text)))
        picked.append(sorted(text + sorted(drift, key=lambda v: -drift[v])[:k]))
    return picked


def collect(
    found: list[Sample], rule: DriftSelection, score: str = "wanda"
) -> tuple[LayerCollector, Target]:
    """Passes all samples through a collector as the observer does."""
    collector = LayerCollector(rule, get_score(score), keep_indices=True)
    target = Target("layer.q", nn.Linear(8, 4), "layer")
    for number, (x, y, inputs, types) in enumerate(found):
        collector.layer_done("layer", [LayerStates(number, x, y, types)])
        collector.collect(Activations(target, number, inputs, inputs, types, len(types)))
    assert collector.has_seen(target.name)
    collector.settle([target])
    return collector, target


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.5, 100.0])
@pytest.mark.parametrize("moved", [0.2, 0.6, 3.0])
def test_the_tokens_are_those_of_the_paper(moved: float, alpha: float) -> None:
    found = samples(moved)
    expected = slow_drift(found, alpha)
    collector, target = collect(found, DriftSelection(alpha))
    assert collector.indices(target.name, len(found)) == expected
    assert collector.tokens_seen(target.name) == sum(map(len, expected))
    pool = torch.cat([s[2][picked] for s, picked in zip(found, expected, strict=True)])
    statistics = collector.statistics([target], {target.name: 0})[target.name]
    assert statistics.tokens == len(pool)
    torch.testing.assert_close(statistics.result(), pool.square().mean(0))


def test_the_hessian_gets_the_same_tokens() -> None:
    found = samples()
    collector, target = collect(found, DriftSelection(), "sparsegpt")
    expected = slow_drift(found, 1.0)
    pool = torch.cat([s[2][picked] for s, picked in zip(found, expected, strict=True)])
    torch.testing.assert_close(
        collector.statistics([target], {target.name: 0})[target.name].result(),
        pool.T @ pool / len(pool),
    )


def test_zero_alpha_is_the_text_rule() -> None:
    found = samples()
    collector, target = collect(found, DriftSelection(0.0))
    text = [get_selection("text").select(s[2], s[3], None).tolist() for s in found]
    assert collector.indices(target.name, len(found)) == text


def test_a_sample_without_text_gives_all_tokens() -> None:
    found = samples()
    x, y, inputs, types = found[1]
    found[1] = (x, y, inputs, torch.full_like(types, 2))
    collector, target = collect(found, DriftSelection())
    assert collector.indices(target.name, 3)[1] == list(range(len(types)))
    assert collector.mean_selected(target.name) == collector.tokens_seen(target.name) / 3


def test_experts_get_the_selected_tokens_among_those_routed_to_them() -> None:
    found = samples()
    expected = slow_drift(found, 1.0)
    collector = LayerCollector(DriftSelection(), get_score("wanda"), keep_indices=True)
    target = Target("layer.experts.0.up", nn.Linear(8, 4), "layer", "layer.experts", 0)
    routed = [torch.arange(i, len(s[3]), 2) for i, s in enumerate(found)]
    for number, (x, y, inputs, types) in enumerate(found):
        at = routed[number]
        collector.layer_done("layer", [LayerStates(number, x, y, types)])
        collector.collect(
            Activations(target, number, inputs[at], inputs[at], types[at], len(types), tokens=at)
        )
    collector.settle([target])
    assert collector.indices(target.name, 3) == [
        [token for token in picked if token in at.tolist()]
        for picked, at in zip(expected, routed, strict=True)
    ]


def test_an_expert_without_a_selected_token_takes_all_of_its_own() -> None:
    x, y, inputs, types = samples()[0]
    least = int((visual_ranks(DriftSelection().measure(x, y), types)).argmax())
    collector = LayerCollector(DriftSelection(), get_score("wanda"), keep_indices=False)
    target = Target("layer.experts.0.up", nn.Linear(8, 4), "layer", "layer.experts", 0)
    at = torch.tensor([least])
    collector.layer_done("layer", [LayerStates(0, x, y, types)])
    collector.collect(
        Activations(target, 0, inputs[at], inputs[at], types[at], len(types), tokens=at)
    )
    collector.settle([target])
    torch.testing.assert_close(
        collector.statistics([target], {target.name: 0})[target.name].result(),
        inputs[least].square(),
    )


def test_states_that_are_not_finite_are_told() -> None:
    found = samples()
    found[1][1][3, 0] = math.nan
    types = found[1][3]
    assert int(types[4]) == 1
    found[1][1][4, 0] = math.nan
    collector, target = collect(found, DriftSelection())
    assert not collector.is_finite(target.name)


def test_ranks_are_by_descending_drift_and_by_index() -> None:
    types = torch.tensor([1, 0, 2, 1, 3, 0])
    drift = torch.tensor([0.1, 9.0, 0.5, 0.1, 0.7, 9.0])
    assert visual_ranks(drift, types).tolist() == [2, -1, 1, 3, 0, -1]


def test_rules_that_look_at_whole_layers_get_a_collector_of_their_own() -> None:
    wanda = get_score("wanda")
    found = {
        name: isinstance(collector_for(get_selection(name), wanda, False), LayerCollector)
        for name in ("amia", "all", "text", "balanced", "drift")
    }
    assert found == {name: get_selection(name).needs_states for name in found}
    assert [name for name, own in found.items() if own] == ["drift"]


def test_no_more_is_held_back_than_can_be_kept() -> None:
    for alpha in (0.0, 0.5, 3.0):
        rule = DriftSelection(alpha)
        for text, visual in ((0, 4), (3, 9), (9, 3)):
            kept = [rule.kept(mean, text, visual) for mean in (0.0, 0.3, 1.0, 2.0)]
            assert max(kept) <= rule.most(text, visual)
            assert alpha == 0 or rule.kept(math.inf, text, visual) == rule.most(text, visual)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha must be finite and >= 0, got -1"):
        get_selection("drift", alpha=-1)
    with pytest.raises(ValueError, match="selection 'drift' has no option 'beta'.* are alpha"):
        get_selection("drift", beta=1)
