"""GPTQ whose weights are fitted to the outputs afterwards."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier

from tamp_modifier import FittedGPTQModifier
from tests.architectures.models import build
from tests.running import int4, prune

pytestmark = pytest.mark.slow


def first_error(model: Any, dense: Any, batches: list[Any]) -> float:
    """Of the outputs of the first layer's q_proj, whose inputs quantization does not change."""
    name = next(n for n, _ in dense.named_modules() if n.endswith("0.self_attn.q_proj"))
    seen: list[torch.Tensor] = []
    hook = dense.get_submodule(name).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].flatten(0, -2))
    )
    with torch.no_grad():
        for batch in batches:
            dense(**batch)
    hook.remove()
    with torch.no_grad():
        difference = dense.get_submodule(name).weight - model.get_submodule(name).weight
        return float((torch.cat(seen) @ difference.T).square().sum())


@pytest.mark.parametrize(
    "weights", [{}, {"symmetric": False}, {"strategy": "channel", "group_size": None}], ids=str
)
def test_the_outputs_are_nearer_than_those_of_gptq(weights: dict[str, Any], tmp_path: Path) -> None:
    dense, batches, _ = build("llama_text")
    errors = []
    for modifier in (GPTQModifier(**int4(**weights)), FittedGPTQModifier(**int4(**weights))):
        model = copy.deepcopy(dense)
        prune(model, batches, modifier, tmp_path)
        errors.append(first_error(model, dense, batches))
    assert 0 < errors[1] < 0.95 * errors[0]


def test_a_recipe_in_yaml_knows_it_by_name(tmp_path: Path) -> None:
    recipe = """
quantization_stage:
  quantization_modifiers:
    FittedGPTQModifier:
      rounds: 2
      targets: [Linear]
      scheme: W8A8
      ignore: ["re:.*lm_head$"]
"""
    model, batches, _ = build("llama_text")
    prune(model, batches, recipe, tmp_path)
    linear = model.get_submodule("model.layers.0.mlp.up_proj")
    assert linear.quantization_scheme.weights.num_bits == 8
    codes = linear.weight / linear.weight_scale
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (
            {"type": "float", "num_bits": 8, "strategy": "channel", "group_size": None},
            "q_proj has float by channel",
        ),
        ({"strategy": "tensor", "group_size": None}, "q_proj has int by tensor"),
        ({"actorder": "group"}, "q_proj has actorder 'group'"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_any_work(
    weights: dict[str, Any], told: str, tmp_path: Path
) -> None:
    model, batches, _ = build("llama_text")
    before = copy.deepcopy(model.state_dict())
    order = weights.pop("actorder", "static")
    modifier = FittedGPTQModifier(actorder=order, **int4(**weights))
    with pytest.raises(ValueError, match=told):
        prune(model, batches, modifier, tmp_path)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_linears_of_another_quantizer_are_not_its_business(tmp_path: Path) -> None:
    model, batches, _ = build("llama_text")
    floats = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    attention = {"targets": ["re:.*self_attn.*"], "weights": floats}
    others = {"targets": ["re:.*mlp.*"], "weights": int4()["config_groups"]["group_0"]["weights"]}
    recipe = [
        QuantizationModifier(config_groups={"group_0": attention}),
        FittedGPTQModifier(config_groups={"group_0": others}),
    ]
    prune(model, batches, recipe, tmp_path)
    layer = model.model.layers[0]
    assert layer.self_attn.q_proj.quantization_scheme.weights.type == "float"
    codes = layer.mlp.up_proj.weight / layer.mlp.up_proj.weight_scale.repeat_interleave(16, 1)
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("damping", [0.01, 0.0])
def test_a_linear_with_an_input_that_is_always_zero_is_fitted(
    damping: float, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    dense, batches, _ = build("llama_text")
    dense.model.layers[0].input_layernorm.weight.data[3] = 0
    errors = []
    for kind in (GPTQModifier, FittedGPTQModifier):
        model = copy.deepcopy(dense)
        prune(model, batches, kind(dampening_frac=damping, **int4()), tmp_path)
        errors.append(first_error(model, dense, batches))
    assert 0 < errors[1] < 0.95 * errors[0]
    assert not [warning for warning in recwarn if "is not fitted" in str(warning.message)]


def test_rounds_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="rounds"):
        FittedGPTQModifier(rounds=0, targets=["Linear"], scheme="W4A16")
