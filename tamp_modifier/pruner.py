"""Writes masks into the weights of a model, offloaded or not, and takes them back."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from compressed_tensors.utils import align_module_device, update_offload_parameter

from tamp_modifier.masks import apply_mask, verify_sparsity, wanda_mask, weight_sparsity
from tamp_modifier.targets import Target


class Pruner:
    """Prunes Linears one by one.

    Args:
        mask_structure: "0:0" or "N:M".
        keep_removed: keep the pruned weights (on the CPU) until :meth:`forget`, so that
            :meth:`undo` can bring them back. Costs as much memory as was pruned.

    Attributes:
        reached: share of zeros of every Linear pruned so far.
    """

    def __init__(self, mask_structure: str, keep_removed: bool) -> None:
        self.reached: dict[str, float] = {}
        self._mask_structure = mask_structure
        self._keep_removed = keep_removed
        self._removed: list[tuple[Target, torch.Tensor]] = []

    @torch.no_grad()
    def prune(self, target: Target, row_scalars: torch.Tensor, sparsity: float) -> None:
        """Prunes one Linear and checks that it has its sparsity."""
        with align_module_device(target.module):
            weight = target.module.weight.detach().clone()
        mask = wanda_mask(weight, row_scalars, sparsity, self._mask_structure)
        if self._keep_removed:
            # Zeros of the dense weight count as removed: they are found again by being zero.
            self._removed.append((target, weight[mask.logical_not() | (weight == 0)].cpu()))
        apply_mask(weight, mask)
        update_offload_parameter(target.module, "weight", weight)
        sparsities = {target.name: sparsity}
        self.reached |= verify_sparsity({target.name: weight}, sparsities, self._mask_structure)

    @torch.no_grad()
    def undo(self) -> None:
        """Brings all weights back that were kept."""
        for target, removed in self._removed:
            with align_module_device(target.module):
                weight = target.module.weight.detach().clone()
            weight[weight == 0] = removed.to(weight)
            update_offload_parameter(target.module, "weight", weight)
        self.forget()

    def forget(self) -> None:
        """Frees what was kept for :meth:`undo`."""
        self._removed.clear()

    def lost_zeros(self, targets: Iterable[Target]) -> list[str]:
        """Names of the Linears that have fewer zeros than they were pruned to."""
        lost = []
        for target in targets:
            with align_module_device(target.module):
                sparsity = weight_sparsity(target.module.weight)
            if sparsity < self.reached[target.name]:
                lost.append(target.name)
        return lost
