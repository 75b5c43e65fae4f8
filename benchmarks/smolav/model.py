"""SmolAV: one language model that sees pictures and videos and hears sounds.

A vision tower (Siglip), the encoder of whisper, one projector per modality, and a Llama decoder.
``input_ids`` hold one placeholder per embedding: 144 for a picture, 4 x 36 for a video, 100 for a
clip of four seconds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    GenerationMixin,
    LlamaConfig,
    LlamaModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    WhisperConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.whisper.modeling_whisper import WhisperEncoder

POOL = 2
"""Video tokens cover POOL x POOL patches, audio tokens POOL frames of 20 ms."""


class SmolAVConfig(PreTrainedConfig):
    """Configs of the three networks, and the placeholder ids."""

    model_type = "smolav"
    sub_configs = {
        "text_config": LlamaConfig,
        "vision_config": SiglipVisionConfig,
        "audio_config": WhisperConfig,
    }

    def __init__(
        self,
        text_config: LlamaConfig | dict[str, Any] | None = None,
        vision_config: SiglipVisionConfig | dict[str, Any] | None = None,
        audio_config: WhisperConfig | dict[str, Any] | None = None,
        image_token_id: int = 5,
        video_token_id: int = 6,
        audio_token_id: int = 7,
        frames: int = 4,
        **kwargs: Any,
    ) -> None:
        self.text_config = _config(LlamaConfig, text_config)
        self.vision_config = _config(SiglipVisionConfig, vision_config)
        self.audio_config = _config(WhisperConfig, audio_config)
        self.image_token_id = image_token_id
        self.video_token_id = video_token_id
        self.audio_token_id = audio_token_id
        self.frames = frames
        kwargs.setdefault("tie_word_embeddings", True)
        super().__init__(**kwargs)

    @property
    def image_tokens(self) -> int:
        """Placeholders of a picture."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def video_tokens(self) -> int:
        """Placeholders of a video."""
        return self.frames * self.image_tokens // POOL**2

    @property
    def audio_tokens(self) -> int:
        """Placeholders of a clip."""
        return self.audio_config.max_source_positions // POOL


def _config(kind: type, value: Any) -> Any:
    if value is None:
        return kind()
    return kind(**value) if isinstance(value, dict) else value


