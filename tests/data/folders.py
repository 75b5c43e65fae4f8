"""Writes tiny random models with their processors, as `save_pretrained` leaves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from tamp_modifier.demo.processing import CHAT_TEMPLATE, build_tokenizer

_NAMES = ("pad_token", "bos_token", "eos_token", "unk_token", "padding_side")

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TOWER: dict[str, Any] = {**SIZES, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def _text(kind: Any, tokenizer: Any, **more: Any) -> Any:
    return kind(
        **SIZES,
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )


def _tokenizer(*more: str) -> Any:
    tokenizer = build_tokenizer()
    if more:
        tokenizer.add_special_tokens({"extra_special_tokens": list(more)})
    return tokenizer


def _llava_next() -> tuple[Any, Any]:
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    tokenizer = _tokenizer()
    config = tf.LlavaNextConfig(
        vision_config=tf.SiglipVisionConfig(**TOWER),
        text_config=_text(tf.LlamaConfig, tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=[[32, 64], [64, 32]],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_grid_pinpoints=config.image_grid_pinpoints,
    )
    processor = tf.LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )
    return tf.LlavaNextForConditionalGeneration(config), processor


def _gemma3() -> tuple[Any, Any]:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = _tokenizer("<start_of_image>", "<end_of_image>")
    names = {"boi": "<start_of_image>", "eoi": "<end_of_image>", "image": "<image>"}
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        extra_special_tokens={f"{name}_token": token for name, token in names.items()},
        **{name: getattr(tokenizer, name) for name in _NAMES},
    )
    config = tf.Gemma3Config(
        vision_config=tf.SiglipVisionConfig(vision_use_head=False, **TOWER),
        text_config=_text(tf.Gemma3TextConfig, tokenizer, head_dim=8),
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    template = CHAT_TEMPLATE.replace("'<image> '", "'<start_of_image> '")
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = tf.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)
    return tf.Gemma3ForConditionalGeneration(config), processor


def _qwen2_audio() -> tuple[Any, Any]:
    tokenizer = _tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    tower = tf.Qwen2AudioEncoderConfig(
        num_mel_bins=8,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        d_model=16,
        max_source_positions=50,
    )
    config = tf.Qwen2AudioConfig(
        audio_config=tower,
        text_config=_text(tf.Qwen2Config, tokenizer),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    template = CHAT_TEMPLATE.replace("'image'", "'audio'").replace(
        "<image>", "<|audio_bos|> <|AUDIO|> <|audio_eos|>"
    )
    processor = tf.Qwen2AudioProcessor(
        tf.WhisperFeatureExtractor(feature_size=8, chunk_length=1),
        tokenizer,
        chat_template=template,
    )
    return tf.Qwen2AudioForConditionalGeneration(config), processor


def _llama() -> tuple[Any, Any]:
    tokenizer = _tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tf.LlamaForCausalLM(_text(tf.LlamaConfig, tokenizer)), tokenizer


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava_next": _llava_next,
    "gemma3": _gemma3,
    "qwen2_audio": _qwen2_audio,
    "llama": _llama,
}


def write_model(name: str, folder: Path) -> Path:
    """Writes one of MODELS, float32 and from a fixed seed."""
    torch.manual_seed(0)
    model, processor = MODELS[name]()
    model.float().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
