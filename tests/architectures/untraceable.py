"""Tiny models that llm-compressor's sequential pipeline cannot cut into their decoder layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as tf

from tests.architectures.inputs import IMAGE_ID, LENGTHS, pictures, tokens, with_inputs
from tests.architectures.tiny import TEXT, TOWER, VOCABULARY, Tiny

LAYERS = ["sliding_attention", "full_attention"]


def _text() -> list[Any]:
    return [tokens(("text", length)) for length in (12, 9, 17)]


def _pictures(count: int) -> list[Any]:
    return [
        with_inputs(
            tokens(("text", before), ("image", count), ("text", after)), pixel_values=pictures(1)
        )
        for before, after in LENGTHS
    ]


def _gemma3n() -> Tiny:
    """The last two layers take keys and values of the first two through a dict."""
    config = tf.Gemma3nTextConfig(
        **TEXT | {"num_hidden_layers": 4},
        head_dim=8,
        sliding_window=6,
        layer_types=LAYERS * 2,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
        laurel_rank=4,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.5, 0.5, 0.0, 0.0],
    )
    return Tiny(tf.Gemma3nForCausalLM(config), _text(), "model.layers")


def _gemma4() -> Tiny:
    """Gemma 4 E: shared keys and values, and inputs of its own for every layer."""
    config = tf.Gemma4TextConfig(
        **TEXT | {"num_hidden_layers": 4},
        head_dim=8,
        global_head_dim=8,
        sliding_window=6,
        layer_types=LAYERS * 2,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
    )
    return Tiny(tf.Gemma4ForCausalLM(config), _text(), "model.layers")


def _blip2() -> Tiny:
    """Tracing raises."""
    config = tf.Blip2Config(
        vision_config={**TOWER, "image_size": 16, "initializer_range": 0.02},
        qformer_config={
            **{name: TOWER[name] for name in ("hidden_size", "intermediate_size")},
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "encoder_hidden_size": 16,
            "vocab_size": 8,
        },
        text_config=tf.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            ffn_dim=48,
            num_attention_heads=4,
            max_position_embeddings=128,
            word_embed_proj_dim=32,
            pad_token_id=0,
        ),
        num_query_tokens=4,
        image_token_index=IMAGE_ID,
    )
    model = tf.Blip2ForConditionalGeneration(config)
    return Tiny(model, _pictures(4), "language_model.model.decoder.layers")


def _janus() -> Tiny:
    """Tracing raises, with a message that is not true."""
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "mlp_ratio": 2.0,
        "projection_dim": 32,
        "depth": 2,
        "num_image_tokens": 16,
    }
    codes = {
        "embed_dim": 4,
        "num_embeddings": 16,
        "latent_channels": 8,
        "base_channels": 32,
        "channel_multiplier": (1, 1),
        "num_res_blocks": 1,
        "num_patches": 4,
        "projection_dim": 32,
        "image_token_embed_dim": 32,
    }
    config = tf.JanusConfig(
        text_config=tf.LlamaConfig(**TEXT),
        vision_config=vision,
        vq_config=codes,
        image_token_id=IMAGE_ID,
    )
    return Tiny(tf.JanusForConditionalGeneration(config), _pictures(16))


UNTRACEABLE: dict[str, Callable[[], Tiny]] = {
    "gemma3n": _gemma3n,
    "gemma4_e": _gemma4,
    "blip2": _blip2,
    "janus": _janus,
}
