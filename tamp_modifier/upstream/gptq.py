"""Have GPTQ quantize pruned weights to zero.

GPTQ quantizes column by column and moves the columns that follow, pruned weights among them. So its
loop is told which weights are pruned: these are quantized to zero when their column comes, and the
rest of the row makes up for that as for any rounding error.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any

import torch
from compressed_tensors.utils import patch_attr
from llmcompressor.modifiers.gptq import base, gptq_quantize
from torch import Tensor, nn

_DONE = "_tamp_masked"
_PRUNED = "_tamp_pruned"

MaskOf = Callable[[nn.Module, torch.device], Tensor | None]
"""A Linear's pruned weights, bool [out, in] on a device, True = pruned; None if there are none."""


def keep_masks(mask_of: MaskOf) -> None:
    """Make GPTQ keep the pruned weights of every Linear at zero; a second call does nothing."""
    if getattr(base.quantize_weight, _DONE, False):
        return
    base.prepare_batch = _with_masks(base.prepare_batch, mask_of)
    base.quantize_weight = _seeing_masks(base.quantize_weight)
    setattr(base.quantize_weight, _DONE, True)


def _with_masks(prepare_batch: Callable[..., Any], mask_of: MaskOf) -> Callable[..., Any]:
    """GPTQ's `prepare_batch`, whose stacked weights bring their masks along."""

    @wraps(prepare_batch)
    def prepare(batch: list[nn.Module], *args: Any, **kwargs: Any) -> Any:
        weights, *rest = prepare_batch(batch, *args, **kwargs)
        found = [mask_of(module, weights.device) for module in batch]
        if any(mask is not None for mask in found):
            none = torch.zeros(weights.shape[1:], dtype=torch.bool, device=weights.device)
            masks = [none if mask is None else mask for mask in found]
            setattr(weights, _PRUNED, torch.stack(masks))
        return (weights, *rest)

    return prepare


def _seeing_masks(quantize_weight: Callable[..., Any]) -> Callable[..., Any]:
    """GPTQ's `quantize_weight`, which quantizes pruned weights to zero.

    A pruned weight is given the coarsest scale there is, on which nothing but zero is near. So the
    solver itself, on any device, has zero as its result and passes the error on.
    """

    @wraps(quantize_weight)
    def quantize(weights: Tensor, hessians: Tensor, *args: Any, **kwargs: Any) -> Any:
        pruned: Tensor | None = getattr(weights, _PRUNED, None)
        if pruned is None:
            return quantize_weight(weights, hessians, *args, **kwargs)
        in_order = pruned  # [batch, rows, columns], columns in the order of the solver

        def ordering(*arguments: Any, **options: Any) -> Any:
            nonlocal in_order
            ordered = apply_activation_ordering(*arguments, **options)
            if ordered[2] is not None:  # [batch, columns]
                in_order = pruned.gather(-1, ordered[2].unsqueeze(-2).expand_as(pruned))
            return ordered

        def window(*arguments: Any, i1: int, i2: int, **options: Any) -> Any:
            options |= {"i1": i1, "i2": i2}
            scale, zero_point = column_scale_window(*arguments, **options)
            coarsest = torch.finfo(scale.dtype).max
            return scale.masked_fill(in_order[..., i1:i2], coarsest), zero_point

        apply_activation_ordering = gptq_quantize.apply_activation_ordering
        column_scale_window = gptq_quantize.column_scale_window
        with ExitStack() as stack:
            stack.enter_context(patch_attr(gptq_quantize, "apply_activation_ordering", ordering))
            stack.enter_context(patch_attr(gptq_quantize, "column_scale_window", window))
            quantized, *rest = quantize_weight(weights, hessians, *args, **kwargs)
        return (quantized.masked_fill_(pruned, 0.0), *rest)  # -0 becomes 0

    return quantize
