"""Keys and values of cross-attention: Linears of the decoder that see an encoder's states.

Llama 3.2 Vision has such layers. Their queries come from the decoder's tokens, their keys and
values from the states of the pictures, which have no place among the tokens: each is a token of its
modality there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tamp_modifier.calibration.activations import Activations
from tamp_modifier.calibration.batches import TokenBatch
from tamp_modifier.calibration.targets import Target
from tamp_modifier.tokens import AUDIO, IMAGE, VIDEO

KEYS_AND_VALUES = ("k_proj", "v_proj", "kv_proj", "key", "value")


def cross_attention_targets(model: nn.Module, targets: Collection[Target]) -> set[Target]:
    """Find the Linears that give keys and values of a cross-attention."""
    found = set()
    for target in targets:
        parent, _, own = target.name.rpartition(".")
        if target.layer is None or own not in KEYS_AND_VALUES:
            continue
        inside = parent[len(target.layer) :]
        kind = type(model.get_submodule(parent)).__name__
        if "cross" in f"{inside}{kind}".lower():
            found.add(target)
    return found


def real_states(kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Tell the states that a token may look at from padding, such as tiles that a picture lacks.

    Args:
        kwargs: what a decoder layer was called with.

    Returns:
        bool [batch, states], or None where the layer gets no mask.
    """
    mask = kwargs.get("cross_attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        return None
    allowed = mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask != 0
    rows = kwargs.get("full_text_row_masked_out_mask")
    if isinstance(rows, torch.Tensor):  # rows of tokens before the picture, which see nothing
        allowed = allowed & (rows != 0)
    return allowed.flatten(1, 2).any(1)


def states_of(
    target: Target,
    batch: TokenBatch,
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    real: torch.Tensor | None,
) -> Iterator[Activations]:
    """Yield the states that a Linear saw, sample by sample.

    Args:
        target: the Linear.
        batch: the batch that passes through.
        inputs: [..., in_features], the states of all samples in their order.
        outputs: [..., out_features].
        real: from `real_states`.
    """
    x, y = inputs.flatten(0, -2), outputs.flatten(0, -2)
    size = batch.types.shape[0]
    if x.shape[0] % size:  # samples with different numbers of states: not told apart
        size, real = 1, None
    for number, (states, given) in enumerate(
        zip(x.unflatten(0, (size, -1)), y.unflatten(0, (size, -1)), strict=True)
    ):
        if real is not None and real.shape == (size, states.shape[0]):
            keep = real[number].to(states.device)
            states, given = states[keep], given[keep]
        if states.shape[0] == 0:
            continue
        types = torch.full((states.shape[0],), _modality(batch), device=states.device)
        sample = batch.first_sample + number
        yield Activations(target, sample, states, given, types, states.shape[0], cross=True)


def _modality(batch: TokenBatch) -> int:
    names = " ".join(sorted(batch.inputs))
    if "pixel_values" in batch.inputs or not names:
        return IMAGE
    if "video" in names:
        return VIDEO
    return AUDIO if "audio" in names or "input_features" in names else IMAGE
