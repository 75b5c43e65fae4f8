"""What the tiny models are made of, and what is known about each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.architectures.inputs import (
    END_ID,
    IMAGE_ID,
    PAD,
    START_ID,
    TYPES,
    VIDEO_ID,
    VOCABULARY,
    Sample,
)

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # tokens that differ clearly, so that no choice hangs on rounding
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
}
GRID_TOWER: dict[str, Any] = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PATCH_VALUES = 3 * 2 * 4 * 4
"""Values of one patch of a GRID_TOWER: colours, frames, height, width."""
IDS = {"image_token_id": IMAGE_ID, "video_token_id": VIDEO_ID}
MARKERS = {"vision_start_token_id": START_ID, "vision_end_token_id": END_ID}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}

ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
DENSE = ATTENTION + MLP


@dataclass
class Expected:
    """What is true of a tiny model, known from how it was made."""

    decoder_layer: str
    """Class name of a text decoder layer."""
    targets: list[str]
    """Linears of the text decoder's layers, after llm-compressor has linearised MoE experts."""
    token_types: list[torch.Tensor]
    """Per batch int64 [B, S]: 0 text, 1 image, 2 video, 3 audio, -1 padding."""
    user_token_types: Callable[..., torch.Tensor] | None = None
    """Callable that the user gives where ids do not tell the modality."""

    def counts(self) -> dict[str, int]:
        """Real tokens per modality over all batches, of modalities that occur."""
        flat = torch.cat([types.flatten() for types in self.token_types])
        counts = {name: int((flat == number).sum()) for name, number in TYPES.items()}
        return {name: count for name, count in counts.items() if count}


@dataclass
class Tiny:
    """A model, its samples of batch size 1, and where its decoder's Linears are."""

    model: torch.nn.Module
    samples: list[Sample]
    layers: str = "model.language_model.layers"
    linears: tuple[str, ...] | list[tuple[str, ...]] = DENSE
    """Linears of every decoder layer, or a list with those of each."""
    user_token_types: Callable[..., torch.Tensor] | None = None
