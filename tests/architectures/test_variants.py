"""Options whose effect depends on the architecture: experts, hybrid layers, one pass, N:M."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf
from llmcompressor.modifiers.pruning import WandaPruningModifier
from loguru import logger

from tamp_modifier import TAMPModifier
from tamp_modifier.selection.by_modality import BalancedTokens
from tamp_modifier.upstream.tracing import complete_tracing
from tests.architectures.inputs import IMAGE_ID, tokens
from tests.architectures.models import TEXT, build
from tests.architectures.test_architectures import check_pruned, prune, snapshot
from tests.running import prune as run_oneshot

pytestmark = pytest.mark.slow

UNUSUAL = ["qwen3_vl_moe", "qwen3_next", "qwen2_5_omni", "video_llama2_style"]


@pytest.mark.parametrize("name", UNUSUAL)
def test_one_pass_prunes_every_linear(name: str, tmp_path: Path) -> None:
    model, batches, expected = build(name, padded=True)
    before = snapshot(model)
    report = prune(
        model,
        batches,
        expected,
        tmp_path,
        oneshot_options={"pipeline": "basic"},
        one_pass=True,
    )
    check_pruned(model, expected, before, report)
    assert report.tokens == expected.counts()


@pytest.mark.parametrize("name", UNUSUAL)
def test_structured_sparsity_holds_in_every_group(name: str, tmp_path: Path) -> None:
    model, batches, expected = build(name)
    before = snapshot(model)
    report = prune(model, batches, expected, tmp_path, mask_structure="2:4")
    check_pruned(model, expected, before, report)
    for target in expected.targets:
        groups = model.get_submodule(target).weight.reshape(-1, 4)
        assert ((groups == 0).sum(1) == 2).all(), target


def test_experts_get_the_same_masks_whether_or_not_all_tokens_pass_through_them(
    tmp_path: Path,
) -> None:
    masks = []
    for calibrate_all in (True, False):
        model, batches, expected = build("qwen3_vl_moe", padded=True)
        before = snapshot(model)
        report = prune(
            model,
            batches,
            expected,
            tmp_path / str(calibrate_all),
            oneshot_options={"moe_calibrate_all_experts": calibrate_all},
        )
        check_pruned(model, expected, before, report)
        masks.append({name: model.get_submodule(name).weight != 0 for name in expected.targets})
    for name, kept in masks[0].items():
        assert torch.equal(kept, masks[1][name]), name


def test_only_tokens_routed_to_an_expert_are_selected_for_it(tmp_path: Path) -> None:
    model, batches, expected = build("qwen3_vl_moe")
    report = prune(model, batches, expected, tmp_path, selection="all")
    total = sum(expected.counts().values())
    for layer in (0, 1):
        seen = {
            name: entry.tokens_seen
            for name, entry in report.linears.items()
            if f".layers.{layer}." in name
        }
        by_expert = [seen[name] for name in seen if name.endswith("up_proj")]
        assert len(by_expert) == 4
        assert sum(by_expert) == 2 * total  # two experts a token
        assert max(by_expert) < total
        assert seen[next(name for name in seen if name.endswith("q_proj"))] == total


def test_experts_weigh_tokens_by_the_size_of_the_whole_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches, expected = build("qwen3_vl_moe")
    seen: list[tuple[int, int]] = []
    weights = BalancedTokens.weights

    def record(rule: BalancedTokens, types: torch.Tensor, size: int) -> torch.Tensor | None:
        seen.append((len(types), size))
        return weights(rule, types, size)

    monkeypatch.setattr(BalancedTokens, "weights", record)
    prune(model, batches, expected, tmp_path, selection="balanced")
    lengths = {int((row >= 0).sum()) for types in expected.token_types for row in types}
    assert {size for _, size in seen} == lengths
    assert any(count < size for count, size in seen)
    assert all(count <= size for count, size in seen)


@pytest.mark.parametrize("all_experts", [True, False])
def test_experts_that_get_their_tokens_sorted_are_pruned(tmp_path: Path, all_experts: bool) -> None:
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
    text = {
        **TEXT,
        "head_dim": 8,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 48,
        "dtype": "float32",
    }
    config = tf.Llama4Config(text_config=text, vision_config=tower, image_token_index=IMAGE_ID)
    batches = [tokens(("text", length))[0] for length in (12, 9)]
    model = tf.Llama4ForConditionalGeneration(config).eval()
    run_oneshot(
        model,
        batches,
        TAMPModifier(dense_pipeline="basic"),
        tmp_path,
        pipeline="basic",
        moe_calibrate_all_experts=all_experts,
    )
    experts = [p for name, p in model.named_parameters() if ".experts." in name]
    zeros = sum(int((p == 0).sum()) for p in experts)
    assert len(experts) == 4 * 3
    assert zeros / sum(p.numel() for p in experts) == pytest.approx(0.5, abs=0.1)


def test_a_layer_without_attention_weighs_its_tokens_the_same_and_says_so_once(
    tmp_path: Path,
) -> None:
    model, batches, expected = build("qwen3_next")
    messages: list[str] = []
    handle = logger.add(lambda message: messages.append(str(message)), level="WARNING")
    prune(model, batches, expected, tmp_path)
    logger.remove(handle)
    said = [message for message in messages if "attention weights" in message]
    assert len(said) == 1
    assert "model.layers.0" in said[0]
    assert "model.layers.1" not in said[0]


def test_a_layer_without_attention_can_be_refused(tmp_path: Path) -> None:
    model, batches, expected = build("qwen3_next")
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="model.layers.0"):
        prune(model, batches, expected, tmp_path, no_attention="error")
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_other_selections_need_no_attention(tmp_path: Path) -> None:
    model, batches, expected = build("qwen3_next")
    before = snapshot(model)
    report = prune(model, batches, expected, tmp_path, selection="text", no_attention="error")
    check_pruned(model, expected, before, report)


@pytest.mark.parametrize("name", ["llava_mistral", "qwen2_5_omni", "qwen2_audio"])
def test_other_modifiers_can_have_the_corrected_tracing(name: str, tmp_path: Path) -> None:
    complete_tracing()
    weights = []
    for pipeline in ("sequential", "basic"):
        model, batches, expected = build(name, padded=True)
        run_oneshot(
            model,
            batches,
            WandaPruningModifier(sparsity=0.5, targets=expected.targets),
            tmp_path,
            sequential_targets=[expected.decoder_layer],
            pipeline=pipeline,
            propagate_error=False,
        )
        weights.append({target: model.get_submodule(target).weight for target in expected.targets})
    for target, weight in weights[0].items():
        assert (weight == 0).float().mean() == pytest.approx(0.5, abs=0.02), target
        assert torch.equal(weight, weights[1][target]), target


def test_a_model_whose_modalities_cannot_be_told_is_refused(tmp_path: Path) -> None:
    model, batches, expected = build("video_llama2_style")
    expected.user_token_types = None
    before = snapshot(model)
    with pytest.raises(ValueError, match="token_types_fn"):
        prune(model, batches, expected, tmp_path)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_ids_that_do_not_cover_the_sequence_are_refused(tmp_path: Path) -> None:
    model, batches, expected = build("video_llama2_style")
    expected.user_token_types = None
    before = snapshot(model)
    # A mapping from ids cannot tell the tokens that the model itself puts into the sequence.
    with pytest.raises(RuntimeError, match="give token_types_fn"):
        prune(model, batches, expected, tmp_path, modality_token_ids={"video": 121})
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
