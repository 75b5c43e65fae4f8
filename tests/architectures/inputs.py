"""Inputs whose true token types are known, because this file places every token."""

from __future__ import annotations

from typing import Any

import torch

PAD, IMAGE_ID, VIDEO_ID, AUDIO_ID, START_ID, END_ID = 0, 120, 121, 122, 123, 124
VOCABULARY = 128
TYPES = {"text": 0, "image": 1, "video": 2, "audio": 3}
PADDING = -1
"""Marks padding in the expected token types."""

Batch = dict[str, torch.Tensor]
Sample = tuple[Batch, torch.Tensor]
"""Model inputs of one sample, and its token types [1, S]."""

LENGTHS = ((3, 6), (2, 4), (5, 8))
"""Text tokens before and after the placeholders, one pair per sample."""

_PER_TOKEN = ("attention_mask", "mm_token_type_ids", "token_type_ids")


def tokens(*segments: tuple[str, int] | int, placeholders: dict[str, int] | None = None) -> Sample:
    """Makes input_ids from segments.

    Args:
        segments: ``("text", 5)`` random text, ``("image", 16)`` placeholders, or a marker's id.
        placeholders: ids by modality where they differ from the ones of this file.
    """
    special = {"image": IMAGE_ID, "video": VIDEO_ID, "audio": AUDIO_ID, **(placeholders or {})}
    ids: list[int] = []
    types: list[int] = []
    for segment in segments:
        kind, count = ("text", 1) if isinstance(segment, int) else segment
        if isinstance(segment, int):
            ids.append(segment)
        elif kind == "text":
            ids += torch.randint(3, 100, (count,)).tolist()
        else:
            ids += [special[kind]] * count
        types += [TYPES[kind]] * count
    input_ids = torch.tensor([ids])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    return inputs, torch.tensor([types])


def with_inputs(sample: Sample, **inputs: Any) -> Sample:
    """Adds tensors to a sample."""
    return {**sample[0], **inputs}, sample[1]


def pictures(count: int, height: int = 16, width: int = 16) -> torch.Tensor:
    """Random pixels [count, 3, height, width]."""
    return torch.randn(count, 3, height, width)


def pad_together(samples: list[Sample], left: bool = True) -> Sample:
    """Joins samples of different lengths into one padded batch, as a processor does."""
    longest = max(types.shape[1] for _, types in samples)
    joined: dict[str, list[torch.Tensor]] = {}
    all_types = []
    for inputs, types in samples:
        missing = longest - types.shape[1]
        sides = (missing, 0) if left else (0, missing)
        for name, value in inputs.items():
            if name == "input_ids":
                value = torch.nn.functional.pad(value, sides, value=PAD)
            elif name in _PER_TOKEN:
                value = torch.nn.functional.pad(value, sides)
            joined.setdefault(name, []).append(value)
        all_types.append(torch.nn.functional.pad(types, sides, value=PADDING))
    return {name: torch.cat(values) for name, values in joined.items()}, torch.cat(all_types)
