"""A SmolAV of random weights that is small enough for tests, and a tokenizer for its words."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast, SiglipVisionConfig, WhisperConfig

from benchmarks.smolav import questions, words
from benchmarks.smolav.model import SmolAVConfig, SmolAVForConditionalGeneration
from tamp_modifier.demo import pictures

IMAGE, VIDEO, AUDIO = 5, 6, 7
SPECIAL = ("<unk>", "<|im_start|>", "<|im_end|>", "\n", "Answer")


def tiny_config() -> SmolAVConfig:
    """Pictures of 16 x 16 pixels in 16 patches, clips of 16 frames, 2 decoder layers."""
    vision: Any = SiglipVisionConfig  # its stub lacks vision_use_head
    return SmolAVConfig(
        text_config=LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.2,
            tie_word_embeddings=True,
        ),
        vision_config=vision(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
            vision_use_head=False,
        ),
        audio_config=WhisperConfig(
            d_model=16,
            encoder_layers=1,
            encoder_attention_heads=2,
            encoder_ffn_dim=24,
            num_mel_bins=8,
            max_source_positions=16,
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        frames=2,
    )


def full_size_config() -> SmolAVConfig:
    """As tiny, but for pictures of 96 x 96 pixels, four frames and clips of four seconds."""
    config = tiny_config()
    config.text_config.vocab_size = 1024
    config.text_config.max_position_embeddings = 512
    config.vision_config.image_size, config.vision_config.patch_size = 96, 24
    config.audio_config.num_mel_bins, config.audio_config.max_source_positions = 80, 200
    config.frames = 4
    return config


def tiny_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token per word of the world of SmolAV, placeholders at the ids of the tiny config."""
    # The demo has the words for colours, shapes and places.
    text = "".join(map(inspect.getsource, (words, questions, pictures)))
    found = dict.fromkeys(re.findall(r"[A-Za-z]+|[0-9]|[?:,]", text))
    ids = {token: index for index, token in enumerate(SPECIAL)}
    ids |= {"<image>": IMAGE, "<video>": VIDEO, "<audio>": AUDIO}
    for word in found:
        ids.setdefault(word, len(ids))
    assert len(ids) <= vocabulary
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:3])})
    return fast


def tiny_model(seed: int = 0) -> SmolAVForConditionalGeneration:
    """Random weights, fixed by the seed."""
    torch.manual_seed(seed)
    return SmolAVForConditionalGeneration(tiny_config()).eval()


def tiny_batch(*kinds: str, text: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of one sample with some of "image", "video" and "audio" before the text."""
    generator = torch.Generator().manual_seed(seed)
    config = tiny_config()
    ids = [1]
    batch = {}
    if "image" in kinds:
        ids += [IMAGE] * config.image_tokens
        batch["pixel_values"] = torch.randn(1, 3, 16, 16, generator=generator)
    if "video" in kinds:
        ids += [VIDEO] * config.video_tokens
        batch["pixel_values_videos"] = torch.randn(1, 2, 3, 16, 16, generator=generator)
    if "audio" in kinds:
        ids += [AUDIO] * config.audio_tokens
        batch["input_features"] = torch.randn(1, 8, 32, generator=generator)
    ids += torch.randint(8, 64, (text,), generator=generator).tolist()
    input_ids = torch.tensor([ids])
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **batch}
