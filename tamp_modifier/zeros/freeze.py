"""Keep the zeros of a model while it is trained. `freeze` is the way in."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from tamp_modifier.zeros.remembered import PrunedBits, pruned_bits


class FrozenZeros:
    """Zeros that are kept until `remove`; a context manager, too.

    Attributes:
        names: the Linears whose zeros are kept.
        count: number of weights that are kept at zero.
    """

    def __init__(self, masks: dict[str, tuple[Tensor, PrunedBits]]) -> None:
        self.names = list(masks)
        self.count = sum(int(bits.mask().sum()) for _, bits in masks.values())
        self._masks = {id(weight): (weight, bits) for weight, bits in masks.values()}
        self._handles: list[Any] = [register_optimizer_step_post_hook(self._after_step)]
        for weight, bits in self._masks.values():
            if weight.grad is not None:
                bits.clear(weight.grad)
            if weight.requires_grad:
                self._handles.append(weight.register_hook(bits.cleared))

    def remove(self) -> None:
        """Let the weights go; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._masks.clear()

    def __enter__(self) -> FrozenZeros:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                weight, bits = self._masks.get(id(parameter), (None, None))
                if weight is not None and bits is not None:
                    bits.clear(weight.data)


def freeze(model: nn.Module) -> FrozenZeros:
    """Keep the zeros of a model through training, with any optimizer of torch.

    Gradients of pruned weights are set to zero as they arrive, so they leave momentum, second
    moments and gradient norms alone; and after every step of an optimizer that holds such a weight
    the zeros are set again, so that momentum from before or noise does not move them. Parameters,
    their names, the optimizer's state and the state dict stay as they are.

        with freeze(model):
            train(model, torch.optim.AdamW(model.parameters()))
        model.save_pretrained("tuned")

    Args:
        model: a pruned model. The zeros that TAMPModifier made in this process are kept, also if
            weights were changed since; of a model that was loaded, all zeros of every Linear that
            has some but not only zeros (an adapter may begin with nothing else).

    Returns:
        A handle; ``remove()`` or the end of its ``with`` block lets the weights go.

    Raises:
        ValueError: the model has no zeros to keep.
        TypeError: it is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    linears = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    masks = {name: pruned_bits(module) for name, module in linears.items()}
    if not any(masks.values()):
        masks = {name: _zeros_of(module.weight) for name, module in linears.items()}
    found: dict[str, tuple[Tensor, PrunedBits]] = {}
    for name, bits in masks.items():
        if bits is not None:
            weight = linears[name].weight
            found[name] = weight, bits.to(weight.device)
    if not found:
        raise ValueError(f"{type(model).__name__} has no zeros to keep; prune it first")
    with torch.no_grad():
        for weight, bits in found.values():
            bits.clear(weight.data)
    return FrozenZeros(found)


@torch.no_grad()
def _zeros_of(weight: Tensor) -> PrunedBits | None:
    pruned = weight == 0
    return PrunedBits.of(pruned) if bool(pruned.any()) and not bool(pruned.all()) else None
