"""Write masks into the weights of a model, offloaded or not, and take them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from compressed_tensors.utils import align_module_device, update_offload_parameter

from tamp_modifier.allocation.patterns import DENSE, UNSTRUCTURED
from tamp_modifier.calibration.distributed import agree, gather, rank, share_weights
from tamp_modifier.calibration.targets import Target
from tamp_modifier.masks import verify_sparsity, weight_sparsity
from tamp_modifier.scores.base import Score
from tamp_modifier.statistics import Statistics
from tamp_modifier.zeros import remembered as preserve


class Pruner:
    """Prune Linears one by one.

    Args:
        score: how a Linear is pruned.
        keep_removed: keep the pruned weights (on the CPU) until `forget`, so that
            `undo` can bring them back. Costs as much memory as was pruned, or as all of the
            weights where the score changes those that stay.

    Attributes:
        reached: share of zeros of every Linear pruned so far.
        zeros_before: number of zeros that each had before; of those that this process pruned.
    """

    def __init__(self, score: Score, keep_removed: bool) -> None:
        self.reached: dict[str, float] = {}
        self.zeros_before: dict[str, int] = {}
        self._score = score
        self._keep_removed = keep_removed
        self._removed: list[tuple[Target, torch.Tensor]] = []
        self._owners: dict[Target, int] = {}
        self._before: dict[Target, preserve.PrunedBits | None] = {}

    @torch.no_grad()
    def prune(self, target: Target, statistics: Statistics, sparsity: float, pattern: str) -> None:
        """Prune one Linear and check that it has its sparsity and its pattern.

        Args:
            target: the Linear.
            statistics: of its selected tokens.
            sparsity: share of its weights that go, 0 for "dense".
            pattern: "0:0", "N:M" or "dense".
        """
        mask_structure = UNSTRUCTURED if pattern == DENSE else pattern
        with align_module_device(target.module):
            weight = target.module.weight.detach().clone()
        self.zeros_before[target.name] = int((weight == 0).sum())
        dense = weight.cpu().clone() if self._keep_removed else None
        weight = self._score.prune(weight, statistics, sparsity, mask_structure)
        if dense is not None:
            # Weights that stay as they are need not be kept: those that went are found again by
            # being zero.
            removed = dense[weight.cpu() == 0] if self._score.keeps_weights else dense
            self._removed.append((target, removed))
        update_offload_parameter(target.module, "weight", weight)
        self.reached |= verify_sparsity(
            {target.name: weight},
            {target.name: sparsity},
            mask_structure,
            self._score.by_row,
        )

    def prune_layer(
        self,
        targets: Sequence[Target],
        statistics: Mapping[str, Statistics],
        sparsities: Mapping[str, float],
        patterns: Mapping[str, str],
        owners: Mapping[str, int],
    ) -> None:
        """Prune Linears and remember their zeros.

        Each is pruned by its owner, who hands it to the other processes.
        """

        mine = rank()

        def prune_mine() -> None:
            for target in targets:
                name = target.name
                if owners[name] == mine:
                    self.prune(target, statistics[name], sparsities[name], patterns[name])
            self._score.forget()

        agree(prune_mine)
        share_weights(targets, owners)
        self._owners |= {target: owners[target.name] for target in targets}
        for target in targets:
            if patterns[target.name] != DENSE:
                with align_module_device(target.module):
                    self._remember(target, target.module.weight)
        for reached in gather({n: self.reached[n] for n in owners if n in self.reached}):
            self.reached |= reached

    @torch.no_grad()
    def put(self, target: Target, weight: torch.Tensor) -> None:
        """Put in the pruned weight of an earlier run, which has checked it."""
        if self._keep_removed:
            with align_module_device(target.module):
                dense = target.module.weight.detach().cpu().clone()
            removed = dense[weight.cpu() == 0] if self._score.keeps_weights else dense
            self._removed.append((target, removed))
        update_offload_parameter(target.module, "weight", weight)
        self._remember(target, weight)
        self.reached[target.name] = weight_sparsity(weight)

    def _remember(self, target: Target, weight: torch.Tensor) -> None:
        self._before[target] = preserve.pruned_bits(target.module)
        preserve.remember(target.module, weight)

    @property
    def keeps_weights(self) -> bool:
        """Whether the weights that stay are as they were."""
        return self._score.keeps_weights

    @torch.no_grad()
    def undo(self) -> None:
        """Bring all weights back that were kept."""
        for target, removed in self._removed:
            with align_module_device(target.module):
                weight = target.module.weight.detach().clone()
            if self._score.keeps_weights:
                weight[weight == 0] = removed.to(weight)
            else:
                weight.copy_(removed)
            update_offload_parameter(target.module, "weight", weight)
        if self._keep_removed:
            share_weights(list(self._owners), {t.name: owner for t, owner in self._owners.items()})
            for target, bits in self._before.items():
                preserve.set_pruned_bits(target.module, bits)
            self.reached.clear()
        self.forget()

    def forget(self) -> None:
        """Free what was kept for `undo`."""
        self._removed.clear()
        self._before.clear()
