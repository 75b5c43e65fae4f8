"""Which modality each token of the decoder's sequence has, and which tokens are padding.

A multimodal processor writes one placeholder id into ``input_ids`` for every embedding that an
encoder delivers (``<image>``, ``<|video_pad|>``, ``<|AUDIO|>``), and the model's config names these
ids. Everything else is text, also the markers around a picture (``vision_start_token_id``, ...):
they are ordinary rows of the embedding table.

Read ``input_ids`` from the calibration batch. Their way to ``model.get_input_embeddings()`` is not
safe: models whose placeholder may lie outside the vocabulary write another id there first (Gemma3
and PaliGemma 0 when ``image_token_id >= vocab_size``, Granite-Speech 0 always, Gemma3n and Gemma4
the pad id always). And where a model expands one placeholder into many embeddings by itself
(VideoLLaMA2, Qwen2-Audio with prompts of old), ids do not tell at all: such models need a function
of the user.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from tamp_modifier.architectures import (
    AUDIO_TOWERS,
    NESTED_CONFIGS,
    PLACEHOLDER_IDS,
    TOWERS,
    VISION_TOWERS,
)

TEXT, IMAGE, VIDEO, AUDIO = 0, 1, 2, 3
MODALITY_NAMES = ("text", "image", "video", "audio")
"""Names of the token types, in the order of their numbers."""


def modality_token_ids(config: Any) -> dict[str, tuple[int, ...]]:
    """Find the placeholder ids of every modality in a transformers config.

    Args:
        config: the config of a model; nested configs (``thinker_config``, ``text_config``, ...) are
            searched when the config itself does not name the id.

    Returns:
        Modality name to its ids, e.g. ``{"image": (32000,)}``; empty for a text-only model. Ids
        that are None or negative are skipped, and so is a modality whose tower is a field of the
        config and None (Gemma4 without a vision tower still has a default ``image_token_id``).
    """
    ids: dict[str, tuple[int, ...]] = {}
    for level in _levels(config):
        for modality, spellings in PLACEHOLDER_IDS.items():
            if modality in ids or _tower_switched_off(level, modality):
                continue
            found = [i for name in spellings for i in _as_ids(_get(level, name))]
            if found:
                ids[modality] = tuple(dict.fromkeys(found))
    return {name: ids[name] for name in MODALITY_NAMES if name in ids}


def is_multimodal(config: Any) -> bool:
    """Tell whether the config belongs to a model that reads more than text.

    True when it has a vision or audio tower (``vision_config``, ``audio_config``,
    ``thinker_config.vision_config``, LLaVA's own ``mm_vision_tower``, ...) or names a placeholder
    id.
    """
    towers = (*VISION_TOWERS, *AUDIO_TOWERS)
    if any(_get(level, name) for level in _levels(config) for name in towers):
        return True
    return bool(modality_token_ids(config))


def parse_modality_token_ids(
    mapping: Mapping[str, int | Collection[int]],
) -> dict[str, tuple[int, ...]]:
    """Check a user's mapping of modality to placeholder ids and brings it into one form.

    Args:
        mapping: e.g. ``{"image": 32000}`` or ``{"image": [32000, 32001], "audio": 32002}``.

    Returns:
        Modality name to a tuple of ids.

    Raises:
        TypeError: not a mapping, or an id that is not an integer.
        ValueError: an empty mapping, an unknown modality, no id or a negative one, or one id given
            to two modalities.
    """
    field = "modality_token_ids"
    allowed = ", ".join(MODALITY_NAMES[1:])
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"{field} must map modality names to token ids ({{'image': 32000}}); got {mapping!r}"
        )
    if not mapping:
        raise ValueError(f"{field} is empty; give at least one of {allowed}")
    parsed: dict[str, tuple[int, ...]] = {}
    owner: dict[int, str] = {}
    for name, value in mapping.items():
        if name not in MODALITY_NAMES[1:]:
            raise ValueError(f"{field}: unknown modality {name!r}; allowed are {allowed}")
        ids: list[int] = []
        for i in value if isinstance(value, Iterable) and not isinstance(value, str) else (value,):
            if isinstance(i, bool) or not isinstance(i, int):
                raise TypeError(f"{field}[{name!r}] must be integers >= 0; got {value!r}")
            if i < 0:
                raise ValueError(f"{field}[{name!r}] must be token ids >= 0; got {i}")
            if owner.setdefault(i, name) != name:
                raise ValueError(f"{field}: id {i} is given to both {owner[i]!r} and {name!r}")
            ids.append(i)
        if not ids:
            raise ValueError(f"{field}[{name!r}] has no token id")
        parsed[name] = tuple(dict.fromkeys(ids))
    return parsed


def token_types(
    input_ids: torch.Tensor, ids: Mapping[str, int | Collection[int]]
) -> torch.LongTensor:
    """Tell the modality of every token from its id.

    Args:
        input_ids: token ids, any integer type, [batch, sequence].
        ids: modality name to its placeholder ids, see `modality_token_ids`. May be empty:
            then every token is text.

    Returns:
        int64 [batch, sequence]: 0 text, 1 image, 2 video, 3 audio.

    Raises:
        ValueError, TypeError: see `parse_modality_token_ids`; or ``input_ids`` is not 2D.
    """
    if input_ids.dim() != 2 or input_ids.is_floating_point():
        raise ValueError(
            "input_ids must be integers of shape [batch, sequence]; got "
            f"{input_ids.dtype} {list(input_ids.shape)}"
        )
    types = torch.zeros(input_ids.shape, dtype=torch.long, device=input_ids.device)
    for name, values in (parse_modality_token_ids(ids) if ids else {}).items():
        for value in values:
            types[input_ids == value] = MODALITY_NAMES.index(name)
    return types  # type: ignore[return-value]


def real_token_mask(
    attention_mask: torch.Tensor | None,
    batch: int,
    length: int,
    device: torch.device | str,
) -> torch.Tensor:
    """Tell real tokens from padding, for left or right padded batches.

    Args:
        attention_mask: one of

            - None: nothing is padded;
            - [B, S]: non-zero for real tokens;
            - [B or 1, heads or 1, S, S], bool (True = may attend) or additive (0 = may attend, the
              dtype's minimum or -inf = may not), as decoder layers get it under eager attention. A
              token may attend to itself exactly when it is real: masks of padded keys clear the
              diagonal, and neither causality, a sliding window nor bidirectional attention inside a
              picture does.
        batch: B, number of samples.
        length: S, tokens per sample with padding.
        device: device of the result.

    Returns:
        bool [B, S], True for real tokens.

    Raises:
        ValueError: a mask of any other shape.
    """
    if attention_mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=device)
    shape = list(attention_mask.shape)
    if attention_mask.dim() == 2:
        per_token = attention_mask
        real = per_token if per_token.dtype == torch.bool else per_token != 0
    elif attention_mask.dim() == 4 and shape[2] == shape[3]:
        per_token = attention_mask[:, 0].diagonal(dim1=-2, dim2=-1)
        if per_token.is_floating_point():
            real = per_token > torch.finfo(per_token.dtype).min / 2
        else:
            real = per_token != 0
    else:
        real = attention_mask.new_empty(0, 0)
    if real.shape[-1] != length or real.shape[0] not in (1, batch):
        raise ValueError(
            f"attention_mask has shape {shape}; allowed are [{batch}, {length}] and "
            f"[{batch}, 1, {length}, {length}]"
        )
    return real.expand(batch, length).to(device=device, dtype=torch.bool)


def _levels(config: Any) -> list[Any]:
    """Return the config and its nested configs, outermost first; only the thinker where there is
    one.
    """
    if config is None:
        return []
    thinker = _get(config, "thinker_config")
    if thinker is not None:
        return _levels(thinker)
    nested = [_get(config, name) for name in NESTED_CONFIGS]
    return [config, *(c for c in nested if c is not None and not isinstance(c, str | int))]


def _get(config: Any, name: str) -> Any:
    """Return a field of a config object or of a config that is still a dict; None where it is
    missing.
    """
    if isinstance(config, Mapping):
        return config.get(name)
    return getattr(config, name, None)


def _has(config: Any, name: str) -> bool:
    return name in config if isinstance(config, Mapping) else hasattr(config, name)


def _tower_switched_off(config: Any, modality: str) -> bool:
    declared = [name for name in TOWERS[modality] if _has(config, name)]
    return bool(declared) and all(_get(config, name) is None for name in declared)


def _as_ids(value: Any) -> tuple[int, ...]:
    """Return valid ids in a config value, an integer or a list of them; None and -1 mean none."""
    values = value if isinstance(value, list | tuple) else (value,)
    return tuple(i for i in values if isinstance(i, int) and not isinstance(i, bool) and i >= 0)
