"""Joins encoded samples into one batch: text is padded, media are put one after the other.

Multimodal models take media in one of two ways, and both are a concatenation along the first
dimension: as pixels or features of every picture or sound ([pictures, 3, H, W], [pictures, tiles,
3, H, W], [sounds, mel, frames]), where smaller ones are filled with zeros and sizes or masks tell
what is real; or as one flat list of patches with the grid of every picture (Qwen-VL). So the rules
need no list of architectures: what has one value a token is padded, everything else is joined.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from tamp_modifier.data.conversations import DataError
from tamp_modifier.data.encoding import PER_TOKEN, Encoded, cut_text

Batch = dict[str, torch.Tensor]

_FILL = {"labels": -100}


class Collator:
    """Joins samples of different lengths, with media of different sizes or none, into one batch.

    Give it to a DataLoader as ``collate_fn``, or to ``oneshot`` as ``data_collator``.

    Args:
        processor: a processor or tokenizer; tells the padding token and side.
        placeholders: ids of media tokens by modality (``tokens.modality_token_ids(config)``),
            needed with ``max_length`` only.
        max_length: longer samples lose text from their end, never a token of media.
        padding_side: "left" or "right"; by default the tokenizer's.
        dtype: type that floating-point inputs are brought to; by default they stay as they are.

    Raises:
        ValueError: a padding side that is neither.
    """

    def __init__(
        self,
        processor: Any,
        placeholders: Mapping[str, Collection[int]] | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        tokenizer = getattr(processor, "tokenizer", processor)
        self._side = padding_side or getattr(tokenizer, "padding_side", "right")
        if self._side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {self._side!r}")
        ids = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
        self._pad = next((i for i in ids if i is not None), 0)
        self._placeholders = placeholders or {}
        self._max_length = max_length
        self._dtype = dtype

    def __call__(self, samples: Sequence[Encoded | Mapping[str, Any]]) -> Batch:
        """Join samples.

        Args:
            samples: encoded conversations, or mappings of tensors of batch size 1.

        Raises:
            DataError: a sample is too long for its media, or inputs cannot be joined.
        """
        named = [
            (s.name, dict(s.inputs))
            if isinstance(s, Encoded)
            else (f"sample {number} of the batch", {k: _batched(k, v) for k, v in s.items()})
            for number, s in enumerate(samples)
        ]
        if self._max_length is not None:
            named = [
                (name, cut_text(inputs, self._max_length, self._placeholders, name))
                for name, inputs in named
            ]
        for _, inputs in named:
            inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        keys = dict.fromkeys(key for _, inputs in named for key in inputs)
        return {
            key: self._tokens(key, named) if key in PER_TOKEN else self._join(key, named)
            for key in keys
        }

    def _tokens(self, key: str, named: Sequence[tuple[str, Batch]]) -> torch.Tensor:
        longest = max(inputs["input_ids"].shape[1] for _, inputs in named)
        fill = self._pad if key == "input_ids" else _FILL.get(key, 0)
        rows = []
        for _, inputs in named:
            # A sample of text alone lacks the kinds of tokens: all are text, which is 0.
            value = inputs.get(key)
            value = torch.zeros_like(inputs["input_ids"]) if value is None else value
            missing = longest - value.shape[1]
            sides = (missing, 0) if self._side == "left" else (0, missing)
            rows.append(pad(value, sides, value=fill))
        return torch.cat(rows)

    def _join(self, key: str, named: Sequence[tuple[str, Batch]]) -> torch.Tensor:
        having = [(name, inputs[key]) for name, inputs in named if key in inputs]
        values = [value for _, value in having]
        if self._dtype is not None:
            values = [v.to(self._dtype) if v.is_floating_point() else v for v in values]
        if len({value.dim() for value in values}) > 1:
            shapes = ", ".join(str(list(value.shape)) for value in values)
            raise DataError(f"{key} of the samples has different dimensions: {shapes}")
        if key == "pixel_values_videos" and values[0].dim() == 5:
            self._check_frames(having)
        sizes = [max(v.shape[d] for v in values) for d in range(1, values[0].dim())]
        filled = []
        for value in values:
            missing = [size - have for size, have in zip(sizes, value.shape[1:], strict=True)]
            filled.append(pad(value, [n for m in reversed(missing) for n in (0, m)]))
        return torch.cat(filled)

    def _check_frames(self, having: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Videos as [videos, frames, 3, H, W] come without a mask: added frames would be seen."""
        first, frames = having[0][0], having[0][1].shape[1]
        for name, value in having[1:]:
            if value.shape[1] != frames:
                raise DataError(
                    f"{name}: its video has {value.shape[1]} frames and that of {first} {frames}; "
                    "this model takes them in one batch only if they are the same: take a batch "
                    "size of 1 or fewer frames"
                )


def make_loader(samples: Sequence[Any], collator: Collator, batch_size: int = 1) -> DataLoader:
    """Return a DataLoader in the given order, as calibration needs it: the same in every pass."""
    data: Any = list(samples)
    return DataLoader(data, batch_size=batch_size, shuffle=False, collate_fn=collator)


def _batched(key: str, value: Any) -> torch.Tensor:
    """Rows of a dataset have no batch dimension in what has one value a token."""
    value = torch.as_tensor(value)
    return value[None] if key in PER_TOKEN and value.dim() == 1 else value