class Projector(nn.Module):
    """Two Linears with a GELU between, from a tower's features to the decoder's embeddings.

    Args:
        inputs: Width of the features.
        hidden: Width of the embeddings.
        tokens: Tokens of a medium; each has a row of a learned table that is added to it, which
            tells its place.
    """

    def __init__(self, inputs: int, hidden: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.linear_1 = nn.Linear(inputs, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)
        self.places = nn.Parameter(torch.zeros(tokens, hidden))

    def forward(self, features: Tensor) -> Tensor:
        """[..., tokens, inputs] -> [..., tokens, hidden]."""
        hidden = self.linear_2(nn.functional.gelu(self.linear_1(self.norm(features))))
        return hidden + self.places


class SmolAVPreTrainedModel(PreTrainedModel):
    """Common to both classes below."""

    config_class = SmolAVConfig
    config: SmolAVConfig
    base_model_prefix = "model"
    _no_split_modules = ["LlamaDecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = False
    _can_compile_fullgraph = False


class SmolAVModel(SmolAVPreTrainedModel):
    """Towers, projectors and the decoder without its head."""

    def __init__(self, config: SmolAVConfig) -> None:
        super().__init__(config)
        hidden, width = config.text_config.hidden_size, config.vision_config.hidden_size
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.audio_tower = WhisperEncoder(config.audio_config)
        self.image_projector = Projector(width, hidden, config.image_tokens)
        self.video_projector = Projector(POOL**2 * width, hidden, config.video_tokens)
        heard = POOL * config.audio_config.d_model
        self.audio_projector = Projector(heard, hidden, config.audio_tokens)
        self.language_model = LlamaModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the decoder's embedding table."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's embedding table."""
        self.language_model.set_input_embeddings(value)

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """[n, 3, H, W] -> [n, patches, width]."""
        dtype = self.vision_tower.dtype
        return self.vision_tower(pixel_values=pixel_values.to(dtype)).last_hidden_state

    def pooled_frames(self, features: Tensor) -> Tensor:
        """Join POOL x POOL patches: [n * frames, patches, w] -> [n, frames * p / 4, 4 w]."""
        count, patches, width = features.shape
        side = round(patches**0.5)
        grid = features.view(count, side // POOL, POOL, side // POOL, POOL, width)
        grid = grid.transpose(2, 3).reshape(count, patches // POOL**2, POOL**2 * width)
        return grid.reshape(count // self.config.frames, -1, POOL**2 * width)

    def audio_features(self, input_features: Tensor) -> Tensor:
        """Log-mel [n, 80, T] -> [n, T / 4, 2 w]: whisper's frames, two and two joined."""
        frames = self.audio_tower(input_features.to(self.audio_tower.dtype)).last_hidden_state
        return frames.reshape(frames.shape[0], frames.shape[1] // POOL, -1)

    def image_embeds(self, pixel_values: Tensor) -> Tensor:
        """[n, 3, H, W] -> [n, 144, hidden]."""
        return self.image_projector(self.vision_features(pixel_values))

    def video_embeds(self, pixel_values_videos: Tensor) -> Tensor:
        """[n, frames, 3, H, W] -> [n, 144, hidden]."""
        features = self.vision_features(pixel_values_videos.flatten(0, 1))
        return self.video_projector(self.pooled_frames(features))

    def audio_embeds(self, input_features: Tensor) -> Tensor:
        """[n, 80, T] -> [n, 100, hidden]."""
        return self.audio_projector(self.audio_features(input_features))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_features: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Put the media's embeddings where their placeholders are, and runs the decoder."""
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            embeds = self.image_embeds(pixel_values)
            inputs_embeds = _put(inputs_embeds, input_ids, self.config.image_token_id, embeds)
        if pixel_values_videos is not None:
            embeds = self.video_embeds(pixel_values_videos)
            inputs_embeds = _put(inputs_embeds, input_ids, self.config.video_token_id, embeds)
        if input_features is not None:
            embeds = self.audio_embeds(input_features)
            inputs_embeds = _put(inputs_embeds, input_ids, self.config.audio_token_id, embeds)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


def _put(
    inputs_embeds: Tensor, input_ids: Tensor | None, placeholder: int, embeds: Tensor
) -> Tensor:
    """Write embeddings [n, tokens, hidden] where [B, S] ids are the placeholder."""
    if input_ids is None:
        raise ValueError("media need input_ids, which tell where they belong")
    embeds = embeds.to(inputs_embeds.dtype)
    mask = torch.eq(input_ids, placeholder).unsqueeze(-1).expand_as(inputs_embeds)
    return inputs_embeds.masked_scatter(mask, embeds)


class SmolAVForConditionalGeneration(SmolAVPreTrainedModel, GenerationMixin):
    """SmolAV with its head, which shares the embedding table."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: SmolAVConfig) -> None:
        super().__init__(config)
        self.model = SmolAVModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the decoder's embedding table."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's embedding table."""
        self.model.set_input_embeddings(value)

    def get_decoder(self) -> LlamaModel:
        """Return the decoder."""
        return self.model.language_model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_features: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits.

        Args:
            input_ids: [B, S] with placeholders.
            attention_mask: [B, S].
            pixel_values: [pictures, 3, 96, 96], in [-1, 1].
            pixel_values_videos: [videos, 4, 3, 96, 96], in [-1, 1].
            input_features: [clips, 80, 400], whisper's log-mel spectrogram.
            position_ids: [B, S].
            past_key_values: Cache of the decoder.
            inputs_embeds: [B, S, hidden] in place of input_ids, media already in place.
            labels: [B, S], -100 where nothing is to be learned.
            use_cache: Whether to return the cache.
            logits_to_keep: Number of last positions with logits, 0 for all.
            kwargs: Passed on to the decoder.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            input_features=input_features,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, keep, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size
            )
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Any, **kwargs: Any
    ) -> Any:
        """Media enter with the prompt only: later steps find them in the cache."""
        media = ("pixel_values", "pixel_values_videos", "input_features")
        values = {name: kwargs.pop(name, None) for name in media}
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_first_iteration", True) or not kwargs.get("use_cache", True):
            inputs.update(values)
        return inputs


AutoConfig.register("smolav", SmolAVConfig)
