"""Keeps pruned weights zero in all that llm-compressor does next, and fails runs that do not.

SmoothQuant and AWQ scale columns, and rounding takes zero to zero, so most of a recipe keeps zeros
by itself. GPTQ does not: it quantizes column by column and moves the columns that follow, pruned
weights among them. So its loop is told which weights are pruned: these are quantized to zero when
their column comes, and the rest of the row makes up for that as for any rounding error.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any

import torch
from compressed_tensors.quantization.utils import calculate_range
from compressed_tensors.utils import align_module_device, patch_attr
from llmcompressor.core import active_session
from llmcompressor.entrypoints.oneshot import Oneshot
from llmcompressor.modifiers.gptq import base, gptq_quantize
from llmcompressor.pipelines.cache import IntermediatesCache
from loguru import logger
from torch import Tensor, nn

from tamp_modifier import preserve
from tamp_modifier.budget import some
from tamp_modifier.saving import complete_when_saved

_DONE = "_tamp_guarded"
_PRUNED = "_tamp_pruned"


def guard_zeros() -> None:
    """Makes every run of llm-compressor in this process keep remembered zeros; idempotent.

    Importing TAMPModifier calls it. Models of which nothing is remembered
    (`preserve.remember`) are treated as before. Three things of llm-compressor are wrapped, in
    memory: GPTQ's solver, `Oneshot.apply_recipe_modifiers`, and `IntermediatesCache.pin_memory`,
    which AWQ calls and which raises where there is no accelerator.
    """
    if getattr(Oneshot, _DONE, False):
        return
    base.prepare_batch = _with_masks(base.prepare_batch)
    base.quantize_weight = _seeing_masks(base.quantize_weight)
    oneshot: Any = Oneshot
    oneshot.apply_recipe_modifiers = _checked(Oneshot.apply_recipe_modifiers)
    cache: Any = IntermediatesCache
    cache.pin_memory = _where_it_can(IntermediatesCache.pin_memory)
    setattr(Oneshot, _DONE, True)


def keep_zeros(model: nn.Module) -> list[str]:
    """Remembers the zeros of a pruned model that was loaded, so that later runs keep them.

    Args:
        model: its Linears with some zeros, but not only zeros, are remembered.

    Returns:
        The names of these Linears.

    Raises:
        ValueError: there are none.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            with align_module_device(module):
                zeros = module.weight.detach() == 0
                if bool(zeros.any()) and not bool(zeros.all()):
                    preserve.remember(module, module.weight)
                    found.append(name)
    if not found:
        raise ValueError(f"{type(model).__name__} has no zeros to keep; prune it first")
    return found


def refuse_lost_zeros(model: nn.Module) -> None:
    """Checks that every remembered zero of a model is still zero, also after quantization.

    Raises:
        RuntimeError: naming the Linears and how many weights came back.
    """
    lost = {}
    gridless = []
    for name, module in preserve.remembered(model).items():
        with align_module_device(module):
            count = preserve.came_back(module, module.weight.detach())
            if count:
                lost[name] = count
            elif not _grid_has_zero(module):
                gridless.append(name)
    if lost:
        listed = [f"{name} ({count})" for name, count in lost.items()]
        raise RuntimeError(
            f"{sum(lost.values())} pruned weights came back in {len(lost)} Linears, by a modifier "
            f"that ran after TAMPModifier: {some(listed)}. Nothing was saved; leave that modifier "
            "out or put it before TAMPModifier"
        )
    if gridless:
        raise RuntimeError(
            f"the quantization of {len(gridless)} pruned Linears has no exact zero: "
            f"{some(gridless)}"
        )


def forget_changed(model: nn.Module) -> None:
    """Forgets the masks of Linears that were changed since they were pruned, with a warning."""
    changed = []
    for name, module in preserve.remembered(model).items():
        with align_module_device(module):
            weight = getattr(module, "weight", None)
            bits = preserve.pruned_bits(module)
            assert bits is not None
            kept = (
                weight is not None
                and weight.shape == bits.shape
                and not preserve.came_back(module, weight.detach())
            )
        if not kept:
            preserve.set_pruned_bits(module, None)
            changed.append(name)
    if changed:
        logger.warning(
            f"{len(changed)} Linears have weights that TAMP had pruned; they were changed before "
            f"this run, and their zeros are no longer kept: {some(changed)}"
        )


# -- GPTQ ------------------------------------------------------------------------------------------


def _with_masks(prepare_batch: Callable[..., Any]) -> Callable[..., Any]:
    """GPTQ's `prepare_batch`, whose stacked weights bring their masks along."""

    @wraps(prepare_batch)
    def prepare(batch: list[nn.Module], *args: Any, **kwargs: Any) -> Any:
        weights, *rest = prepare_batch(batch, *args, **kwargs)
        found = [preserve.pruned_bits(module) for module in batch]
        if any(bits is not None for bits in found):
            none = torch.zeros(weights.shape[1:], dtype=torch.bool, device=weights.device)
            masks = [none if bits is None else bits.mask(weights.device) for bits in found]
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


# -- whole runs ------------------------------------------------------------------------------------


def _checked(apply_recipe_modifiers: Callable[..., None]) -> Callable[..., None]:
    """`Oneshot.apply_recipe_modifiers`, which leaves neither hooks nor lost zeros behind.

    Only then is `save_pretrained` completed: llm-compressor has wrapped it before the run.
    """

    @wraps(apply_recipe_modifiers)
    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        forget_changed(self.model)
        try:
            apply_recipe_modifiers(self, *args, **kwargs)
        except BaseException:  # Ctrl-C too
            for modifier in active_session().lifecycle.recipe.modifiers:
                modifier.remove_hooks()
                abandon = getattr(modifier, "abandon", None)
                if abandon is not None:
                    abandon()
            raise
        refuse_lost_zeros(self.model)
        if preserve.remembered(self.model):
            complete_when_saved(self.model)

    return run


def _where_it_can(pin_memory: Callable[..., None]) -> Callable[..., None]:
    @wraps(pin_memory)
    def pin(*args: Any, **kwargs: Any) -> None:
        if torch.accelerator.is_available():
            pin_memory(*args, **kwargs)

    return pin


def _grid_has_zero(module: nn.Module) -> bool:
    """Whether zero stays zero in the quantization of a Linear; True where there is none."""
    args = getattr(getattr(module, "quantization_scheme", None), "weights", None)
    scale = getattr(module, "weight_scale", None)
    if args is None or scale is None:
        return True
    good = bool((scale.float().isfinite() & (scale != 0)).all())
    zero_point = getattr(module, "weight_zero_point", None)
    if good and zero_point is not None and not args.symmetric:
        low, high = calculate_range(args, zero_point.device)
        good = bool(((zero_point >= low) & (zero_point <= high)).all())
    return good
