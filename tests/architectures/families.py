"""Tiny models of further families, each of another kind than those in `models`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
    Qwen3OmniMoeThinkerConfig,
)

from tests.architectures.inputs import (
    AUDIO_ID,
    END_ID,
    IMAGE_ID,
    LENGTHS,
    PAD,
    START_ID,
    VIDEO_ID,
    Sample,
    pictures,
    tokens,
    with_inputs,
)
from tests.architectures.tiny import (
    ATTENTION,
    DENSE,
    GRID_TOWER,
    IDS,
    MLP,
    MROPE,
    PATCH_VALUES,
    TEXT,
    TOWER,
    Tiny,
)
from tests.architectures.untraceable import UNTRACEABLE

SIGLIP = {**TOWER, "image_size": 16}


def experts(place: str, count: int = 4, names: tuple[str, ...] = ("up", "gate", "down")) -> Any:
    """Names of the Linears of linearised experts."""
    return tuple(f"{place}.{i}.{name}_proj" for i in range(count) for name in names)


def _with_picture(count: int, **inputs: Callable[[], Any]) -> list[Sample]:
    return [
        with_inputs(
            tokens(("text", before), ("image", count), ("text", after)),
            **{name: make() for name, make in inputs.items()},
        )
        for before, after in LENGTHS
    ]


def _text() -> list[Sample]:
    return [tokens(("text", length)) for length in (12, 9, 17)]


def _idefics3() -> Tiny:
    config = tf.Idefics3Config(
        vision_config=SIGLIP,
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=IMAGE_ID,
        scale_factor=2,
        pad_token_id=PAD,
    )
    samples = _with_picture(4, pixel_values=lambda: pictures(1)[None])
    return Tiny(tf.Idefics3ForConditionalGeneration(config), samples, "model.text_model.layers")


def _paligemma2() -> Tiny:
    """Gemma 2 under a tower, with attention in both directions over picture and question.

    Its traced graph has a causal mask instead, so it runs as a whole.
    """
    config = tf.PaliGemmaConfig(
        vision_config=tf.SiglipVisionConfig(**SIGLIP, vision_use_head=False),
        text_config=tf.Gemma2Config(**TEXT, head_dim=8, sliding_window=6),
        image_token_index=IMAGE_ID,
        projection_dim=32,
        hidden_size=32,
    )
    samples = [
        with_inputs(
            tokens(("image", 16), ("text", before + after)),
            pixel_values=pictures(1),
            token_type_ids=torch.zeros(1, 16 + before + after, dtype=torch.long),
        )
        for before, after in LENGTHS
    ]
    return Tiny(tf.PaliGemmaForConditionalGeneration(config), samples)


def _glm4v_moe() -> Tiny:
    text = {
        **TEXT,
        "head_dim": 8,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0},
    }
    vision = {
        **GRID_TOWER,
        "hidden_size": 16,
        "out_hidden_size": 32,
        "intermediate_size": 24,
        "image_size": 16,
    }
    ids = {"image_start_token_id": START_ID, "image_end_token_id": END_ID}
    config = tf.Glm4vMoeConfig(text_config=text, vision_config=vision, **IDS, **ids)
    samples = [
        with_inputs(
            tokens(("text", before), START_ID, ("image", 4), END_ID, ("text", after)),
            pixel_values=torch.randn(16, PATCH_VALUES),
            image_grid_thw=torch.tensor([[1, 4, 4]]),
        )
        for before, after in LENGTHS
    ]
    for inputs, types in samples:
        inputs["mm_token_type_ids"] = types.clone()
    shared = tuple(f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down"))
    moe = ATTENTION + experts("mlp.experts") + shared
    return Tiny(tf.Glm4vMoeForConditionalGeneration(config), samples, linears=[DENSE, moe])


def _phi4_multimodal() -> Tiny:
    """Fused queries, keys and values; gate and up in one; a LoRA of its own per modality."""
    vision = {**TOWER, "image_size": 16, "crop_size": 16, "image_token_id": IMAGE_ID}
    audio = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_blocks": 1,
        "num_attention_heads": 2,
        "ext_pw_out_channel": 16,
        "depthwise_separable_out_channel": 16,
        "nemo_conv_channels": 8,
        "input_size": 16,
        "audio_token_id": AUDIO_ID,
    }
    config = tf.Phi4MultimodalConfig(
        **TEXT,
        vision_config=vision,
        audio_config=audio,
        original_max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
    )
    fused = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    return Tiny(tf.Phi4MultimodalForCausalLM(config), _text(), "model.layers", fused)


def _voxtral() -> Tiny:
    config = tf.VoxtralConfig(
        audio_config={
            "vocab_size": 8,
            "hidden_size": 16,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_mel_bins": 8,
            "max_source_positions": 16,
        },
        text_config=tf.LlamaConfig(**TEXT).to_dict(),
        audio_token_id=AUDIO_ID,
    )
    samples = [
        with_inputs(
            tokens(("text", before), ("audio", 4), ("text", after)),
            input_features=torch.randn(1, 8, 32),
        )
        for before, after in LENGTHS
    ]
    model = tf.VoxtralForConditionalGeneration(config)
    return Tiny(model, samples)


def _granite_speech() -> Tiny:
    config = tf.GraniteSpeechConfig(
        text_config=tf.GraniteConfig(**TEXT).to_dict(),
        encoder_config={
            "input_dim": 8,
            "num_layers": 1,
            "hidden_dim": 16,
            "num_heads": 2,
            "dim_head": 8,
            "output_dim": 8,
            "context_size": 8,
            "max_pos_emb": 16,
            "feedforward_mult": 2,
            "conv_kernel_size": 3,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 16,
            "encoder_hidden_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "intermediate_size": 24,
        },
        audio_token_index=AUDIO_ID,
        has_lora_adapter=False,
        downsample_rate=2,
        window_size=4,
    )
    samples = [
        with_inputs(
            tokens(("text", before), ("audio", 4), ("text", after)),
            input_features=torch.randn(1, 8, 8),
            input_features_mask=torch.ones(1, 4, dtype=torch.bool),
        )
        for before, after in LENGTHS
    ]
    model = tf.GraniteSpeechForConditionalGeneration(config)
    return Tiny(model, samples)


def _lfm2_vl() -> Tiny:
    """Short convolutions next to attention."""
    text = tf.Lfm2Config(
        **TEXT,
        layer_types=["conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
        block_ff_dim=48,
        block_multiple_of=8,
    )
    vision = tf.Siglip2VisionConfig(**TOWER, num_patches=16)
    config = tf.Lfm2VlConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE_ID,
        projector_hidden_size=32,
    )
    samples = _with_picture(
        4,
        pixel_values=lambda: torch.randn(1, 16, 3 * 4 * 4),
        spatial_shapes=lambda: torch.tensor([[4, 4]]),
        pixel_attention_mask=lambda: torch.ones(1, 16, dtype=torch.long),
    )
    mlp = tuple(f"feed_forward.w{number}" for number in (1, 2, 3))
    attention = tuple(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj"))
    layers = [("conv.in_proj", "conv.out_proj", *mlp), (*attention, *mlp)]
    return Tiny(tf.Lfm2VlForConditionalGeneration(config), samples, linears=layers)


def _deepseek_vl() -> Tiny:
    config = tf.DeepseekVLConfig(
        text_config=tf.LlamaConfig(**TEXT).to_dict(),
        vision_config=tf.SiglipVisionConfig(**SIGLIP, vision_use_head=False).to_dict(),
        image_token_id=IMAGE_ID,
    )
    samples = _with_picture(16, pixel_values=lambda: pictures(1))
    return Tiny(tf.DeepseekVLForConditionalGeneration(config), samples)


def _qwen3_omni() -> Tiny:
    """The thinker of a mixture of experts that sees and hears."""
    vision = {
        **GRID_TOWER,
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3OmniMoeThinkerConfig(
        audio_config={
            "num_mel_bins": 8,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "d_model": 16,
            "max_source_positions": 16,
            "n_window": 8,
            "output_dim": 32,
            "downsample_hidden_size": 8,
        },
        vision_config=vision,
        text_config={
            **TEXT,
            "head_dim": 8,
            "rope_parameters": MROPE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
        },
        image_token_id=IMAGE_ID,
        video_token_id=VIDEO_ID,
        audio_token_id=AUDIO_ID,
        audio_start_token_id=START_ID,
        vision_start_token_id=125,
    )
    samples = [
        with_inputs(
            tokens(("text", before), 125, ("image", 4), 126, ("text", after)),
            pixel_values=torch.randn(16, PATCH_VALUES),
            image_grid_thw=torch.tensor([[1, 4, 4]]),
        )
        for before, after in LENGTHS
    ]
    model = tf.Qwen3OmniMoeThinkerForConditionalGeneration(config)
    return Tiny(model, samples, "model.layers", ATTENTION + experts("mlp.experts"))


def _falcon_h1() -> Tiny:
    """Attention and Mamba 2 side by side in every layer."""
    config = tf.FalconH1Config(
        **TEXT,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_chunk_size=8,
        mamba_expand=1,
    )
    mamba = ("mamba.in_proj", "mamba.out_proj")
    mlp = tuple(f"feed_forward.{name}_proj" for name in ("gate", "up", "down"))
    return Tiny(tf.FalconH1ForCausalLM(config), _text(), "model.layers", (*mamba, *ATTENTION, *mlp))


def _jamba() -> Tiny:
    """Mamba, whose step size is a Linear that is never called, attention, and experts."""
    config = tf.JambaConfig(
        **TEXT,
        num_experts=4,
        num_experts_per_tok=2,
        expert_layer_period=2,
        expert_layer_offset=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
        mamba_d_state=8,
        mamba_dt_rank=8,
    )
    mamba = tuple(f"mamba.{name}_proj" for name in ("in", "x", "out"))
    mlp = tuple(name.replace("mlp", "feed_forward") for name in MLP)
    layers = [(*mamba, *mlp), ATTENTION + experts("feed_forward.experts")]
    return Tiny(tf.JambaForCausalLM(config), _text(), "model.layers", layers)


def _pixtral() -> Tiny:
    """Llava with the tower of Pixtral, which sees pictures of any size."""
    config = tf.LlavaConfig(
        vision_config=tf.PixtralVisionConfig(image_size=16, head_dim=8, **TOWER),
        text_config=tf.MistralConfig(**TEXT),
        image_token_index=IMAGE_ID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    samples = _with_picture(
        16, pixel_values=lambda: pictures(1), image_sizes=lambda: torch.tensor([[16, 16]])
    )
    return Tiny(tf.LlavaForConditionalGeneration(config), samples)


def _ovis2() -> Tiny:
    """Pictures are mixtures over a visual vocabulary."""
    vision = {**TOWER, "image_size": 16, "vocab_size": 24, "num_visual_indicator_tokens": 5}
    config = tf.Ovis2Config(
        vision_config=vision,
        text_config=tf.Qwen2Config(**TEXT).to_dict(),
        image_token_id=IMAGE_ID,
        visual_indicator_token_ids=[121, 122, 123, 124, 125],
        vocab_size=TEXT["vocab_size"],
        hidden_size=32,
    )
    samples = _with_picture(16, pixel_values=lambda: pictures(1))
    return Tiny(tf.Ovis2ForConditionalGeneration(config), samples)


WHOLE = {"paligemma2", *UNTRACEABLE}
"""What the sequential pipeline cannot cut into its decoder layers."""

FAMILIES: dict[str, Callable[[], Tiny]] = {
    "idefics3": _idefics3,
    "paligemma2": _paligemma2,
    "glm4v_moe": _glm4v_moe,
    "phi4_multimodal": _phi4_multimodal,
    "voxtral": _voxtral,
    "granite_speech": _granite_speech,
    "lfm2_vl": _lfm2_vl,
    "deepseek_vl": _deepseek_vl,
    "qwen3_omni_thinker": _qwen3_omni,
    "falcon_h1": _falcon_h1,
    "jamba": _jamba,
    "pixtral": _pixtral,
    "ovis2": _ovis2,
    **UNTRACEABLE,
}
