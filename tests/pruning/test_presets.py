"""Presets of TAMPModifier."""

from __future__ import annotations

import pytest

from tamp_modifier import TAMPModifier
from tamp_modifier.pruning.presets import PRESETS


def values(modifier: TAMPModifier) -> dict:
    """Fields that a preset may set."""
    names = {name for preset in PRESETS.values() for name in preset}
    return {name: getattr(modifier, name) for name in names}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_the_fields_that_are_not_given(name: str) -> None:
    modifier = TAMPModifier(preset=name, sparsity=0.6)
    for field, value in PRESETS[name].items():
        assert getattr(modifier, field) == value
    assert modifier.sparsity == 0.6


def test_without_a_preset_it_is_the_published_method() -> None:
    modifier = TAMPModifier()
    assert modifier.preset is None
    assert (modifier.allocation, modifier.selection, modifier.score) == ("das", "amia", "wanda")
    assert modifier.score_options == modifier.allocation_options == {}


def test_given_fields_win() -> None:
    modifier = TAMPModifier(preset="best", selection="text", score_options={"refit": 2})
    assert modifier.selection == "text"
    assert modifier.score == PRESETS["best"]["score"]


def test_options_that_are_given_win_one_by_one() -> None:
    modifier = TAMPModifier(preset="best", score_options={"refit": 2})
    assert modifier.score_options == {**PRESETS["best"]["score_options"], "refit": 2}
    assert TAMPModifier(preset="best").score_options == PRESETS["best"]["score_options"]
    alone = TAMPModifier(score="sparsegpt", score_options={"damping": 0.1})
    assert alone.score_options == {"damping": 0.1}


@pytest.mark.parametrize("field", ["score_options", "selection_options", "allocation_options"])
def test_no_options_are_none_given(field: str) -> None:
    given: dict = {field: {}}
    assert values(TAMPModifier(preset="best", **given)) == values(TAMPModifier(preset="best"))


def test_options_of_a_rule_that_was_replaced_are_left_out() -> None:
    modifier = TAMPModifier(preset="best", score="wanda", allocation="uniform")
    assert modifier.score_options == modifier.allocation_options == {}
    assert modifier.selection == PRESETS["best"]["selection"]


def test_a_saved_recipe_means_the_same() -> None:
    modifier = TAMPModifier(preset="best", allocation="owl")
    again = TAMPModifier(**modifier.model_dump(exclude={"token_types_fn"}))
    assert values(again) == values(modifier)


def test_changing_a_modifier_leaves_the_preset_alone() -> None:
    TAMPModifier(preset="best").score_options["refit"] = 99
    assert TAMPModifier(preset="best").score_options["refit"] != 99


@pytest.mark.parametrize("option", ["beta", "share", "rise"])
def test_a_line_that_is_given_replaces_the_preset_s(option: str) -> None:
    modifier = TAMPModifier(preset="best", allocation_options={option: 0.001})
    assert modifier.allocation_options == {option: 0.001}


@pytest.mark.parametrize("preset", ["", "fastest", 3])
def test_an_unknown_preset_is_refused(preset: object) -> None:
    with pytest.raises(ValueError, match="preset must be one of best, got"):
        TAMPModifier(preset=preset)
