"""Experts come back from a saved checkpoint as they were pruned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors.torch import load_file

from tamp_modifier import TAMPModifier
from tamp_modifier.upstream.experts import expert_containers, experts_as_read
from tests.running import prune

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PER_TOKEN: dict[str, Any] = {"num_experts_per_tok": 2}
LAYERS = ["sliding_attention", "full_attention"]


def mixtral() -> Any:
    return tf.MixtralForCausalLM(tf.MixtralConfig(**SIZES, **PER_TOKEN, num_local_experts=4))


def qwen3_moe() -> Any:
    fields = {"num_experts": 4, "head_dim": 8, "moe_intermediate_size": 16}
    return tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**SIZES, **PER_TOKEN, **fields))


def gpt_oss() -> Any:
    """Gate and up in turn, transposed, with biases."""
    fields = {"num_local_experts": 4, "head_dim": 8, "sliding_window": 6, "layer_types": LAYERS}
    model = tf.GptOssForCausalLM(tf.GptOssConfig(**SIZES, **PER_TOKEN, **fields))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def granite() -> Any:
    return tf.GraniteMoeForCausalLM(tf.GraniteMoeConfig(**SIZES, **PER_TOKEN, num_local_experts=4))


def lfm2() -> Any:
    fields = {
        "layer_types": ["conv", "full_attention"],
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "num_dense_layers": 1,
    }
    return tf.Lfm2MoeForCausalLM(tf.Lfm2MoeConfig(**SIZES, **PER_TOKEN, **fields))


def phimoe() -> Any:
    return tf.PhimoeForCausalLM(tf.PhimoeConfig(**SIZES, **PER_TOKEN, num_local_experts=4))


def minimax() -> Any:
    fields = {
        "num_local_experts": 4,
        "layer_types": ["linear_attention", "full_attention"],
        "block_size": 4,
    }
    return tf.MiniMaxForCausalLM(tf.MiniMaxConfig(**SIZES, **PER_TOKEN, **fields))


def gemma4() -> Any:
    fields = {
        "head_dim": 8,
        "global_head_dim": 8,
        "sliding_window": 6,
        "layer_types": LAYERS,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 128,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    }
    return tf.Gemma4ForCausalLM(tf.Gemma4TextConfig(**SIZES, **fields))


def deepseek() -> Any:
    fields = {
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    }
    return tf.DeepseekV3ForCausalLM(tf.DeepseekV3Config(**SIZES | PER_TOKEN | fields))


def llama4() -> Any:
    """Transposed, and behind a vision tower: only the text is asked here."""
    tower = {
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "vision_output_dim": 16,
        "projector_input_dim": 16,
        "projector_output_dim": 16,
    }
    text = SIZES | {
        "num_hidden_layers": 4,
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 8,
    }
    config = tf.Llama4Config(
        vision_config=tower, text_config=text, image_token_index=120, boi_token_index=123,
        eoi_token_index=124,
    )  # fmt: skip
    return tf.Llama4ForConditionalGeneration(config)


MODELS = [
    mixtral, qwen3_moe, gpt_oss, granite, lfm2, phimoe, minimax, gemma4, deepseek, llama4
]  # fmt: skip


def batches() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": torch.randint(3, 100, (1, length))} for length in (60, 40, 80, 70)]


def loaded(make: Callable[[], Any], folder: Path) -> Any:
    """The model as `from_pretrained` gives it."""
    model = make().eval()
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: Any, data: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([model(**batch).logits.flatten() for batch in data])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "from_file"),
    [*((make, True) for make in MODELS), *((make, False) for make in (mixtral, gpt_oss, llama4))],
)
def test_reloading_gives_the_logits_of_the_pruned_model(
    make: Callable[[], Any], from_file: bool, tmp_path: Path
) -> None:
    model = loaded(make, tmp_path / "dense") if from_file else make().eval()
    data = batches()
    dense = logits(model, data)
    recipe = TAMPModifier(sparsity=0.5, mask_structure="2:4", selection="all")
    prune(model, data, recipe, tmp_path / "config", output_dir=str(tmp_path / "pruned"))
    pruned = logits(model, data)
    again = type(model).from_pretrained(tmp_path / "pruned", dtype=torch.float32).eval()
    assert not torch.allclose(dense, pruned, atol=0.1)
    torch.testing.assert_close(logits(again, data), pruned, atol=1e-5, rtol=0)
    experts = [p for n, p in again.named_parameters() if "experts.down_proj" in n and p.dim() == 3]
    assert all(int((p == 0).sum()) * 2 == p.numel() for p in experts) and experts


@pytest.mark.parametrize("make", [mixtral, gpt_oss])
def test_a_second_save_is_the_same_and_the_model_stays_as_it_is(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    model = loaded(make, tmp_path / "dense")
    data = batches()
    prune(model, data, TAMPModifier(sparsity=0.5, selection="all"), tmp_path / "config")
    before, containers = logits(model, data), expert_containers(model)
    for name in ("one", "two"):
        model.save_pretrained(tmp_path / name)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)
    assert expert_containers(model) == containers
    # Not to the last bit: how a product is split over threads depends on how busy the machine is.
    torch.testing.assert_close(logits(model, data), before, atol=1e-5, rtol=0)


def test_the_experts_are_back_after_an_error(tmp_path: Path) -> None:
    model = loaded(mixtral, tmp_path / "dense")
    prune(model, batches(), TAMPModifier(sparsity=0.5, selection="all"), tmp_path / "config")
    containers = expert_containers(model)
    with pytest.raises(KeyError), experts_as_read(model):
        assert not expert_containers(model)
        raise KeyError
    assert expert_containers(model) == containers


def w4a16() -> QuantizationModifier:
    weights = QuantizationArgs(num_bits=4, group_size=16, strategy="group", symmetric=True)
    groups = {"all": QuantizationScheme(targets=["Linear"], weights=weights)}
    return QuantizationModifier(config_groups=groups, ignore=["lm_head"])


@pytest.mark.slow
@pytest.mark.parametrize("make", [mixtral, qwen3_moe])
def test_quantized_experts_are_read_where_each_has_its_own_tensors(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    model, data = loaded(make, tmp_path / "dense"), batches()
    recipe = [TAMPModifier(sparsity=0.5, selection="all"), w4a16()]
    prune(model, data, recipe, tmp_path / "config", output_dir=str(tmp_path / "out"))
    expected = logits(model, data)
    again = type(model).from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(again, data), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("make", "quantize", "why"),
    [
        (gpt_oss, w4a16, "keep all experts of a layer in one tensor"),
        (
            mixtral,
            lambda: QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]),
            "reads no experts with integer activations",
        ),
    ],
)
def test_experts_that_could_not_be_read_again_are_refused_before_pruning(
    make: Callable[[], Any], quantize: Callable[[], Any], why: str, tmp_path: Path
) -> None:
    model = loaded(make, tmp_path / "dense")
    recipe = [TAMPModifier(sparsity=0.5, selection="all"), quantize()]
    with pytest.raises(ValueError, match=why):
        prune(model, batches(), recipe, tmp_path / "config")
    weights = [p for n, p in model.named_parameters() if "experts" in n and p.dim() == 2]
    assert all(bool((weight != 0).all()) for weight in weights if weight.numel())
