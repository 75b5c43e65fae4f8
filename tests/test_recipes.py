"""Every recipe in recipes/ does to the demo model what it says, and the result reloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from llmcompressor import active_session, oneshot

from tamp_modifier import TAMPModifier
from tamp_modifier.allocation.patterns import Structure
from tamp_modifier.checkpoint.marker import read_marker
from tamp_modifier.checkpoint.pack import (
    iter_dense,
    pack_checkpoint,
    read_config,
    unpack_checkpoint,
)
from tamp_modifier.demo.evaluation import calibration_dataloader, load_model
from tamp_modifier.demo.run import decoder_linears
from tamp_modifier.masks import has_structure
from tamp_modifier.zeros.remembered import pruned_bits

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("published/*.yaml")])


def modifiers_of(path: Path) -> dict[str, dict[str, Any]]:
    """Class name to fields of every modifier of a recipe, in order."""
    stages = yaml.safe_load(path.read_text()).values()
    return {
        name: fields
        for stage in stages
        for group in stage.values()
        for name, fields in group.items()
    }


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> torch.Tensor:
    """Logits of a picture and a question."""
    (batch,) = calibration_dataloader(1, seed=5)
    return model(**batch).logits


def test_a_name_says_what_one_gets() -> None:
    """Sparsity or pattern, and quantization; all but the published ones use the preset."""
    assert RECIPES
    for path in RECIPES:
        wanted = modifiers_of(path)
        fields = wanted["TAMPModifier"]
        first, *words = path.stem.split("_")
        published = path.parent.name == "published"
        assert (first == "tamp") == published
        assert fields.get("preset") == (None if published else "best")
        pattern = fields.get("mask_structure", "0:0") != "0:0"
        assert pattern == ("2of4" in words)
        if "at" in words or not pattern:
            assert str(round(100 * fields["sparsity"])) in words
        schemes = {"W8A8": "int8", "W4A16": "w4a16", "FP8_DYNAMIC": "fp8"}
        found = {schemes[given["scheme"]] for given in wanted.values() if "scheme" in given}
        assert found == {"int8", "w4a16", "fp8"} & set(words)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.slow
def test_a_recipe_does_what_it_says(path: Path, tmp_path: Path) -> None:
    wanted = modifiers_of(path)
    fields = TAMPModifier(**wanted["TAMPModifier"])
    model = load_model()
    oneshot(model=model, dataset=calibration_dataloader(2), recipe=str(path))
    run = active_session().lifecycle.recipe.modifiers
    assert [type(modifier).__name__ for modifier in run] == list(wanted)

    linears = decoder_linears(model)
    bits = {name: pruned_bits(linear) for name, linear in linears.items()}
    masks = {name: pruned.mask() for name, pruned in bits.items() if pruned is not None}
    zeros = sum(int(mask.sum()) for mask in masks.values())
    one_a_row = sum(linear.out_features for linear in linears.values())
    total = sum(linear.weight.numel() for linear in linears.values())
    assert zeros / total == pytest.approx(fields.sparsity, abs=one_a_row / total)
    structure = Structure.parse(fields.mask_structure, fields.sparsity)
    for name, linear in linears.items():
        # Where there is a budget to share out, some Linears stay dense.
        dense = not structure.is_fixed and name not in masks
        assert dense or has_structure(linear.weight, fields.mask_structure)

    logits = logits_of(model)
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    config = read_config(saved)
    assert read_marker(config) is not None
    assert ("quantization_config" in config) == (len(wanted) > 1)
    loaded = load_model(saved)
    torch.testing.assert_close(logits_of(loaded), logits, rtol=1e-3, atol=1e-3)
    reloaded = decoder_linears(loaded)
    for name, mask in masks.items():
        assert int(reloaded[name].weight[mask].count_nonzero()) == 0, name
    check_packs(saved, set(masks), tmp_path)


def check_packs(saved: Path, pruned: set[str], folder: Path) -> None:
    """The saved checkpoint packs, every pruned Linear of it, and comes back as it was."""
    stats = pack_checkpoint(saved, folder / "packed")
    # In 4 bits a Linear with few zeros would be larger packed, and stays as it is.
    four_bits = any("weight_packed" in name for name in tensors_of(saved))
    assert len(pruned) / 2 < len(stats.linears) <= len(pruned)
    assert four_bits or len(stats.linears) == len(pruned)
    unpack_checkpoint(folder / "packed", folder / "unpacked")
    before, after = (tensors_of(place) for place in (saved, folder / "unpacked"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name].float(), tensor.float()), name


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, dense."""
    return dict(iter_dense(sorted(folder.glob("*.safetensors"))))
