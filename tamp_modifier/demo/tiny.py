"""Tiny models with random weights, one of each architecture in examples/, and data for them.

They answer nothing sensible; the examples run on them with ``--tiny`` to show that all runs.
"""

from __future__ import annotations

import json
import tempfile
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tamp_modifier.demo.processing import CHAT_TEMPLATE, build_tokenizer

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TOWER: dict[str, Any] = {**SIZES, "num_attention_heads": 4}
GRID_TOWER: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "patch_size": 8,
    "out_hidden_size": 32,
}
VISION_TOKENS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}
VISION_TURN = "<|vision_start|><|image_pad|><|vision_end|> "


def tiny_model(name: str) -> tuple[Any, Any]:
    """Return a model with random weights, in bfloat16, and its processor.

    Args:
        name: one of `MODELS`.
    """
    torch.manual_seed(0)
    model, processor = MODELS[name]()
    # What is pruned is saved with the config of the model that it was loaded from.
    folder = tempfile.mkdtemp(prefix=f"tiny-{name}-")
    model.config.save_pretrained(folder)
    model.config._name_or_path = folder
    return model.to(torch.bfloat16).eval(), processor


def tiny_data(kinds: Sequence[str] = ("image",), count: int = 4) -> Path:
    """Write conversations about a picture, a sound, or both, and returns the file.

    Args:
        kinds: "image" and "audio".
        count: number of conversations.
    """
    from PIL import Image

    folder = Path(tempfile.mkdtemp(prefix="tiny-data-"))
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        media = []
        if "image" in kinds:
            pixels = torch.randint(0, 256, (64, 64, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
            media.append({"type": "image", "path": f"{number}.png"})
        if "audio" in kinds:
            noise = torch.randint(-9000, 9000, (8000,), generator=generator, dtype=torch.int16)
            with wave.open(str(folder / f"{number}.wav"), "wb") as sound:
                sound.setnchannels(1)
                sound.setsampwidth(2)
                sound.setframerate(16000)
                sound.writeframes(noise.numpy().tobytes())
            media.append({"type": "audio", "path": f"{number}.wav"})
        question = {"type": "text", "text": "what animal is there ?"}
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": [*media, question]},
                    {"role": "assistant", "content": "cat"},
                ]
            }
        )
    path = folder / "conversations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _transformers() -> Any:
    """Return module, imported late, and without the types of what its configs take as keywords."""
    import transformers

    return transformers


