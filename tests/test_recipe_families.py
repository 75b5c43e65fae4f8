"""The recipes that quantize fit every family: the text decoder, and nothing else, is compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CompressedTensorsConfig

from tamp_modifier.masks import has_structure
from tests.architectures.models import build
from tests.running import prune
from tests.test_recipes import modifiers_of

FOLDER = Path(__file__).parent.parent / "recipes"
FAMILIES = (
    "llava_llama",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "gemma3",
    "internvl",
    "qwen2_5_omni",
)
# Names differ most among these; SmoothQuant's pairs have to be found in all.
CASES = [("best_50_int8", family) for family in FAMILIES] + [
    (recipe, family)
    for recipe in ("best_2of4_fp8", "best_50_w4a16")
    for family in ("qwen2_5_vl", "gemma3", "internvl", "qwen2_5_omni")
]
OWN = {"best_50_int8": {"gemma3": "gemma/best_50_int8"}}
"""Recipe -> family that has one of its own."""

GROUPS_OF_16 = (
    "targets: [Linear]\n      scheme: W4A16",
    "config_groups: {group_0: {targets: [Linear], weights: "
    "{num_bits: 4, type: int, symmetric: true, strategy: group, group_size: 16}}}",
)
"""A text of a recipe, and what it is replaced by."""


def test_the_readme_names_every_recipe_and_the_layer_of_every_family() -> None:
    readme = (FOLDER / "README.md").read_text()
    for path in FOLDER.rglob("*.yaml"):
        assert f"`{path.relative_to(FOLDER)}`" in readme
    for family in FAMILIES:
        assert f"`{build(family)[2].decoder_layer}`" in readme


def dense(model: torch.nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    return {name: model.get_submodule(name).weight.detach().float() for name in names}


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "family"), CASES)
def test_a_recipe_compresses_the_decoder_and_reloads(
    recipe: str, family: str, tmp_path: Path
) -> None:
    path = FOLDER / f"{OWN.get(recipe, {}).get(family, recipe)}.yaml"
    fields = modifiers_of(path)["TAMPModifier"]
    # Groups of 128 do not fit the tiny model.
    text = path.read_text().replace(*GROUPS_OF_16)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    model, batches, expected = build(family)
    prune(model, batches, str(path), tmp_path, sequential_targets=[expected.decoder_layer])
    weights = dense(model, expected.targets)
    zeros = sum(float((weight == 0).sum()) for weight in weights.values())
    assert zeros / sum(weight.numel() for weight in weights.values()) >= 0.49
    if "mask_structure" in fields:
        assert all(has_structure(w, fields["mask_structure"]) for w in weights.values())
    quantized = {n for n, m in model.named_modules() if hasattr(m, "quantization_scheme")}
    assert {n for n in quantized if isinstance(model.get_submodule(n), torch.nn.Linear)} == set(
        expected.targets
    )
    with torch.no_grad():
        logits = model(**batches[0]).logits
    assert bool(logits.isfinite().all())
    model.save_pretrained(tmp_path / "saved")

    load: Any = type(model).from_pretrained
    again = load(tmp_path / "saved", quantization_config=CompressedTensorsConfig(dequantize=True))
    for name, weight in dense(again, expected.targets).items():
        assert bool((weight[weights[name] == 0] == 0).all()), name
    served = load(tmp_path / "saved").eval()
    with torch.no_grad():
        found = served(**batches[0]).logits
    torch.testing.assert_close(found.float(), logits.float(), rtol=1e-3, atol=1e-3)
