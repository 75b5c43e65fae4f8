"""Tiny randomly initialised models of every supported architecture, with inputs that fit them.

Every model is in fp32 and has a text decoder of two layers with grouped-query attention (4 query, 2
key/value heads).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers as tf
from llmcompressor.utils.helpers import calibration_forward_context
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig

from tests.architectures.inputs import (
    AUDIO_ID,
    END_ID,
    IMAGE_ID,
    LENGTHS,
    PAD,
    START_ID,
    TYPES,
    VIDEO_ID,
    VOCABULARY,
    Batch,
    Sample,
    pad_together,
    pictures,
    tokens,
    with_inputs,
)
from tests.architectures.tiny import (
    ATTENTION,
    DENSE,
    GRID_TOWER,
    IDS,
    MARKERS,
    MLP,
    MROPE,
    PATCH_VALUES,
    TEXT,
    TOWER,
    Expected,
    Tiny,
)
from tests.architectures.video_llama2 import VideoLlama2StyleModel, video_llama2_samples


def build(name: str, padded: bool = False) -> tuple[torch.nn.Module, list[Batch], Expected]:
    """Builds a tiny model and its calibration batches.

    Args:
        name: one of ARCHITECTURES.
        padded: two samples of different lengths per batch, left padded, instead of one sample.

    Returns:
        The model in eval mode, the batches, and what is true of them.
    """
    torch.manual_seed(0)
    tiny = ARCHITECTURES[name]()
    model = tiny.model.eval().float()
    batches = tiny.samples
    if padded:
        batches = [pad_together(tiny.samples[:2]), pad_together(tiny.samples[1:])]
    layers = model.get_submodule(tiny.layers)
    per_layer = tiny.linears if isinstance(tiny.linears, list) else [tiny.linears] * len(layers)
    targets = [
        f"{tiny.layers}.{i}.{linear}" for i, names in enumerate(per_layer) for linear in names
    ]
    expected = Expected(
        decoder_layer=type(layers[0]).__name__,
        targets=targets,
        token_types=[types for _, types in batches],
        user_token_types=tiny.user_token_types,
    )
    return model, [inputs for inputs, _ in batches], expected


@contextmanager
def eager(model: torch.nn.Module) -> Iterator[None]:
    """Runs the model as llm-compressor does during calibration: eager attention, no gradients."""
    with torch.no_grad(), calibration_forward_context(model):
        yield


def _one_picture(count: int = 16, **extra: Any) -> list[Sample]:
    """A picture of 16 x 16 pixels in text, for models that take [pictures, 3, height, width]."""
    return [
        with_inputs(
            tokens(("text", before), ("image", count), ("text", after)),
            pixel_values=pictures(1),
            **{name: make() for name, make in extra.items()},
        )
        for before, after in LENGTHS
    ]


def _llava(text: Any) -> Tiny:
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(image_size=16, **TOWER),
        text_config=text,
        image_token_index=IMAGE_ID,
        image_seq_length=16,
    )
    return Tiny(tf.LlavaForConditionalGeneration(config), _one_picture())


def _llava_next() -> Tiny:
    config = tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(image_size=16, **TOWER),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_index=IMAGE_ID,
        image_grid_pinpoints=[[16, 32], [32, 16]],
    )
    # A 16 x 32 picture is seen whole (16 tokens) and as two tiles (4 rows of 8, each with an end).
    samples = [
        with_inputs(
            tokens(("text", before), ("image", 52), ("text", after)),
            pixel_values=pictures(3)[None],
            image_sizes=torch.tensor([[16, 32]]),
        )
        for before, after in LENGTHS
    ]
    return Tiny(tf.LlavaNextForConditionalGeneration(config), samples)


def _llava_onevision() -> Tiny:
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(image_size=16, **TOWER),
        text_config=tf.Qwen2Config(**TEXT),
        image_token_index=IMAGE_ID,
        video_token_index=VIDEO_ID,
        image_grid_pinpoints=[[16, 16], [16, 32]],
    )
    # A square picture: 16 tokens of the whole and 4 rows of 4 of its tile, each with an end.
    # A video: two frames pooled to 2 x 2, and one end.
    samples = [
        with_inputs(
            tokens(("text", before), ("image", 36), ("text", 4), ("video", 9), ("text", after)),
            pixel_values=pictures(2)[None],
            image_sizes=torch.tensor([[16, 16]]),
            pixel_values_videos=pictures(2)[None],
        )
        for before, after in LENGTHS
    ]
    return Tiny(tf.LlavaOnevisionForConditionalGeneration(config), samples)


def _grid_samples(video: list[Any], **extra: Any) -> list[Sample]:
    """Inputs of Qwen-VL: a picture of 4 x 4 patches (4 tokens), a video of 2 x 4 x 4 (8 tokens)."""
    return [
        with_inputs(
            tokens(("text", before), START_ID, ("image", 4), END_ID, *video, ("text", after)),
            pixel_values=torch.randn(16, PATCH_VALUES),
            image_grid_thw=torch.tensor([[1, 4, 4]]),
            pixel_values_videos=torch.randn(32, PATCH_VALUES),
            video_grid_thw=torch.tensor([[2, 4, 4]]),
            **{name: make() for name, make in extra.items()},
        )
        for before, after in LENGTHS
    ]


def _with_mm_token_types(samples: list[Sample]) -> list[Sample]:
    return [with_inputs(sample, mm_token_type_ids=sample[1].clone()) for sample in samples]


WHOLE_VIDEO = [START_ID, ("video", 8), END_ID]
FRAMES_WITH_TIMES = [("text", 2), START_ID, ("video", 4), END_ID] * 2


def _qwen2_vl() -> Tiny:
    config = tf.Qwen2VLConfig(
        vision_config={**GRID_TOWER, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        text_config={**TEXT, "rope_parameters": MROPE},
        **IDS,
        **MARKERS,
    )
    samples = _with_mm_token_types(_grid_samples(WHOLE_VIDEO))
    return Tiny(tf.Qwen2VLForConditionalGeneration(config), samples)


_QWEN25_TOWER = {
    **GRID_TOWER,
    "hidden_size": 16,
    "intermediate_size": 24,
    "out_hidden_size": 32,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}


def _qwen2_5_vl() -> Tiny:
    config = tf.Qwen2_5_VLConfig(
        vision_config=_QWEN25_TOWER,
        text_config={**TEXT, "rope_parameters": MROPE},
        **IDS,
        **MARKERS,
    )
    samples = _with_mm_token_types(
        _grid_samples(WHOLE_VIDEO, second_per_grid_ts=lambda: torch.tensor([1.0]))
    )
    return Tiny(tf.Qwen2_5_VLForConditionalGeneration(config), samples)


_QWEN3_TOWER = {
    **GRID_TOWER,
    "hidden_size": 16,
    "intermediate_size": 24,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
_QWEN3_TEXT = {**TEXT, "head_dim": 8, "rope_parameters": MROPE}


def _qwen3_vl() -> Tiny:
    config = tf.Qwen3VLConfig(vision_config=_QWEN3_TOWER, text_config=_QWEN3_TEXT, **IDS, **MARKERS)
    samples = _with_mm_token_types(_grid_samples(FRAMES_WITH_TIMES))
    return Tiny(tf.Qwen3VLForConditionalGeneration(config), samples)


def _qwen3_vl_moe() -> Tiny:
    text = {**_QWEN3_TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = tf.Qwen3VLMoeConfig(vision_config=_QWEN3_TOWER, text_config=text, **IDS, **MARKERS)
    samples = _with_mm_token_types(_grid_samples(FRAMES_WITH_TIMES))
    # The router is not an nn.Linear.
    experts = tuple(
        f"mlp.experts.{i}.{name}_proj" for i in range(4) for name in ("up", "gate", "down")
    )
    model = tf.Qwen3VLMoeForConditionalGeneration(config)
    return Tiny(model, samples, linears=ATTENTION + experts)


def _video_llama3() -> Tiny:
    config = tf.VideoLlama3Config(vision_config=TOWER, text_config=tf.Qwen2Config(**TEXT), **IDS)
    samples = [
        with_inputs(
            tokens(("text", before), ("image", 4), ("text", 3), ("video", 8), ("text", after)),
            pixel_values=torch.randn(16, 3 * 4 * 4),
            image_grid_thw=torch.tensor([[1, 4, 4]]),
            image_merge_sizes=torch.tensor([2]),
            pixel_values_videos=torch.randn(32, 3 * 4 * 4),
            video_grid_thw=torch.tensor([[2, 4, 4]]),
            video_merge_sizes=torch.tensor([2]),
            video_compression_mask=torch.ones(8, dtype=torch.bool),
        )
        for before, after in LENGTHS
    ]
    return Tiny(tf.VideoLlama3ForConditionalGeneration(config), samples)


def _gemma3(image_id: int = IMAGE_ID) -> Tiny:
    config = tf.Gemma3Config(
        vision_config=tf.SiglipVisionConfig(image_size=16, vision_use_head=False, **TOWER),
        text_config=tf.Gemma3TextConfig(
            **TEXT,
            head_dim=8,
            sliding_window=6,  # shorter than every sample
            layer_types=["sliding_attention", "full_attention"],
        ),
        mm_tokens_per_image=4,
        image_token_index=image_id,
        boi_token_index=START_ID,
        eoi_token_index=END_ID,
    )
    placeholders = {"image": image_id}
    samples = []
    for before, after in LENGTHS:
        picture = (START_ID, ("image", 4), END_ID)
        sample = tokens(("text", before), *picture, ("text", after), placeholders=placeholders)
        types = (sample[1] == TYPES["image"]).long()
        samples.append(with_inputs(sample, pixel_values=pictures(1), token_type_ids=types))
    model = tf.Gemma3ForConditionalGeneration(config)
    # It starts at zero, which would make all image tokens the same.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return Tiny(model, samples)


def _mistral3() -> Tiny:
    config = tf.Mistral3Config(
        vision_config=tf.PixtralVisionConfig(image_size=16, head_dim=8, **TOWER),
        text_config=tf.MistralConfig(**TEXT),
        image_token_index=IMAGE_ID,
        spatial_merge_size=2,
    )
    samples = _one_picture(4, image_sizes=lambda: torch.tensor([[16, 16]]))
    return Tiny(tf.Mistral3ForConditionalGeneration(config), samples)


def _internvl() -> Tiny:
    config = tf.InternVLConfig(
        vision_config={**TOWER, "image_size": [16, 16], "patch_size": [4, 4]},
        text_config=tf.Qwen2Config(**TEXT),
        image_token_id=IMAGE_ID,
        image_seq_length=4,
    )
    return Tiny(tf.InternVLForConditionalGeneration(config), _one_picture(4))


def _smolvlm() -> Tiny:
    config = tf.SmolVLMConfig(
        vision_config={**TOWER, "image_size": 16},
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=IMAGE_ID,
        scale_factor=2,
        pad_token_id=PAD,
    )
    samples = [
        with_inputs(
            tokens(("text", before), ("image", 4), ("text", 2), ("image", 4), ("text", after)),
            pixel_values=pictures(2)[None],
        )
        for before, after in LENGTHS
    ]
    return Tiny(tf.SmolVLMForConditionalGeneration(config), samples, "model.text_model.layers")


AUDIO_TOWER: dict[str, Any] = {
    "num_mel_bins": 8,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "d_model": 16,
    "max_source_positions": 16,
}


def _audio(frames: int, longest: int) -> Batch:
    """Mel features [1, 8, longest] of which the first frames are real; 4 frames make one token."""
    mask = (torch.arange(longest) < frames).long()[None]
    return {"input_features": torch.randn(1, 8, longest), "feature_attention_mask": mask}


def _qwen2_5_omni() -> Tiny:
    config = Qwen2_5OmniThinkerConfig(
        audio_config={**AUDIO_TOWER, "n_window": 8, "output_dim": 32},
        vision_config=_QWEN25_TOWER,
        text_config={**TEXT, "rope_parameters": MROPE},
        image_token_index=IMAGE_ID,
        video_token_index=VIDEO_ID,
        audio_token_index=AUDIO_ID,
        audio_start_token_id=START_ID,
        audio_end_token_id=END_ID,
        vision_start_token_id=125,
        vision_end_token_id=126,
    )
    samples = []
    for before, after in LENGTHS:
        sample = tokens(
            ("text", before), 125, ("image", 4), 126, ("text", 2), 125, ("video", 8), 126,
            ("text", 2), START_ID, ("audio", 6), END_ID, ("text", after),
        )  # fmt: skip
        grids = _grid_samples([])[0][0]
        names = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
        samples.append(
            with_inputs(
                sample,
                **{name: grids[name] for name in names},
                video_second_per_grid=torch.tensor([1.0]),
                **_audio(24, 24),
            )
        )
    model = tf.Qwen2_5OmniThinkerForConditionalGeneration(config)
    return Tiny(model, samples, "model.layers")


def _qwen2_audio() -> Tiny:
    config = tf.Qwen2AudioConfig(
        audio_config=tf.Qwen2AudioEncoderConfig(**AUDIO_TOWER),
        text_config=tf.Qwen2Config(**TEXT),
        audio_token_index=AUDIO_ID,
    )
    samples = [
        with_inputs(
            tokens(("text", before), START_ID, ("audio", frames // 4), END_ID, ("text", after)),
            **_audio(frames, 32),
        )
        for (before, after), frames in zip(LENGTHS, (24, 32, 16), strict=True)
    ]
    return Tiny(tf.Qwen2AudioForConditionalGeneration(config), samples)


def _video_llama2() -> Tiny:
    model = VideoLlama2StyleModel(tf.Qwen2Config(**TEXT))
    return Tiny(
        model, video_llama2_samples(), "model.layers", user_token_types=model.user_token_types
    )


def _text_samples() -> list[Sample]:
    return [tokens(("text", length)) for length in (12, 9, 17)]


def _llama() -> Tiny:
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT))
    return Tiny(model, _text_samples(), "model.layers")


def _qwen3_next() -> Tiny:
    config = tf.Qwen3NextConfig(
        **TEXT,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        mlp_only_layers=[0, 1],
    )
    linear = tuple(f"linear_attn.{name}" for name in ("in_proj_qkvz", "in_proj_ba", "out_proj"))
    model = tf.Qwen3NextForCausalLM(config)
    return Tiny(model, _text_samples(), "model.layers", [linear + MLP, DENSE])


ARCHITECTURES: dict[str, Callable[[], Tiny]] = {
    "llava_llama": lambda: _llava(tf.LlamaConfig(**TEXT)),
    "llava_mistral": lambda: _llava(tf.MistralConfig(**TEXT)),
    "llava_qwen2": lambda: _llava(tf.Qwen2Config(**TEXT)),
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl_moe,
    "video_llama3": _video_llama3,
    "gemma3": _gemma3,
    "gemma3_hidden_placeholder": lambda: _gemma3(image_id=VOCABULARY),
    "mistral3": _mistral3,
    "internvl": _internvl,
    "smolvlm": _smolvlm,
    "qwen2_5_omni": _qwen2_5_omni,
    "qwen2_audio": _qwen2_audio,
    "video_llama2_style": _video_llama2,
    "llama_text": _llama,
    "qwen3_next": _qwen3_next,
}