def _tokenizer(**named: str) -> Any:
    """Return word-level tokenizer with further tokens, known to it as ``image_token`` and so on."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": sorted(set(named.values()))})
    for name, token in named.items():
        setattr(tokenizer, f"{name}_token", token)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def _template(image: str, audio: str = "") -> str:
    template = CHAT_TEMPLATE.replace("'<image> '", f"'{image}'")
    choice = f"'{audio}' if part['type'] == 'audio' else part['text']"
    return template.replace("part['text']", choice) if audio else template


def _text(kind: Any, tokenizer: Any, **more: Any) -> Any:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return kind(**SIZES, **heads, **special, vocab_size=len(tokenizer), **more)


def _mrope() -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def _grid_images() -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = {"shortest_edge": 1024, "longest_edge": 4096}
    return Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, size=size)


def _no_videos() -> Any:
    """Return a video processor without videos; the real ones want torchvision."""
    from transformers import BaseVideoProcessor

    class NoVideos(BaseVideoProcessor, dict):  # a dict, so that JSON can hold it
        model_input_names: list[str] = []
        _auto_class = None

        def __init__(self) -> None:
            self.merge_size = self.temporal_patch_size = 2

    return NoVideos()


def _ids(tokenizer: Any) -> dict[str, int]:
    names = ("image", "video", "vision_start", "vision_end")
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}


def _llava_next() -> tuple[Any, Any]:
    tf = _transformers()
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    tokenizer = build_tokenizer()
    grid = [[32, 64], [64, 32], [64, 64]]
    config = tf.LlavaNextConfig(
        vision_config=tf.SiglipVisionConfig(**TOWER, image_size=32, patch_size=8),
        text_config=_text(tf.LlamaConfig, tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    processor = tf.LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            image_grid_pinpoints=grid,
        ),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )
    return tf.LlavaNextForConditionalGeneration(config), processor


def _qwen2_5_vl() -> tuple[Any, Any]:
    tf = _transformers()

    tokenizer = _tokenizer(**VISION_TOKENS)
    config = tf.Qwen2_5_VLConfig(
        vision_config={**GRID_TOWER, "window_size": 32, "fullatt_block_indexes": [1]},
        text_config=_text(dict, tokenizer, rope_parameters=_mrope()),
        **_ids(tokenizer),
    )
    processor = tf.Qwen2_5_VLProcessor(
        _grid_images(), tokenizer, _no_videos(), chat_template=_template(VISION_TURN)
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl() -> tuple[Any, Any]:
    tf = _transformers()

    tokenizer = _tokenizer(**VISION_TOKENS)
    vision = {**GRID_TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    config = tf.Qwen3VLConfig(
        vision_config=vision,
        text_config=_text(dict, tokenizer, head_dim=8, rope_parameters=_mrope()),
        **_ids(tokenizer),
    )
    processor = tf.Qwen3VLProcessor(
        _grid_images(), tokenizer, _no_videos(), chat_template=_template(VISION_TURN)
    )
    return tf.Qwen3VLForConditionalGeneration(config), processor


def _gemma3() -> tuple[Any, Any]:
    tf = _transformers()
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = _tokenizer(image="<image>", boi="<start_of_image>", eoi="<end_of_image>")
    tower = tf.SiglipVisionConfig(**TOWER, image_size=32, patch_size=8, vision_use_head=False)
    config = tf.Gemma3Config(
        vision_config=tower,
        text_config=_text(tf.Gemma3TextConfig, tokenizer, head_dim=8),
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    processor = tf.Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        chat_template=_template("<start_of_image> "),
        image_seq_length=4,
    )
    model = tf.Gemma3ForConditionalGeneration(config)
    # It starts at zero, which would make all image tokens the same.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model, processor


def _internvl() -> tuple[Any, Any]:
    tf = _transformers()
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
        GotOcr2ImageProcessorPil,
    )

    tokenizer = _tokenizer(
        context_image="<IMG_CONTEXT>", video="<video>", start_image="<img>", end_image="</img>"
    )
    config = tf.InternVLConfig(
        vision_config={**TOWER, "image_size": [32, 32], "patch_size": [8, 8]},
        text_config=_text(tf.Qwen2Config, tokenizer),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    processor = tf.InternVLProcessor(
        GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        _no_videos(),
        image_seq_length=4,
        chat_template=_template("<IMG_CONTEXT> "),
    )
    return tf.InternVLForConditionalGeneration(config), processor


def _qwen2_5_omni() -> tuple[Any, Any]:
    tf = _transformers()
    from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as omni

    tokenizer = _tokenizer(
        image="<|IMAGE|>",
        video="<|VIDEO|>",
        audio="<|AUDIO|>",
        vision_bos="<|vision_bos|>",
        vision_eos="<|vision_eos|>",
        audio_bos="<|audio_bos|>",
        audio_eos="<|audio_eos|>",
    )
    thinker: Any = omni.Qwen2_5OmniThinkerConfig
    config = thinker(
        audio_config={
            "num_mel_bins": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "d_model": 32,
            "n_window": 8,
            "output_dim": 32,
            "max_source_positions": 64,
        },
        vision_config={**GRID_TOWER, "window_size": 32, "fullatt_block_indexes": [1]},
        text_config=_text(dict, tokenizer, rope_parameters=_mrope()),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        audio_token_index=tokenizer.audio_token_id,
        audio_start_token_id=tokenizer.audio_bos_token_id,
        audio_end_token_id=tokenizer.audio_eos_token_id,
        vision_start_token_id=tokenizer.vision_bos_token_id,
        vision_end_token_id=tokenizer.vision_eos_token_id,
    )
    processor = tf.Qwen2_5OmniProcessor(
        image_processor=_grid_images(),
        video_processor=_no_videos(),
        feature_extractor=tf.WhisperFeatureExtractor(feature_size=16, chunk_length=1),
        tokenizer=tokenizer,
        chat_template=_template(
            "<|vision_bos|><|IMAGE|><|vision_eos|> ", "<|audio_bos|><|AUDIO|><|audio_eos|> "
        ),
    )
    return tf.Qwen2_5OmniThinkerForConditionalGeneration(config), processor


def _video_llama2() -> tuple[Any, Any]:
    import transformers as tf

    class VideoLlama2(tf.Qwen2ForCausalLM):
        """Put features of video and sound where an id of -201 is, as VideoLLaMA2.1-AV does."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.mm_projector = torch.nn.Linear(12, config.hidden_size)
            self.mm_projector_a = torch.nn.Linear(8, config.hidden_size)

        def prepare_inputs_labels_for_multimodal(
            self,
            input_ids: Any,
            attention_mask: Any,
            past_key_values: Any = None,
            labels: Any = None,
            images: Any = None,
        ) -> tuple[Any, ...]:
            """Embeddings [1, S - 1 + media, hidden] of ids [1, S] and one (media, kind)."""
            media, _ = images[0]
            features = [self.mm_projector(media["video"]), self.mm_projector_a(media["audio"])]
            place = int((input_ids[0] == -201).nonzero())
            text = self.get_input_embeddings()(input_ids[0].clamp_min(0))
            embeds = torch.cat([text[:place], *features, text[place + 1 :]])[None]
            return None, torch.ones(embeds.shape[:2], dtype=torch.long), None, embeds, None

    tokenizer = build_tokenizer()
    return VideoLlama2(_text(tf.Qwen2Config, tokenizer)), tokenizer


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava_next": _llava_next,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "gemma3": _gemma3,
    "internvl": _internvl,
    "qwen2_5_omni": _qwen2_5_omni,
    "video_llama2": _video_llama2,
}
"""Makers of model and processor by name."""
