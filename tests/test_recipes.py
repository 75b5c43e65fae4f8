"""Every recipe in recipes/ prunes the model in the box to the sparsity that it asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from llmcompressor import oneshot

from tamp_modifier import TAMPModifier
from tamp_modifier.demo.evaluation import calibration_dataloader, load_model
from tamp_modifier.demo.run import decoder_linears, sparsity_of
from tamp_modifier.masks import has_structure
from tamp_modifier.patterns import Structure

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_does_what_it_says(path: Path) -> None:
    (stage,) = yaml.safe_load(path.read_text()).values()
    (modifiers,) = stage.values()
    fields = TAMPModifier(**modifiers["TAMPModifier"])
    model = load_model()
    oneshot(model=model, dataset=calibration_dataloader(2), recipe=str(path))
    linears = decoder_linears(model)
    one_a_row = sum(linear.out_features for linear in linears.values())
    total = sum(linear.weight.numel() for linear in linears.values())
    assert sparsity_of(model) == pytest.approx(fields.sparsity, abs=one_a_row / total)
    structure = Structure.parse(fields.mask_structure, fields.sparsity)
    for linear in linears.values():
        # Where there is a budget to share out, some Linears stay dense.
        dense = not structure.is_fixed and bool(linear.weight.all())
        assert dense or has_structure(linear.weight, fields.mask_structure)
