"""Fused experts that llm-compressor does not know are pruned, or it is told that they are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from loguru import logger
from transformers.models.aria.configuration_aria import AriaTextConfig
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig

from tamp_modifier import TAMPModifier
from tamp_modifier.report import PruningReport
from tests.architectures.inputs import IMAGE_ID, VOCABULARY
from tests.architectures.tiny import TEXT, TOWER
from tests.running import prune
from tests.upstream.test_experts import batches, loaded, logits


def aria() -> Any:
    """A grouped GEMM, transposed, that gets its tokens sorted by expert."""
    text = AriaTextConfig(**TEXT, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
    config = tf.AriaConfig(
        text_config=text,
        vision_config={**TOWER, "image_size": 16, "model_type": "idefics3_vision"},
        vision_feature_layer=-1,
        projector_patch_to_query_dict={16: 4},
        image_token_index=IMAGE_ID,
    )
    return tf.AriaForConditionalGeneration(config)


def step3() -> Any:
    """The usual layout without the decorator that llm-compressor looks for, and a limit."""
    text = Step3p7TextConfig(
        **TEXT,
        head_dim=8,
        moe_intermediate_size=16,
        share_expert_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=6,
        mlp_layer_types=["sparse"] * 2,
        swiglu_limits=[0.5, 0.0],
    )
    tower = {"width": 16, "layers": 1, "heads": 2, "patch_size": 4, "image_size": 16}
    config = tf.Step3p7Config(text_config=text, vision_config=tower, image_token_id=IMAGE_ID)
    return tf.Step3p7ForConditionalGeneration(config)


def jetmoe() -> Any:
    """Experts of the attention and the MLP in tensors of three dimensions: not known."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48}
    config = tf.JetMoeConfig(
        **sizes, num_hidden_layers=2, num_key_value_heads=2, kv_channels=8, num_local_experts=4
    )
    return tf.JetMoeForCausalLM(config)


@pytest.mark.slow
@pytest.mark.parametrize("all_experts", [True, False])
@pytest.mark.parametrize("make", [aria, step3])
def test_they_are_pruned_and_come_back_with_the_same_logits(
    make: Callable[[], Any], all_experts: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = loaded(make, tmp_path / "dense")
    data = batches()
    dense = logits(model, data)
    report = tmp_path / "report.json"
    recipe = TAMPModifier(sparsity=0.5, selection="all", report_path=str(report))
    folder = tmp_path / "pruned"
    prune(
        model,
        data,
        recipe,
        tmp_path,
        output_dir=str(folder),
        moe_calibrate_all_experts=all_experts,
    )
    pruned = logits(model, data)
    again = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    assert not torch.allclose(dense, pruned, atol=0.1)
    torch.testing.assert_close(logits(again, data), pruned, atol=1e-4, rtol=0)
    experts = [p for n, p in again.named_parameters() if ".experts." in n and p.dim() == 3]
    zeros = sum(int((p == 0).sum()) for p in experts) / sum(p.numel() for p in experts)
    assert zeros == pytest.approx(0.5, abs=0.06)
    found = PruningReport.load(report)
    assert found.warnings == []
    tokens = sum(found.tokens.values())
    seen = [x.tokens_seen for name, x in found.linears.items() if name.endswith("up_proj")]
    routed = [count for count in seen if count != tokens]  # all but the shared expert
    assert sum(routed) == 2 * 2 * tokens  # two experts a token, in two layers


@pytest.mark.slow
@pytest.mark.parametrize("make", [aria, step3])
def test_linearised_experts_compute_what_the_fused_ones_do(make: Callable[[], Any]) -> None:
    from llmcompressor.modeling.moe.linearize import linearize_moe

    from tamp_modifier.upstream.grouped_experts import register_experts

    torch.manual_seed(0)
    model = make().eval()
    data = batches()
    before = logits(model, data)
    register_experts(model)
    linearize_moe(model)
    torch.testing.assert_close(logits(model, data), before, atol=1e-4, rtol=0)


def test_matrices_in_no_linear_are_told_in_a_warning_and_in_the_report(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lines: list[str] = []
    handle = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    report = tmp_path / "report.json"
    recipe = TAMPModifier(
        sparsity=0.5, selection="all", allocation="uniform", report_path=str(report)
    )
    prune(jetmoe().eval(), batches(), recipe, tmp_path)
    logger.remove(handle)
    told = [line for line in lines if "stay dense" in line]
    assert len(told) == 1 and "mlp.input_linear.weight (" in told[0]
    [kept] = PruningReport.load(report).warnings
    assert kept in told[0]
    # Per layer 4 x 32 x (96 + 48 + 16 + 16) in experts, 2 x 128 in routers; one Linear of 1024.
    assert kept.startswith("96% of the weights in matrices")


def test_what_the_user_leaves_out_is_not_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = tmp_path / "report.json"
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT)).eval()
    recipe = TAMPModifier(
        sparsity=0.5,
        selection="all",
        allocation="uniform",
        ignore=["re:.*down_proj"],
        report_path=str(report),
    )
    prune(model, batches(), recipe, tmp_path)
    assert PruningReport.load(report).warnings == []
