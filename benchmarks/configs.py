"""Configs of large models, as published, for estimates that need no weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

QWEN_2_5_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
MROPE = {"rope_type": "default", "mrope_section": [16, 24, 24]}
MROPE_3 = {"rope_type": "default", "mrope_section": [24, 20, 20]}


def _transformers() -> Any:
    """Return module, imported late, and without the types of what its configs take as keywords."""
    import transformers

    return transformers


def llava_next_8b() -> Any:
    """LLaVA-NeXT on Llama 3 8B."""
    tf = _transformers()

    text = tf.LlamaConfig(
        vocab_size=128320,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    vision = tf.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    return tf.LlavaNextConfig(vision_config=vision, text_config=text)


def qwen2_5_vl(**text: Any) -> Any:
    """Qwen2.5-VL 7B, or with another text decoder."""
    tf = _transformers()

    sizes = {**QWEN_2_5_7B, **text}
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3456,
        "num_heads": 16,
        "out_hidden_size": sizes["hidden_size"],
    }
    return tf.Qwen2_5_VLConfig(
        text_config={**sizes, "rope_parameters": MROPE}, vision_config=vision
    )


def qwen2_5_vl_72b() -> Any:
    """Qwen2.5-VL 72B."""
    return qwen2_5_vl(
        hidden_size=8192,
        intermediate_size=29568,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )


def qwen3_vl_8b() -> Any:
    """Qwen3-VL 8B."""
    tf = _transformers()

    text = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_parameters": MROPE_3,
    }
    return tf.Qwen3VLConfig(text_config=text, vision_config=_qwen3_tower(4096))


def qwen3_vl_235b() -> Any:
    """Qwen3-VL 235B-A22B, a mixture of 128 experts of which 8 are used."""
    tf = _transformers()

    text = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1536,
        "rope_parameters": MROPE_3,
    }
    return tf.Qwen3VLMoeConfig(text_config=text, vision_config=_qwen3_tower(4096))


def _qwen3_tower(width: int) -> dict[str, Any]:
    return {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": width,
    }


def gemma3_12b() -> Any:
    """Gemma 3 12B."""
    tf = _transformers()

    text = tf.Gemma3TextConfig(
        vocab_size=262208,
        hidden_size=3840,
        intermediate_size=15360,
        num_hidden_layers=48,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
    )
    vision = tf.SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=896,
        patch_size=14,
    )
    return tf.Gemma3Config(text_config=text, vision_config=vision)


def internvl3_8b() -> Any:
    """InternVL3 8B."""
    tf = _transformers()

    return tf.InternVLConfig(text_config=tf.Qwen2Config(**{**QWEN_2_5_7B, "vocab_size": 151674}))


def qwen2_5_omni_7b() -> Any:
    """Return the thinker of Qwen2.5-Omni 7B."""
    from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as omni

    text = {**QWEN_2_5_7B, "rope_parameters": MROPE}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    thinker: Any = omni.Qwen2_5OmniThinkerConfig
    return thinker(text_config=text, vision_config={**vision, "out_hidden_size": 3584})


def qwen2_7b() -> Any:
    """Qwen2 7B, the text decoder of VideoLLaMA2.1."""
    tf = _transformers()

    return tf.Qwen2Config(**QWEN_2_5_7B)


LARGE: dict[str, Callable[[], Any]] = {
    "LLaVA-NeXT 8B": llava_next_8b,
    "Qwen2.5-VL 72B": qwen2_5_vl_72b,
    "Qwen3-VL 235B-A22B": qwen3_vl_235b,
}
"""The models of docs/scale.md."""

EXAMPLES: dict[str, Callable[[], Any]] = {
    "llava": llava_next_8b,
    "qwen_vl/qwen2_5_vl": qwen2_5_vl,
    "qwen_vl/qwen3_vl": qwen3_vl_8b,
    "gemma3": gemma3_12b,
    "internvl": internvl3_8b,
    "omni": qwen2_5_omni_7b,
    "videollama2": qwen2_7b,
}
"""The models of examples/, by folder."""
