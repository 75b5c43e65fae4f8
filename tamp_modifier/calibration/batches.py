"""The calibration batches: token types and padding, read once before any forward pass."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from loguru import logger

from tamp_modifier.architectures import TEXT_INPUTS
from tamp_modifier.calibration.distributed import check_shares, gather, rank
from tamp_modifier.tokens import MODALITY_NAMES, TEXT, real_token_mask, token_types

PADDING = -1
"""Token type of padding in a batch."""

TokenTypesFunction = Callable[[Mapping[str, Any]], torch.Tensor]


@dataclass
class TokenBatch:
    """Token types of one calibration batch.

    Attributes:
        types: int64 [batch, sequence], ``PADDING`` where a token is padding.
        input_ids: int64 [batch, sequence], or None where the batch has none of this shape.
        first_sample: number of the batch's first sample in the whole calibration set.
        inputs: names of the model inputs that the batch has.
    """

    types: torch.Tensor
    input_ids: torch.Tensor | None
    first_sample: int
    inputs: frozenset[str] = frozenset()
    _cache: dict[torch.device, list[tuple[torch.Tensor | None, torch.Tensor]]] = field(
        default_factory=dict, repr=False
    )

    def samples(self, device: torch.device) -> list[tuple[torch.Tensor | None, torch.Tensor]]:
        """Per sample: indices of its real tokens [n] (None if none is padding), their types [n]."""
        if device not in self._cache:
            rows = []
            for types in self.types:
                real = types != PADDING
                index = None if bool(real.all()) else real.nonzero().squeeze(1).to(device)
                rows.append((index, types[real].to(device)))
            self._cache[device] = rows
        return self._cache[device]

    def has_ids(self, input_ids: torch.Tensor) -> bool:
        """Whether these ids are this batch's. Only text counts: models may hide placeholders."""
        if self.input_ids is None or self.input_ids.shape != input_ids.shape:
            return False
        text = self.types == TEXT
        return bool((self.input_ids == input_ids.to(self.input_ids.device))[text].all())


def read_batches(
    loader: Iterable[Any],
    ids: Mapping[str, Collection[int]],
    token_types_fn: TokenTypesFunction | None = None,
) -> list[TokenBatch]:
    """Read the token types of every batch.

    Args:
        loader: the calibration loader; its batches are mappings of tensors.
        ids: modality name to placeholder ids.
        token_types_fn: tells the types of a batch where ids do not: given the batch, returns
            integers [batch, sequence] of the decoder's own sequence, -1 for padding.

    Raises:
        ValueError: no batch, a batch without ``input_ids``, a batch with NaN or infinity, one with
            image, video or audio tokens and nothing but text inputs, or token types of a wrong
            shape or value.
    """
    batches: list[TokenBatch] = []
    samples = 0
    for index, batch in enumerate(loader):
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"calibration batch {index} is a {type(batch).__name__}, not a mapping"
            )
        _check_finite(index, batch)
        types, input_ids = _types_of(index, batch, ids, token_types_fn)
        batches.append(TokenBatch(types, input_ids, samples, frozenset(map(str, batch))))
        samples += types.shape[0]
    if not batches:
        raise ValueError("the calibration dataset is empty; give at least one sample")
    return batches


def join_batches(batches: list[TokenBatch]) -> list[TokenBatch]:
    """Return the batches of all processes, in their order."""
    return [batch for share in gather(batches) for batch in share]


def number_samples(batches: list[TokenBatch]) -> None:
    """Numbers the samples of this process's batches after those of the processes before it.

    Warns where two processes have the same batches.

    Raises:
        ValueError: model inputs that only some processes have.
    """
    digest = hashlib.sha256()
    for batch in batches:
        ids = batch.types if batch.input_ids is None else batch.input_ids
        digest.update(ids.contiguous().numpy().tobytes())
    names = frozenset().union(*(batch.inputs for batch in batches))
    if not check_shares(names, digest.hexdigest()):
        logger.warning(
            "several processes have the same calibration batches, which gives no more than one of "
            "them; give each its share (tamp_modifier.distributed.partition)"
        )
    before = sum(gather(sum(batch.types.shape[0] for batch in batches))[: rank()])
    for batch in batches:
        batch.first_sample += before


def import_function(path: str) -> TokenTypesFunction:
    """Import "package.module:function".

    Raises:
        ValueError: not of this form, no such module or function.
    """
    module_name, separator, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name) if separator else None
    except (ImportError, AttributeError):
        function = None
    if not callable(function):
        raise ValueError(
            "token_types_fn must be 'package.module:function', of a function that can be imported, "
            f"got {path!r}"
        )
    return function


def count_tokens(batches: Sequence[TokenBatch]) -> dict[str, int]:
    """Real tokens per modality name, over all batches, of the modalities that occur."""
    counts = {
        name: sum(int((batch.types == code).sum()) for batch in batches)
        for code, name in enumerate(MODALITY_NAMES)
    }
    return {name: count for name, count in counts.items() if count}


def _types_of(
    index: int,
    batch: Mapping[str, Any],
    ids: Mapping[str, Collection[int]],
    token_types_fn: TokenTypesFunction | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    input_ids = batch.get("input_ids")
    mask = batch.get("attention_mask")
    if token_types_fn is not None:
        types = token_types_fn(batch)
        if not isinstance(types, torch.Tensor) or types.dim() != 2 or types.is_floating_point():
            raise ValueError(
                f"token_types_fn must return integers [batch, sequence]; batch {index} gave "
                f"{_describe(types)}"
            )
        types = types.detach().cpu().long()
        if types.min() < PADDING or types.max() >= len(MODALITY_NAMES):
            raise ValueError(
                f"token_types_fn must return -1 (padding) to {len(MODALITY_NAMES) - 1}; "
                f"batch {index} has {int(types.min())} to {int(types.max())}"
            )
    elif isinstance(input_ids, torch.Tensor):
        types = token_types(input_ids.detach().cpu(), ids)
        _check_placeholders(index, batch, types)
    else:
        raise ValueError(
            f"calibration batch {index} has no input_ids (it has {', '.join(map(str, batch))}); "
            "give token_types_fn"
        )
    if isinstance(mask, torch.Tensor) and mask.shape[-1] == types.shape[1]:
        real = real_token_mask(mask, types.shape[0], types.shape[1], types.device)
        types = types.masked_fill(~real, PADDING)
    if bool((types == PADDING).all(dim=1).any()):
        raise ValueError(f"calibration batch {index} has a sample that is all padding")
    if not isinstance(input_ids, torch.Tensor) or input_ids.shape != types.shape:
        return types, None
    return types, input_ids.detach().cpu()


def _check_placeholders(index: int, batch: Mapping[str, Any], types: torch.Tensor) -> None:
    given = {name for name, value in batch.items() if value is not None}
    if given <= TEXT_INPUTS and bool((types != TEXT).any()):
        names = [MODALITY_NAMES[code] for code in types.unique().tolist() if code != TEXT]
        raise ValueError(
            f"calibration batch {index} has {' and '.join(names)} tokens but only "
            f"{', '.join(sorted(given))}; give what the processor makes of the {names[0]}, "
            'such as "pixel_values"'
        )


def _check_finite(index: int, batch: Mapping[str, Any]) -> None:
    for key, value in batch.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            # An additive attention mask holds -inf on purpose.
            bad = value.isnan() if key == "attention_mask" else ~value.isfinite()
            if bool(bad.any()):
                raise ValueError(f"calibration batch {index} has NaN or infinite values in {key!r}")


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
