"""Training: resuming changes nothing, and packed questions are exactly single questions."""

from __future__ import annotations

import torch
from transformers import AttentionInterface

from examples.tiny_mllm.attention import packed_attention
from examples.tiny_mllm.data import CHUNK, PREFIX, patch_batch, patch_targets, question_batch
from examples.tiny_mllm.model import build_model, plant_lookup, set_attention
from examples.tiny_mllm.train import parse, train
from tamp_modifier.demo.processing import WordIds

SMALL = "--tower-steps 1 --tower-batch 2 --batch 1 --chunks 1 --layers 1 --tower-layers 1"


def _arguments(folder, *more: str):
    return parse(["--output", str(folder), "--steps", "3", *SMALL.split(), *more])


def test_a_resumed_run_gives_the_same_weights(tmp_path, capsys):
    whole = train(_arguments(tmp_path / "whole")).state_dict()
    for stop in ("1", "2"):
        train(_arguments(tmp_path / "parts", "--stop", stop))
    parts = train(_arguments(tmp_path / "parts")).state_dict()
    assert "going on from step 2" in capsys.readouterr().out
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_training_changes_every_part(tmp_path):
    torch.manual_seed(0)
    words = WordIds()
    before = build_model(words, 1, 1).state_dict()
    after = train(_arguments(tmp_path)).state_dict()
    unused = ("vision_tower.post_layernorm",)  # not on the way to the features LLaVA takes
    for name, value in before.items():
        if not any(part in name for part in unused):
            assert not torch.equal(value, after[name]), name


def test_batches_are_a_function_of_seed_and_step():
    words = WordIds()
    for make in (
        lambda step: question_batch(words, 0, step, 2, 2),
        lambda step: patch_batch(0, step, 2),
    ):
        first, again, other = make(3), make(3), make(4)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["pixel_values"], other["pixel_values"])


def test_a_packed_question_is_computed_as_if_it_were_alone():
    torch.manual_seed(0)
    words = WordIds()
    model = build_model(words, 2, 1).eval()
    AttentionInterface.register("packed", packed_attention)
    set_attention(model, "packed")
    batch = question_batch(words, 0, 0, 1, 4)
    pixels, ids, positions = (batch[n] for n in ("pixel_values", "input_ids", "position_ids"))
    with torch.inference_mode():
        features = torch.stack(list(model.model.get_image_features(pixels).pooler_output))
        embedded = model.get_input_embeddings()(ids)
        embedded[:, 2:PREFIX] = features
        packed = model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=batch["attention_mask"].float(),
            position_ids=positions,
        ).last_hidden_state
        set_attention(model, "sdpa")
        starts = [i for i in range(PREFIX, ids.shape[1]) if ids[0, i] != words.pad]
        starts = [i for i in starts if positions[0, i] in (0, PREFIX)]
        pictures = 0
        for start in starts:
            end = int((ids[0, start:] == words.eos).nonzero()[0]) + start + 1
            block = ids[:, start:end]
            picture = int(positions[0, start]) == PREFIX
            pictures += picture
            alone = torch.cat([ids[:, :PREFIX], block], 1) if picture else block
            output = model.model(
                input_ids=alone, pixel_values=pixels if picture else None
            ).last_hidden_state
            torch.testing.assert_close(
                packed[:, start:end], output[:, start - end :], rtol=1e-3, atol=1e-4
            )
    assert 5 <= pictures < len(starts)


def test_no_question_crosses_a_chunk():
    batch = question_batch(WordIds(), 0, 1, 4, 5)
    weights = batch["weights"][:, PREFIX:].view(4, 5, CHUNK)
    assert (batch["input_ids"] == 0).float().mean() < 0.08
    assert (weights[..., 0] == 0).all()  # a chunk begins with the first word of a question


def test_patch_targets_cover_every_patch():
    batch = patch_batch(0, 0, 3)
    assert batch["patch_targets"].shape == (3, 144, 6)
    assert patch_targets([]).numel() == 0


def test_attention_without_a_mask_sees_everything():
    torch.manual_seed(0)
    query = torch.randn(2, 8, 7, 4)
    key, value = torch.randn(2, 2, 2, 7, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    output, weights = packed_attention(torch.nn.Identity(), query, key, value, None)
    assert weights is None
    torch.testing.assert_close(output.transpose(1, 2), expected)


def test_planted_heads_look_up_what_a_word_names():
    torch.manual_seed(0)
    words = WordIds()
    model = build_model(words, 2, 1)
    with torch.no_grad():  # as after the patch phase: features and words share one space
        embeddings = model.get_input_embeddings().weight
        embeddings.copy_(torch.randn_like(embeddings))
    plant_lookup(model, words)
    attention = model.model.language_model.layers[1].self_attn
    norm = model.model.language_model.layers[1].input_layernorm
    table = torch.nn.functional.normalize(embeddings, dim=-1)
    star, ring, red = (table[words(word)[0]] for word in ("star", "ring", "red"))
    patches = norm(torch.stack([ring + red, star + red]))
    width = model.config.text_config.head_dim
    keys = patches @ attention.k_proj.weight[-width:].T
    for word, found in ((star, 1), (ring, 0)):
        query = attention.q_proj.weight[-width:] @ norm(word[None])[0]
        assert (keys @ query / width**0.5).softmax(-1)[found] > 0.8
