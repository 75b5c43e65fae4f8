"""A model built the way VideoLLaMA2 is: its input ids do not tell the modality of a token.

Video and audio features are put before the embedded text by code of the model, and the decoder gets
``inputs_embeds`` only. The decoder's sequence is longer than ``input_ids``, which hold text alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.architectures.inputs import LENGTHS, PADDING, TYPES, Sample, tokens, with_inputs

VIDEO_FEATURES, AUDIO_FEATURES = 12, 8


class MediaMerger(nn.Module):
    """Projects video and audio features and puts them between the padding and the text."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.video_projector = nn.Sequential(
            nn.Linear(VIDEO_FEATURES, 24), nn.Linear(24, hidden_size)
        )
        self.audio_projector = nn.Linear(AUDIO_FEATURES, hidden_size)

    def forward(
        self,
        text: torch.Tensor,
        attention_mask: torch.Tensor,
        video: torch.Tensor,
        audio: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, S, h], [B, S], [B, V, 12], [B, A, 8] -> [B, S + V + A, h], [B, S + V + A]."""
        media = torch.cat([self.video_projector(video), self.audio_projector(audio)], dim=1)
        rows, masks = [], []
        for embeds, mask, features in zip(text, attention_mask, media, strict=True):
            padding = int((mask == 0).sum())
            rows.append(torch.cat([embeds[:padding], features, embeds[padding:]]))
            masks.append(torch.cat([mask[:padding], mask.new_ones(len(features)), mask[padding:]]))
        return torch.stack(rows), torch.stack(masks)


class VideoLlama2StyleModel(Qwen2ForCausalLM):
    """Qwen2 decoder with video and audio; the config names towers but no placeholder ids."""

    def __init__(self, config: Qwen2Config) -> None:
        config.mm_vision_tower = config.mm_audio_tower = "projectors-only"
        super().__init__(config)
        self.merger = MediaMerger(config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        video: torch.Tensor,
        audio: torch.Tensor,
        use_cache: bool = False,
    ) -> torch.Tensor:
        """Returns logits [B, S + V + A, vocabulary]."""
        text = self.get_input_embeddings()(input_ids)
        inputs_embeds, mask = self.merger(text, attention_mask, video, audio)
        outputs = self.model(inputs_embeds=inputs_embeds, attention_mask=mask, use_cache=use_cache)
        return self.lm_head(outputs.last_hidden_state)

    @staticmethod
    def user_token_types(batch: Mapping[str, Any]) -> torch.Tensor:
        """What a user of such a model writes: token types [B, S + V + A] of a batch."""
        rows = []
        for mask in batch["attention_mask"]:
            padding = int((mask == 0).sum())
            video, audio = batch["video"].shape[1], batch["audio"].shape[1]
            counts = torch.tensor([padding, video, audio, len(mask) - padding])
            kinds = torch.tensor([PADDING, TYPES["video"], TYPES["audio"], TYPES["text"]])
            rows.append(kinds.repeat_interleave(counts))
        return torch.stack(rows)


def video_llama2_samples() -> list[Sample]:
    """Samples of one video (10 tokens) and one sound (6 tokens) before text."""
    samples = []
    for before, after in LENGTHS:
        (inputs, text), video, audio = tokens(("text", before + after)), 10, 6
        media = torch.tensor([[TYPES["video"]] * video + [TYPES["audio"]] * audio])
        sample = (inputs, torch.cat([media, text], dim=1))
        samples.append(
            with_inputs(
                sample,
                video=torch.randn(1, video, VIDEO_FEATURES),
                audio=torch.randn(1, audio, AUDIO_FEATURES),
            )
        )
    return samples
