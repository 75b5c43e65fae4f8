"""Rounding in training is the rounding of the quantizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from torch import nn
from torch.nn.utils import parametrize
from transformers import LlamaConfig, LlamaForCausalLM

from tamp_modifier.demo.processing import build_tokenizer
from tamp_modifier.recovery.grid import Rounded


@pytest.fixture
def model(tmp_path: Path) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight[torch.rand_like(module.weight) < 0.5] = 0
        model.model.layers[0].mlp.up_proj.weight[3] = 0  # a row without a scale
    model.save_pretrained(tmp_path)  # llm-compressor looks at the folder's config
    return LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8"])
def test_the_grid_is_that_of_llm_compressor(model: LlamaForCausalLM, scheme: str) -> None:
    wanted = {
        name: Rounded(scheme).round(module.weight.detach())
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
    oneshot(model=model, processor=build_tokenizer(), recipe=recipe, pipeline="datafree")
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    for name, rounded in wanted.items():
        module = model.get_submodule(name)
        arguments = module.quantization_scheme.weights
        zero = getattr(module, "weight_zero_point", None)
        found = fake_quantize(module.weight, module.weight_scale, zero, arguments)
        torch.testing.assert_close(found, rounded, atol=1e-6, rtol=1e-5)
        assert torch.equal(found == 0, rounded == 0)


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8"])
def test_gradients_pass_and_zeros_stay(scheme: str) -> None:
    linear = nn.Linear(256, 8, bias=False)
    with torch.no_grad():
        linear.weight[:, ::2] = 0
    weight = linear.weight
    parametrize.register_parametrization(linear, "weight", Rounded(scheme))
    x = torch.randn(3, 256)
    linear(x).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(8, -1))
    assert not linear.weight[:, ::2].any() and linear.weight[:, 1::2].any()
    levels = 16 if scheme == "W4A16" else 256
    assert len(linear.weight[0, :128].unique()) <= levels
    parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
    assert linear.weight.data_ptr() == weight.data_ptr()


def test_what_cannot_be_rounded_is_refused() -> None:
    with pytest.raises(ValueError, match="scheme is 'W2A16', allowed are W4A16 and W8A8"):
        Rounded("W2A16")
    with pytest.raises(ValueError, match="multiple of 128 columns, the weight has 96"):
        Rounded("W4A16").round(torch.zeros(4, 96))
