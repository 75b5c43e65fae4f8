"""What the fields of TAMPModifier amount to, found once and without changing the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tamp_modifier import TAMPModifier
from tamp_modifier.allocation.das import DAS
from tamp_modifier.pruning.checks import missing_attention, not_finite, unseen
from tamp_modifier.pruning.decide import allocate, allocate_before, importance
from tamp_modifier.pruning.settings import Rules, Settings
from tamp_modifier.selection.amia import AMIASelection
from tamp_modifier.selection.by_modality import AllTokens
from tamp_modifier.selection.drift import DriftSelection
from tests.architectures.models import build


def rules(**fields: Any) -> Rules:
    return Rules.of(TAMPModifier(**fields))


def settings(name: str = "llava_llama", **fields: Any) -> Settings:
    return Settings.resolve(TAMPModifier(**fields), build(name)[0])


def test_the_cap_follows_the_rule_unless_given() -> None:
    assert rules().cap == 0.6
    assert rules(allocation="owl").cap == 1.0
    assert rules(allocation="owl", max_sparsity=0.55).cap == 0.55


def test_options_reach_the_rules() -> None:
    drift = rules(selection="drift", selection_options={"alpha": 1.5}).selection
    assert isinstance(drift, DriftSelection) and drift.alpha == 1.5
    amia = rules(selection_options={"num_neighbors": 5, "positive_only": True}).selection
    assert isinstance(amia, AMIASelection)
    assert (amia.num_neighbors, amia.threshold, amia.positive_only) == (5, 0.1, True)
    das = rules(allocation_options={"numel_power": 0.5, "positive_only": True}).allocation
    assert das == DAS(numel_power=0.5, positive_only=True)


def test_a_score_that_looks_at_no_token_takes_the_cheapest_selection() -> None:
    assert isinstance(rules(score="magnitude").selection, AllTokens)
    assert isinstance(rules(score="sparsegpt").selection, AMIASelection)


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ({}, 3),
        ({"allocation": "owl"}, 3),
        ({"allocation": "atp"}, 2),
        ({"allocation": "uniform"}, 2),
        ({"allocation": {"a": 0.5}}, 2),
        ({"mask_structure": "2:4"}, 2),
        ({"mask_structure": "2:4", "permute_columns": True}, 3),
        ({"mask_structure": "2:4", "sparsity": 0.4, "permute_columns": True}, 4),
        ({"one_pass": True}, 1),
    ],
)
def test_the_passes_are_those_that_the_rules_need(fields: dict[str, Any], passes: int) -> None:
    assert rules(**fields).passes == passes


def test_a_model_without_weights_is_enough() -> None:
    model, _, expected = build("llava_llama")
    found = Settings.resolve(TAMPModifier(ignore="re:.*q_proj"), model.to("meta"))
    wanted = [name for name in expected.targets if "q_proj" not in name]
    assert [target.name for target in found.targets] == wanted
    assert list(found.numel) == wanted and len(found.layers) == 2
    assert found.told["ignore"] == "re:.*q_proj"


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, False),
        ({"report_path": "r.json"}, True),
        ({"keep_indices": True}, True),
        ({"report_path": "r.json", "keep_indices": False}, False),
        ({"report_path": "r.json", "selection": "balanced"}, True),
        # All tokens of all samples: nothing to list.
        ({"report_path": "r.json", "selection": "all"}, False),
        ({"report_path": "r.json", "score": "magnitude"}, False),
    ],
)
def test_selected_tokens_are_listed_where_asked(fields: dict[str, Any], kept: bool) -> None:
    assert settings(**fields).keep_indices is kept


def test_columns_are_free_only_where_they_are_permuted() -> None:
    assert not settings(mask_structure="2:4").free_columns
    found = settings(mask_structure="2:4", permute_columns=True).free_columns
    assert {free.reader.name.rpartition(".")[2] for free in found} <= {"down_proj", "o_proj"}
    assert found
    with pytest.raises(ValueError, match="finds no Linear whose columns may change places"):
        settings(mask_structure="2:4", permute_columns=True, targets=["re:.*q_proj"])


def test_what_needs_no_dense_pass_is_decided_before() -> None:
    assert allocate_before(settings()) is None
    for fields in ({"allocation": "uniform"}, {"mask_structure": "2:4"}):
        found = allocate_before(settings(**fields))
        assert found is not None and set(found.sparsities.values()) == {0.5}
    with pytest.raises(ValueError, match="allocation gives no sparsity for"):
        allocate_before(settings(allocation={"model.nothing": 0.5}))


def test_the_importance_of_a_line_is_the_depth() -> None:
    found = settings(allocation="atp")
    assert set(importance(found, None).values()) == {0.0, 1.0}
    assert set(importance(settings(allocation="uniform"), None)) == set()
    by_layer = [
        {share for name, share in allocate(found).sparsities.items() if f"layers.{i}." in name}
        for i in range(2)
    ]
    assert max(by_layer[0]) < min(by_layer[1])


def test_late_refusals_return_their_message() -> None:
    names = ["a", "b", "c"]
    assert unseen(names, lambda name: True) is None
    assert not_finite(names, lambda name: True) is None
    assert missing_attention([]) is None
    assert str(unseen(iter(names), lambda name: name == "a")).startswith("2 target Linears saw no")
    assert "not finite, nothing was pruned: b" in str(not_finite(names, lambda name: name != "b"))
    assert missing_attention(["z", "y"], ", so") == (
        "2 decoder layers give no attention weights, so: y, z"
    )


def test_resolving_changes_nothing() -> None:
    model, _, _ = build("llava_llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Settings.resolve(TAMPModifier(mask_structure="2:4", permute_columns=True), model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
