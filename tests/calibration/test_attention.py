"""Attention from the last real token."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import nn

from tamp_modifier.calibration.attention import (
    attention_weights_from_output,
    find_attention_module,
    last_token_attention,
)
from tests.architectures.models import ARCHITECTURES, TEXT, build, eager

HEADS = 4


def decoder_layers(model: nn.Module, class_name: str) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ == class_name]


@pytest.mark.parametrize("padded", [False, True], ids=["single", "padded"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gives_the_attention_of_its_last_real_token(
    name: str, padded: bool
) -> None:
    model, batches, expected = build(name, padded)
    types = expected.token_types[0]
    seen: list[torch.Tensor] = []
    without = 0
    for layer in decoder_layers(model, expected.decoder_layer):
        attention = find_attention_module(layer)
        if attention is None:
            without += 1
            continue
        attention.register_forward_hook(
            lambda _module, _args, output: seen.append(attention_weights_from_output(output))
        )
    with eager(model):
        model(**batches[0])

    assert len(seen) + without == 2
    assert without == (1 if name == "qwen3_next" else 0)
    batch, length = types.shape
    for weights in seen:
        assert weights.shape == (batch, HEADS, length, length)
        rows = last_token_attention(weights, types >= 0)
        for row, sample in zip(rows, types, strict=True):
            assert row.shape == ((sample >= 0).sum(),)
            assert row.dtype == torch.float32
            # Nothing of it goes to padding.
            torch.testing.assert_close(row.sum(), torch.tensor(1.0))


HYBRIDS = {
    "jamba": lambda: tf.JambaForCausalLM(
        tf.JambaConfig(
            **TEXT,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=4,
            expert_layer_offset=3,
            mamba_d_state=4,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        )
    ),
    "bamba": lambda: tf.BambaForCausalLM(
        tf.BambaConfig(
            **TEXT,
            attn_layer_indices=[1],
            mamba_n_heads=8,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_n_groups=1,
        )
    ),
    "qwen3_5": lambda: tf.Qwen3_5ForCausalLM(
        tf.Qwen3_5TextConfig(
            **TEXT,
            head_dim=8,
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        )
    ),
}


@pytest.mark.parametrize("name", HYBRIDS)
def test_mamba_and_linear_attention_layers_have_no_attention_module(name: str) -> None:
    model = HYBRIDS[name]()
    found = [find_attention_module(layer) for layer in model.model.layers]
    assert found[0] is None
    assert type(found[1]).__name__.endswith("Attention")


@pytest.mark.parametrize(
    ("model_class", "attention"),
    [
        (tf.MiniMaxForCausalLM, "MiniMaxAttention"),  # the others have lightning attention
        (tf.KimiLinearForCausalLM, "KimiLinearAttention"),  # delta attention with a q_proj
        (tf.OlmoHybridForCausalLM, "OlmoHybridAttention"),  # Gated DeltaNet with a q_proj
        (tf.RecurrentGemmaForCausalLM, "RecurrentGemmaAttention"),
        (tf.MllamaForCausalLM, "MllamaTextSelfAttention"),  # cross-attention
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_released_hybrids_have_attention_in_some_layers(
    model_class: type[nn.Module], attention: str
) -> None:
    with torch.device("meta"):
        model = model_class(model_class.config_class())
    found = [find_attention_module(layer) for layer in model.model.layers]
    assert {type(module).__name__ for module in found} == {attention, "NoneType"}


class _Mixer(nn.Module):
    """A token mixer with projections of the given names."""

    def __init__(self, *projections: str, **parts: nn.Module) -> None:
        super().__init__()
        for name in projections:
            self.add_module(name, nn.Linear(4, 4))
        for name, part in parts.items():
            self.add_module(name, part)


class _GatedDeltaNet(_Mixer):
    pass


class _CrossAttention(_Mixer):
    pass


@pytest.mark.parametrize(
    "projections",
    [
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        ("q_proj", "o_proj"),
        ("qkv_proj", "o_proj"),
        ("query_key_value", "dense"),
        ("Wqkv", "out_proj"),
        ("c_attn", "c_proj"),
        ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    ],
)
def test_attention_is_known_by_its_query_projection(projections: tuple[str, ...]) -> None:
    attention = _Mixer(*projections)
    layer = nn.ModuleDict({"norm": nn.LayerNorm(4), "mixer": attention, "mlp": _Mixer("up_proj")})
    assert find_attention_module(layer) is attention


@pytest.mark.parametrize(
    "mixer",
    [
        _GatedDeltaNet("q_proj", "k_proj", "v_proj", "o_proj"),
        _Mixer("q_proj", "k_proj", "v_proj", conv1d=nn.Conv1d(4, 4, 3)),
        _Mixer("in_proj", "out_proj"),
        _CrossAttention("q_proj", "k_proj", "v_proj", "o_proj"),
    ],
    ids=["delta-net", "convolution", "mamba", "cross-attention"],
)
def test_other_mixers_are_no_attention(mixer: nn.Module) -> None:
    assert find_attention_module(nn.ModuleDict({"mixer": mixer, "mlp": _Mixer("up_proj")})) is None
    # Nor do they hide the attention of a layer that has both.
    attention = _Mixer("q_proj", "k_proj", "v_proj", "o_proj")
    both = nn.ModuleDict({"mixer": mixer, "self_attn": attention})
    assert find_attention_module(both) is attention


def _weights(batch: int = 2, heads: int = 3, length: int = 5) -> torch.Tensor:
    causal = torch.ones(length, length).tril().bool()
    scores = torch.randn(batch, heads, length, length).masked_fill(~causal, float("-inf"))
    return scores.softmax(-1)


def test_weights_are_found_wherever_they_stand_in_the_output() -> None:
    weights = _weights()
    hidden = torch.randn(2, 5, 8)
    states = torch.randn(2, 3, 5, 5)  # keys whose head size is the sequence length
    for output in (
        (hidden, weights),
        (hidden, None, weights),
        (hidden, states, weights),
        [hidden, weights],
    ):
        assert attention_weights_from_output(output) is weights


def test_weights_with_attention_sinks_and_broken_weights_are_found() -> None:
    weights = _weights()
    assert attention_weights_from_output((None, weights * 0.7)) is not None
    weights[0, 0, -1, 0] = float("nan")
    assert attention_weights_from_output((None, weights)) is weights


@pytest.mark.parametrize(
    "output",
    [
        None,
        torch.randn(2, 5, 8),
        (torch.randn(2, 5, 8), None),
        (torch.randn(2, 5, 8),),
        (torch.randn(2, 5, 8), torch.randn(2, 3, 5, 5)),
        (torch.randn(2, 5, 8), torch.rand(2, 3, 5, 7).softmax(-1)),
        (torch.randn(2, 5, 8), torch.ones(2, 3, 5, 5, dtype=torch.bool)),
    ],
)
def test_outputs_without_weights_give_none(output: object) -> None:
    assert attention_weights_from_output(output) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_real_row_counts_on_either_side_of_padding(dtype: torch.dtype) -> None:
    weights = _weights(batch=3).to(dtype)
    real = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    whole, left, right = last_token_attention(weights, real)
    mean = weights.float().mean(1)
    torch.testing.assert_close(whole, mean[0, 4])
    torch.testing.assert_close(left, mean[1, 4, 2:])
    torch.testing.assert_close(right, mean[2, 2, :3])
    assert {row.dtype for row in (whole, left, right)} == {torch.float32}


def test_a_sample_without_a_real_token_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="sample 1 .* no real token"):
        last_token_attention(_weights(), torch.tensor([[True] * 5, [False] * 5]))
    with pytest.raises(ValueError, match="weights must be"):
        last_token_attention(_weights(), torch.ones(2, 4, dtype=torch.bool))
