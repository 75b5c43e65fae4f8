"""Watch over every run of llm-compressor in this process."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from llmcompressor.core import active_session
from llmcompressor.entrypoints.oneshot import Oneshot
from llmcompressor.pipelines.cache import IntermediatesCache
from loguru import logger
from torch import nn
from torch.utils.data import DataLoader

from tamp_modifier.data.collate import Collator, oneshot_loader
from tamp_modifier.upstream.fallback import calibrating
from tamp_modifier.upstream.grouped_experts import register_experts

_DONE = "_tamp_guarded"


def watch_runs(before: Callable[[nn.Module], None], after: Callable[[nn.Module], None]) -> None:
    """Call functions of the model around every run of a recipe; a second call does nothing.

    A run that fails, by Ctrl-C too, leaves no hooks behind, and modifiers that have an ``abandon``
    are told. `IntermediatesCache.pin_memory`, which AWQ calls, does nothing where there is no
    accelerator instead of raising. Rows that come with our `Collator` are encoded by us, and it
    learns the model's dtype before llm-compressor copies the loader.

    Args:
        before: called before the modifiers run.
        after: called when all have run; what it raises fails the run.
    """
    if getattr(Oneshot, _DONE, False):
        return
    oneshot: Any = Oneshot
    oneshot.apply_recipe_modifiers = _watched(Oneshot.apply_recipe_modifiers, before, after)
    entry: Any = sys.modules[Oneshot.__module__]  # the function of its name hides the module
    entry.get_calibration_dataloader = _taking_rows(entry.get_calibration_dataloader)
    setattr(Oneshot, _DONE, True)


def pin_where_possible() -> None:
    """Make `pin_memory`, which AWQ calls, do nothing without an accelerator; idempotent.

    Where there is none torch would raise.
    """
    if getattr(IntermediatesCache, _DONE, False):
        return
    cache: Any = IntermediatesCache
    cache.pin_memory = _where_it_can(IntermediatesCache.pin_memory)
    setattr(IntermediatesCache, _DONE, True)


def _watched(
    apply_recipe_modifiers: Callable[..., None],
    before: Callable[[nn.Module], None],
    after: Callable[[nn.Module], None],
) -> Callable[..., None]:
    @wraps(apply_recipe_modifiers)
    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        before(self.model)
        register_experts(self.model)
        for loader in (*args, *kwargs.values()):
            collator = getattr(loader, "collate_fn", None)
            if isinstance(collator, Collator):
                collator.use_dtype_of(self.model)
        strict = self.dataset_args.pipeline == "sequential"  # asked for; the default is another
        try:
            with calibrating("sequential" if strict else None, anew=True):
                apply_recipe_modifiers(self, *args, **kwargs)
        except BaseException:  # Ctrl-C too
            for modifier in active_session().lifecycle.recipe.modifiers:
                modifier.remove_hooks()
                abandon = getattr(modifier, "abandon", None)
                if abandon is not None:
                    abandon()
            raise
        after(self.model)

    return run


def _taking_rows(get_calibration_dataloader: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `get_calibration_dataloader`: rows are taken where our Collator is to join them."""

    @wraps(get_calibration_dataloader)
    def get(dataset_args: Any, processor: Any) -> Any:
        _tell_unused(dataset_args)
        loader = oneshot_loader(dataset_args)
        return get_calibration_dataloader(dataset_args, processor) if loader is None else loader

    return get


def _tell_unused(dataset_args: Any) -> None:
    """Warn of a number of samples that llm-compressor does not use: a loader is taken whole."""
    count = dataset_args.num_calibration_samples
    default = {field.name: field.default for field in dataclasses.fields(dataset_args)}
    if isinstance(dataset_args.dataset, DataLoader) and count not in (
        None,
        default["num_calibration_samples"],
    ):
        logger.warning(
            f"num_calibration_samples={count} is not used: dataset is a DataLoader, and all of "
            "its batches are"
        )


def _where_it_can(pin_memory: Callable[..., None]) -> Callable[..., None]:
    @wraps(pin_memory)
    def pin(*args: Any, **kwargs: Any) -> None:
        if torch.accelerator.is_available():
            pin_memory(*args, **kwargs)

    return pin
