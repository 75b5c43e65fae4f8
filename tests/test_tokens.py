"""Modalities and padding of tokens."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import (
    Qwen2_5OmniTalkerConfig,
    Qwen2_5OmniThinkerConfig,
)

from tamp_modifier.tokens import (
    AUDIO,
    IMAGE,
    MODALITY_NAMES,
    TEXT,
    VIDEO,
    is_multimodal,
    modality_token_ids,
    parse_modality_token_ids,
    real_token_mask,
    token_types,
)

# Ids of the default configs, which are those of the released checkpoints.
CONFIGS = {
    tf.LlavaConfig: {"image": (32000,)},
    tf.LlavaNextConfig: {"image": (32000,)},
    tf.LlavaOnevisionConfig: {"image": (151646,), "video": (151647,)},
    tf.Qwen2VLConfig: {"image": (151655,), "video": (151656,)},
    tf.Qwen2_5_VLConfig: {"image": (151655,), "video": (151656,)},
    tf.Qwen3VLConfig: {"image": (151655,), "video": (151656,)},
    tf.Qwen3VLMoeConfig: {"image": (151655,), "video": (151656,)},
    tf.VideoLlama3Config: {"image": (151655,), "video": (151656,)},
    tf.Gemma3Config: {"image": (262144,)},
    tf.Mistral3Config: {"image": (10,)},
    tf.InternVLConfig: {"image": (151667,)},
    tf.SmolVLMConfig: {"image": (128257,)},
    tf.Qwen2AudioConfig: {"audio": (151646,)},
    Qwen2_5OmniThinkerConfig: {"image": (151655,), "video": (151656,), "audio": (151646,)},
    tf.VideoLlavaConfig: {"image": (32000,), "video": (32001,)},
    tf.Phi4MultimodalConfig: {"image": (200010,), "audio": (200011,)},
}
TEXT_ONLY = (
    tf.LlamaConfig,
    tf.MistralConfig,
    tf.Qwen2Config,
    tf.Qwen3NextConfig,
    tf.JambaConfig,
    tf.BambaConfig,
    tf.Gemma3TextConfig,
    tf.Qwen3MoeConfig,
)


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda c: c.__name__)
def test_ids_are_found_under_the_names_that_each_config_class_gives_them(
    config_class: type,
) -> None:
    config = config_class()
    assert modality_token_ids(config) == CONFIGS[config_class]
    assert is_multimodal(config)
    # A config that has been through JSON, as remote code may hold it.
    assert modality_token_ids(config.to_dict()) == CONFIGS[config_class]


@pytest.mark.parametrize("config_class", TEXT_ONLY, ids=lambda c: c.__name__)
def test_text_only_configs_have_no_modality(config_class: type) -> None:
    assert modality_token_ids(config_class()) == {}
    assert not is_multimodal(config_class())


@pytest.mark.parametrize(
    "path",
    ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen2_5_omni"],
)
def test_text_configs_inside_multimodal_ones_have_no_modality(path: str) -> None:
    module = importlib.import_module(f"transformers.models.{path}.configuration_{path}")
    (name,) = [name for name in vars(module) if name.endswith("TextConfig")]
    assert modality_token_ids(getattr(module, name)()) == {}


def test_ids_set_by_a_checkpoint_win_over_the_defaults() -> None:
    assert modality_token_ids(tf.LlavaConfig(image_token_index=7)) == {"image": (7,)}
    assert modality_token_ids(tf.LlavaConfig(image_token_id=8)) == {"image": (8,)}


def test_the_thinker_speaks_for_a_whole_omni_model() -> None:
    ids = {"image_token_index": 5, "video_token_index": 6, "audio_token_index": 7}
    thinker = Qwen2_5OmniThinkerConfig(**ids)
    config = SimpleNamespace(thinker_config=thinker, talker_config=Qwen2_5OmniTalkerConfig())
    assert modality_token_ids(config) == {"image": (5,), "video": (6,), "audio": (7,)}
    assert is_multimodal(config)


@pytest.mark.parametrize("value", [None, -1, -200, True, "32000", []])
def test_values_that_are_no_ids_are_skipped(value: Any) -> None:
    config = SimpleNamespace(vision_config=SimpleNamespace(), image_token_id=value)
    assert modality_token_ids(config) == {}
    assert is_multimodal(config)


def test_a_tower_that_is_switched_off_has_no_modality() -> None:
    config = tf.Gemma4Config(vision_config=None, audio_config=None)
    assert config.image_token_id is not None
    assert modality_token_ids(config) == {}
    assert not is_multimodal(config)


def test_llava_configs_of_the_original_code_are_multimodal_without_ids() -> None:
    config = tf.LlamaConfig(mm_vision_tower="openai/clip-vit-large-patch14-336")
    assert modality_token_ids(config) == {}
    assert is_multimodal(config)


def test_markers_around_a_picture_are_text() -> None:
    config = tf.Qwen2_5_VLConfig()
    start, end = config.vision_start_token_id, config.vision_end_token_id
    image, video = config.image_token_id, config.video_token_id
    input_ids = torch.tensor([[9, start, image, image, end, video]])
    types = token_types(input_ids, modality_token_ids(config))
    assert types.tolist() == [[TEXT, TEXT, IMAGE, IMAGE, TEXT, VIDEO]]
    assert types.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_several_ids_may_have_one_modality(dtype: torch.dtype) -> None:
    input_ids = torch.tensor([[1, 5, 6, 7], [7, 5, 1, 1]], dtype=dtype)
    types = token_types(input_ids, {"image": [5, 6], "audio": 7})
    assert types.tolist() == [[TEXT, IMAGE, IMAGE, AUDIO], [AUDIO, IMAGE, TEXT, TEXT]]
    assert token_types(input_ids, {}).unique().tolist() == [TEXT]


def test_names_and_numbers_agree() -> None:
    assert [MODALITY_NAMES[i] for i in (TEXT, IMAGE, VIDEO, AUDIO)] == [
        "text",
        "image",
        "video",
        "audio",
    ]


@pytest.mark.parametrize(
    ("mapping", "error", "says"),
    [
        ({}, ValueError, "empty"),
        ({"picture": 5}, ValueError, "unknown modality 'picture'; allowed are image, video, audio"),
        ({"text": 5}, ValueError, "unknown modality 'text'"),
        ({"image": -200}, ValueError, ">= 0; got -200"),
        ({"image": [5, -1]}, ValueError, ">= 0; got -1"),
        ({"image": []}, ValueError, "no token id"),
        ({"image": 5, "video": [4, 5]}, ValueError, "id 5 is given to both 'image' and 'video'"),
        ({"image": "32000"}, TypeError, "'32000'"),
        ({"image": True}, TypeError, "integers"),
        ({"image": 1.5}, TypeError, "1.5"),
        (32000, TypeError, "must map"),
    ],
)
def test_bad_mappings_are_refused(mapping: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match="modality_token_ids") as caught:
        parse_modality_token_ids(mapping)
    assert says in str(caught.value)


def test_good_mappings_get_one_form() -> None:
    assert parse_modality_token_ids({"image": 5, "audio": [7, 7, 8]}) == {
        "image": (5,),
        "audio": (7, 8),
    }


@pytest.mark.parametrize("bad", [torch.zeros(1, 3), torch.zeros(3, dtype=torch.long)])
def test_ids_that_are_no_batch_of_integers_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="input_ids"):
        token_types(bad, {"image": 5})


def _additive(allowed: torch.Tensor, dtype: torch.dtype, closed: float | None) -> torch.Tensor:
    closed = torch.finfo(dtype).min if closed is None else closed
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, closed)


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    left=st.booleans(),
    window=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    closed=st.sampled_from([None, float("-inf")]),
)
def test_every_form_of_mask_gives_the_same_tokens(
    lengths: list[int], left: bool, window: int, dtype: torch.dtype, closed: float | None
) -> None:
    batch, length = len(lengths), max(lengths)
    real = torch.zeros(batch, length, dtype=torch.bool)
    for row, count in zip(real, lengths, strict=True):
        row[length - count :] = True if left else row[length - count :]
        row[:count] = row[:count] if left else True
    positions = torch.arange(length)
    causal = positions[None, :] <= positions[:, None]
    sliding = causal & (positions[:, None] - positions[None, :] < window)
    allowed = (sliding[None] & real[:, None, :])[:, None]  # [B, 1, S, S]
    forms = (
        real,
        real.long(),
        real.to(dtype),
        allowed,
        allowed.expand(batch, 2, length, length),
        _additive(allowed, dtype, closed),
    )
    for mask in forms:
        assert torch.equal(real_token_mask(mask, batch, length, "cpu"), real)


def test_no_mask_and_a_shared_mask_mean_the_whole_batch() -> None:
    assert real_token_mask(None, 2, 3, torch.device("cpu")).tolist() == [[True] * 3] * 2
    causal = torch.ones(3, 3).tril().bool()[None, None]
    assert real_token_mask(causal, 2, 3, "cpu").tolist() == [[True] * 3] * 2


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2, 1, 4, 4), (2, 3, 3), (2, 1, 3, 5), (3,)])
def test_masks_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="attention_mask has shape"):
        real_token_mask(torch.ones(shape), 2, 3, "cpu")
