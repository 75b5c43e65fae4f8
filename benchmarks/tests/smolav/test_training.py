"""Training: the parts that a wrong number would hide in."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from benchmarks.smolav import load
from benchmarks.smolav.choice import sample_medium
from benchmarks.smolav.data import pack_embeds, tower_features
from benchmarks.smolav.dense import pointing_loss, word_ids
from benchmarks.smolav.lora import LoRALinear, add_lora, merge
from benchmarks.smolav.media import stream
from benchmarks.smolav.questions import captions, questions
from benchmarks.smolav.train import learning_rate, pack_loss, place_words, trained_state
from benchmarks.smolav.weights import read_ctranslate2, whisper_encoder_weights
from benchmarks.tests.smolav.tiny import tiny_config
from examples.tiny_mllm.attention import packed_attention


def test_a_merged_linear_answers_as_the_lora_does() -> None:
    torch.manual_seed(0)
    lora = LoRALinear(nn.Linear(12, 8, bias=False), rank=3)
    values = torch.randn(5, 12)
    assert torch.equal(lora(values), lora.base(values))  # B starts at zero
    nn.init.normal_(lora.lora_b)
    merged = merge(lora.base.weight.data, lora.lora_a, lora.lora_b)
    assert not torch.allclose(lora(values), lora.base(values))
    torch.testing.assert_close(lora(values), values @ merged.T)


def test_training_reaches_lora_and_projectors_only_and_lowers_the_loss(folder: Path) -> None:
    model, processor = load(folder, torch.float32)
    model.requires_grad_(False)
    add_lora(model.model.language_model, rank=2)
    AttentionInterface.register("packed", packed_attention)
    model.model.language_model.config._attn_implementation = "packed"
    medium = sample_medium(stream("train", 3), "both")
    rng = stream("train", 4)
    pack = processor.layout.pack(medium, captions(rng, medium) + questions(rng, medium)[:4])
    with torch.no_grad():
        features = tower_features(model.model, processor.studio, medium)
    trained = trained_state(model)
    layers = model.config.text_config.num_hidden_layers
    assert sum(".lora_a" in name for name in trained) == 7 * layers
    for value in trained.values():
        value.requires_grad_(True)
    frozen = {k: v.clone() for k, v in model.state_dict().items() if k not in trained}
    optimizer = torch.optim.Adam(trained.values(), lr=0.02)
    losses = []
    for _ in range(12):
        loss, right = pack_loss(model, pack_embeds(model.model, features, pack), pack)
        assert len(right) == len(pack.chunks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    # The video projector had nothing to see.
    unused = [name for name, value in trained.items() if value.grad is None]
    assert all("video_projector" in name for name in unused) and unused


def test_every_token_is_told_its_place_in_words(folder: Path) -> None:
    model, processor = load(folder, torch.float32)
    table: torch.Tensor = model.get_input_embeddings().get_parameter("weight").detach()
    loudness = table.norm(dim=-1).mean() / 2

    def word(name: str) -> torch.Tensor:
        row = table[processor.tokenizer(f" {name}").input_ids[0]]
        return loudness * row / row.norm()

    image, video, audio = place_words(model.model, processor.tokenizer)
    assert len(image) == 16 and len(video) == 16 and len(audio) == 100
    torch.testing.assert_close(image[0], word("top") + word("left"))
    torch.testing.assert_close(image[7], word("top") + word("right"))
    torch.testing.assert_close(image[-1], word("bottom") + word("right"))
    # Frames of 2 x 2 tokens: first and second third.
    torch.testing.assert_close(video[4 + 1], word("second") + word("top") + word("centre"))
    torch.testing.assert_close(video[-2], word("last") + word("middle") + word("left"))
    torch.testing.assert_close(audio[0], word("first"))
    torch.testing.assert_close(audio[-1], word("last"))
    with torch.no_grad():  # and the projector adds them
        model.model.image_projector.places += image
        features = torch.zeros(1, 16, model.config.vision_config.hidden_size)
        shown = model.model.image_projector(features)[0]
    torch.testing.assert_close(shown[7] - shown[0], image[7] - image[0], atol=1e-5, rtol=1e-4)


def test_pointing_loss_is_lowest_at_the_word_itself() -> None:
    torch.manual_seed(0)
    table = torch.randn(6, 16)
    target = torch.tensor([0, 2, 5])
    right = pointing_loss(table[target], table, target, rare=0.5)
    wrong = pointing_loss(table[(target + 1) % 6], table, target, rare=0.5)
    assert right < 0.05 < wrong
    logits = 25 * torch.cosine_similarity(table[target][:, None], table[None], dim=-1)
    each = -logits.log_softmax(-1)[range(3), target]
    expected = (0.5 * each[0] + each[1] + each[2]) / 2.5
    assert right.item() == pytest.approx(expected.item(), rel=1e-4)


def test_words_of_several_tokens_are_refused(folder: Path) -> None:
    _, processor = load(folder)
    assert len(word_ids(processor.tokenizer, ["dog", "red", "7"])) == 3
    with pytest.raises(ValueError, match="'red, dog' is 3 tokens; one is needed"):
        word_ids(processor.tokenizer, ["red, dog"])


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(step, 500) for step in range(500)]
    assert rates[0] == pytest.approx(1 / 20)
    assert set(rates[19:400]) == {1.0}
    assert rates[-1] == pytest.approx(0.03)
    assert rates[400:] == sorted(rates[400:], reverse=True)


def ctranslate2_file(variables: dict[str, np.ndarray], version: int = 6) -> bytes:
    """What CTranslate2 writes, with one alias."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        data += text(name) + struct.pack("<B", array.ndim)
        data += struct.pack(f"<{array.ndim}I", *array.shape)
        kind = {"float32": 0, "float16": 4}[str(array.dtype)]
        data += struct.pack("<BI", kind, array.nbytes) + array.tobytes()
    first = next(iter(variables))
    return data + struct.pack("<I", 1) + text("alias") + text(first)


