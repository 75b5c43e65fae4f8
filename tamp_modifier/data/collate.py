"""Join encoded samples into one batch: text is padded, media are put one after the other.

Multimodal models take media in one of two ways, and both are a concatenation along the first
dimension: as pixels or features of every picture or sound ([pictures, 3, H, W], [pictures, tiles,
3, H, W], [sounds, mel, frames]), where smaller ones are filled with zeros and sizes or masks tell
what is real; or as one flat list of patches with the grid of every picture (Qwen-VL). So the rules
need no list of architectures: what has one value a token is padded, everything else is joined.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from tamp_modifier.architectures import PER_TOKEN
from tamp_modifier.data.base import Conversation, DataError, Place, short
from tamp_modifier.data.encoding import Encoded, Encoder, cut_text
from tamp_modifier.data.rows import to_conversation
from tamp_modifier.data.tables import is_dataset, is_encoded_dataset, only_split, rows_in_memory

Batch = dict[str, torch.Tensor]

_FILL = {"labels": -100}
_REAL_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class Collator:
    """Join samples of different lengths, with media of different sizes or none, into one batch.

    Give it to a DataLoader as ``collate_fn``, or to ``oneshot`` as ``data_collator``. Samples that
    are rows as in a file (``docs/data.md``) are encoded first.

    Args:
        processor: a processor or tokenizer; tells the padding token and side.
        placeholders: ids of media tokens by modality (``tokens.modality_token_ids(config)``),
            needed with ``max_length`` only.
        max_length: longer samples lose text from their end, never a token of media.
        padding_side: "left" or "right"; by default the tokenizer's.
        dtype: type that pixels and features are brought to. By default it is that of the model
            which ``oneshot`` calibrates with these batches; elsewhere they stay as they are.
            Floating numbers of one dimension, such as the seconds of frames, always stay.

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
        self._processor = processor
        tokenizer = getattr(processor, "tokenizer", processor)
        self._side = padding_side or getattr(tokenizer, "padding_side", "right")
        if self._side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {self._side!r}")
        ids = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
        self._pad = next((i for i in ids if i is not None), 0)
        self._placeholders = placeholders or {}
        self._max_length = max_length
        self._dtype = dtype
        self._model_dtype: torch.dtype | None = None

    def use_dtype_of(self, model: nn.Module) -> None:
        """Bring pixels to the type of a model's weights, unless ``dtype`` was given."""
        types = (p.dtype for p in model.parameters() if p.dtype in _REAL_TYPES)
        dtype = getattr(model, "dtype", None)
        self._model_dtype = dtype if dtype in _REAL_TYPES else next(types, None)

    def encode(self, row: Any, place: Place) -> Any:
        """Return a row as inputs of the model; what is encoded already stays as it is.

        Args:
            row: a row as in a file, a conversation, an `Encoded`, or a mapping with input_ids.
            place: where a row comes from.

        Raises:
            DataError: what `read_conversations` and `Encoder` refuse.
        """
        if isinstance(row, Encoded) or (isinstance(row, Mapping) and "input_ids" in row):
            return row
        if not isinstance(row, Conversation):
            row = to_conversation(row, place)
        return Encoder(self._processor, self._placeholders, self._max_length)(row)

    def __call__(self, samples: Sequence[Any]) -> Batch:
        """Join samples.

        Args:
            samples: encoded conversations, mappings of tensors of batch size 1, or rows.

        Raises:
            DataError: a sample is too long for its media, inputs cannot be joined, or a row cannot
                be used.
        """
        named = [self._named(sample, number) for number, sample in enumerate(samples)]
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

    def _named(self, sample: Any, number: int) -> tuple[str, Batch]:
        """Name and inputs of a sample."""
        name = f"sample {number} of the batch"
        sample = self.encode(sample, Place(name))
        if isinstance(sample, Encoded):
            return sample.name, dict(sample.inputs)
        return name, {key: _batched(key, value, name) for key, value in sample.items()}

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
        dtype = self._dtype or self._model_dtype
        if dtype is not None:
            values = [v.to(dtype) if v.is_floating_point() and v.dim() > 1 else v for v in values]
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


def make_loader(
    samples: Any, collator: Callable[[list[Any]], Any], batch_size: int = 1
) -> DataLoader:
    """Make a DataLoader in the given order, as calibration needs it: the same in every pass.

    Args:
        samples: encoded samples, mappings of tensors, rows as in a file (``docs/data.md``), or a
            dataset of Hugging Face. Rows are encoded here, once.
        collator: joins them; a `Collator` where there are rows to encode. Any other function gets
            the samples as they are.
        batch_size: samples of one batch.

    Returns:
        A DataLoader of the model's inputs, tensors by name, without shuffling.

    Raises:
        DataError: a row cannot be used, or there is none.
    """
    if is_encoded_dataset(samples) or not isinstance(collator, Collator):
        data = list(samples)
    else:
        data = [collator.encode(row.value, row.place) for row in rows_in_memory(samples)]
    if not data:
        raise DataError("the data hold no sample")
    loaded: Any = data
    return DataLoader(loaded, batch_size=batch_size, shuffle=False, collate_fn=collator)


def oneshot_loader(arguments: Any) -> DataLoader | None:
    """Return the loader for what was given to ``oneshot`` as dataset and data_collator.

    llm-compressor takes rows of text in datasets of Hugging Face only, and drops columns that the
    processor does not name, pictures among them. So rows that come with a `Collator` are encoded
    here.

    Args:
        arguments: llm-compressor's ``DatasetArguments``.

    Returns:
        A loader in a fixed order, or None for what llm-compressor itself takes.

    Raises:
        DataError: a row cannot be used, or a list of rows comes without a Collator.
    """
    dataset, collator = arguments.dataset, arguments.data_collator
    is_list = isinstance(dataset, list | tuple)
    if not is_list and (not is_dataset(dataset) or is_encoded_dataset(dataset)):
        return None
    if not isinstance(collator, Collator):
        if not is_list:
            return None
        raise DataError(
            "oneshot was given a list as dataset; give data_collator=Collator(processor) with it, "
            "or make a loader of it with tamp_modifier.data.make_loader"
        )
    if isinstance(dataset, Mapping):
        split = arguments.splits
        if isinstance(split, str) and split not in dataset:
            raise DataError(f"splits is {split!r}, but the dataset has {', '.join(dataset)}")
        dataset = dataset[split] if isinstance(split, str) else only_split(dataset)
    if not hasattr(dataset, "__len__"):  # a stream, which may have no end
        first = islice(rows_in_memory(dataset), arguments.num_calibration_samples)
        dataset = [row.value for row in first]
    count = min(arguments.num_calibration_samples or len(dataset), len(dataset))
    shuffled = arguments.shuffle_calibration_samples
    order = (torch.randperm(len(dataset)) if shuffled else torch.arange(len(dataset))).tolist()
    order = order[:count]
    # A dataset is not read as a whole: its pictures may not fit into memory.
    select = getattr(dataset, "select", lambda indices: [dataset[i] for i in indices])
    chosen = select(order)
    samples = [
        collator.encode(row.value, Place(f"row {index + 1}"))
        for index, row in zip(order, rows_in_memory(chosen), strict=True)
    ]
    return make_loader(samples, collator, arguments.batch_size)


def _batched(key: str, value: Any, name: str) -> torch.Tensor:
    """Rows of a dataset have no batch dimension in what has one value a token."""
    try:
        value = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"{name}: {key} is {short(value)}, which is not a tensor; leave it out, or leave out "
            "input_ids to have the row encoded"
        ) from None
    return value[None] if key in PER_TOKEN and value.dim() == 1 else value
