"""Remember which weights of a model are pruned, one bit a weight, and find those that came back.

A mask lies on its Linear as a plain attribute: it is in no state dict, stays where the weight is
offloaded, and lives as long as the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_ATTRIBUTE = "_tamp_pruned"
_BITS = tuple(range(8))
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By size in bytes."""


@dataclass(frozen=True, eq=False)
class PrunedBits:
    """Which weights of one Linear are pruned, eight to a byte.

    Attributes:
        bits: uint8 [ceil(out * in / 8)], bit k of byte i is weight 8 i + k in row-major order.
        shape: (out, in).
    """

    bits: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, pruned: Tensor) -> PrunedBits:
        """Pack a mask.

        Args:
            pruned: bool [out, in], True = pruned; the bits stay on its device.
        """
        flat = pruned.flatten().to(torch.uint8)
        padded = nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
        return cls((padded << _shifts(pruned.device)).sum(1, dtype=torch.uint8), pruned.shape)

    def mask(self, device: torch.device | None = None) -> Tensor:
        """bool [out, in] on `device` (by default where the bits are), True = pruned."""
        bits = self.bits.to(device if device is not None else self.bits.device)
        flat = (bits[:, None] >> _shifts(bits.device)) & 1
        return flat.flatten()[: self.shape.numel()].view(self.shape).bool()

    def cleared(self, values: Tensor) -> Tensor:
        """Return `values` [out, in] with zero where pruned, whatever was there, also NaN.

        The mask is applied to bits and not to numbers: five times faster than `masked_fill`.
        """
        flat = values.contiguous().view(_INTEGERS[values.element_size()]).view(-1)
        return (flat & self._integers(flat)).view(values.dtype).view(self.shape)

    def clear(self, values: Tensor) -> None:
        """Set `values` [out, in] to zero in place where pruned."""
        if values.is_contiguous():
            flat = values.view(_INTEGERS[values.element_size()]).view(-1)
            flat &= self._integers(flat)
        else:
            values.copy_(self.cleared(values))

    def _integers(self, like: Tensor) -> Tensor:
        """Integers [out * in], all bits set where a weight is kept and none where it is pruned."""
        bits = self.bits.to(like.device)
        table = (torch.arange(256, device=like.device)[:, None] >> _shifts(like.device)) & 1
        table = (table - 1).to(like.dtype)  # int32 indices are the fastest
        return table.index_select(0, bits.int()).view(-1)[: self.shape.numel()]

    def to(self, device: torch.device) -> PrunedBits:
        """Return the same bits on another device."""
        return PrunedBits(self.bits.to(device), self.shape)


def _shifts(device: torch.device) -> Tensor:
    return torch.tensor(_BITS, dtype=torch.uint8, device=device)


@torch.no_grad()
def remember(module: nn.Module, weight: Tensor) -> None:
    """Remember the zeros of a Linear as pruned.

    Args:
        module: the Linear.
        weight: [out, in], its weight, which may be offloaded from `module`.
    """
    set_pruned_bits(module, PrunedBits.of(weight == 0).to(torch.device("cpu")))


def pruned_bits(module: nn.Module) -> PrunedBits | None:
    """Return what is remembered of a Linear; None if nothing is."""
    return module.__dict__.get(_ATTRIBUTE)


def set_pruned_bits(module: nn.Module, bits: PrunedBits | None) -> None:
    """Set what is remembered of a Linear; None forgets it."""
    if bits is None:
        module.__dict__.pop(_ATTRIBUTE, None)
    else:
        module.__dict__[_ATTRIBUTE] = bits


def remembered(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the Linears of a model of which zeros are remembered, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and _ATTRIBUTE in module.__dict__
    }


@torch.no_grad()
def came_back(module: nn.Module, weight: Tensor) -> int:
    """How many remembered zeros of a Linear are not exactly zero in `weight` [out, in].

    NaN counts. 0 where nothing is remembered.

    Raises:
        ValueError: the weight has another shape than the one that was remembered.
    """
    pruned = pruned_bits(module)
    if pruned is None:
        return 0
    if weight.shape != pruned.shape:
        raise ValueError(
            f"the weight is {list(weight.shape)}, its mask was {list(pruned.shape)}: the Linear "
            "was replaced after pruning"
        )
    return int(((weight != 0) & pruned.mask(weight.device)).sum())