def test_whisper_weights_fill_the_encoder_exactly() -> None:
    config = tiny_config().audio_config
    source = WhisperEncoder(config).state_dict()
    variables: dict[str, np.ndarray] = {}

    def put(name: str, own: str, norm: bool = False) -> None:
        weight, bias = ("gamma", "beta") if norm else ("weight", "bias")
        variables[f"encoder/{name}/{weight}"] = source[f"{own}.weight"].numpy()
        variables[f"encoder/{name}/{bias}"] = source[f"{own}.bias"].numpy()

    variables["encoder/position_encodings/encodings"] = source["embed_positions.weight"].numpy()
    for name in ("conv1", "conv2"):
        put(name, name)
    put("layer_norm", "layer_norm", norm=True)
    put("layer_0/self_attention/layer_norm", "layers.0.self_attn_layer_norm", norm=True)
    put("layer_0/self_attention/linear_1", "layers.0.self_attn.out_proj")
    put("layer_0/ffn/layer_norm", "layers.0.final_layer_norm", norm=True)
    put("layer_0/ffn/linear_0", "layers.0.fc1")
    put("layer_0/ffn/linear_1", "layers.0.fc2")
    own = "layers.0.self_attn"
    weights = [source[f"{own}.{part}_proj.weight"] for part in "qkv"]
    query = source[f"{own}.q_proj.bias"]
    biases = [query, torch.zeros_like(query), source[f"{own}.v_proj.bias"]]
    fused = "encoder/layer_0/self_attention/linear_0"
    variables[f"{fused}/weight"] = torch.cat(weights).numpy()
    variables[f"{fused}/bias"] = torch.cat(biases).numpy()
    state = whisper_encoder_weights(ctranslate2_file(variables), config.max_source_positions)
    assert state.keys() == source.keys()
    assert all(torch.equal(state[name], source[name]) for name in source)


def test_other_ctranslate2_files_are_refused() -> None:
    variables = {"a": np.ones((2, 3), dtype=np.float16)}
    read = read_ctranslate2(ctranslate2_file(variables))
    assert torch.equal(read["alias"], read["a"]) and read["a"].shape == (2, 3)
    with pytest.raises(ValueError, match="CTranslate2 file of version 9; versions 4 to 6"):
        read_ctranslate2(ctranslate2_file(variables, version=9))
