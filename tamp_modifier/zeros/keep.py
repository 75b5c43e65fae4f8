"""Keep pruned weights zero in all that llm-compressor does next, and fail runs that do not.

SmoothQuant and AWQ scale columns, and rounding takes zero to zero, so most of a recipe keeps zeros
by itself. GPTQ does not, and is told which weights are pruned: see `upstream.gptq`.
"""

from __future__ import annotations

import torch
from compressed_tensors.quantization.utils import calculate_range
from compressed_tensors.utils import align_module_device
from loguru import logger
from torch import Tensor, nn

from tamp_modifier.messages import some
from tamp_modifier.upstream.gptq import keep_masks
from tamp_modifier.upstream.names import require_llm_compressor
from tamp_modifier.upstream.oneshot import pin_where_possible, watch_runs
from tamp_modifier.upstream.saving import complete_when_saved
from tamp_modifier.zeros import remembered as preserve


def watch_zeros() -> None:
    """Check remembered zeros around every run of llm-compressor in this process; idempotent.

    Importing TAMPModifier calls it: a run that makes its modifiers from YAML has begun when these
    are initialised, too late to watch it. Models of which nothing is remembered
    (`remembered.remember`) are treated as before.
    """
    watch_runs(before=forget_changed, after=_check_run)


def guard_zeros() -> None:
    """Make every run of llm-compressor in this process keep remembered zeros; idempotent.

    TAMPModifier calls it when it is initialised.

    Raises:
        UpstreamChanged: llm-compressor lacks a name that is patched or reached into.
    """
    require_llm_compressor()
    watch_zeros()
    keep_masks(_mask_of)
    pin_where_possible()


def _mask_of(module: nn.Module, device: torch.device) -> Tensor | None:
    bits = preserve.pruned_bits(module)
    return None if bits is None else bits.mask(device)


def _check_run(model: nn.Module) -> None:
    """Refuse lost zeros; only now, because llm-compressor wraps `save_pretrained` before a run."""
    refuse_lost_zeros(model)
    if preserve.remembered(model):
        complete_when_saved(model)


def keep_zeros(model: nn.Module) -> list[str]:
    """Remember the zeros of a pruned model that was loaded, and guard them in later runs.

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
    guard_zeros()
    return found


def refuse_lost_zeros(model: nn.Module) -> None:
    """Check that every remembered zero of a model is still zero, also after quantization.

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
    """Forget the masks of Linears that were changed since they were pruned, with a warning."""
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
