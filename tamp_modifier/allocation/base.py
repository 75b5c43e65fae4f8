"""What an allocation rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from tamp_modifier.allocation.budget import check_budget


class Allocation(ABC):
    """How sparsity is shared out. A new rule is one subclass, listed in `ALLOCATIONS`.

    Attributes:
        name: what the user calls it.
        measure: what its importance is and so what is measured on the dense model: "diversity" of
            every Linear's outputs, "metrics" |W_ij| ||x_j|| of every decoder layer (the rule sums
            them up itself, see `layerwise.MetricAllocation`), "depth" of the decoder layer, or
            "nothing".
    """

    name: ClassVar[str]
    measure: ClassVar[Literal["diversity", "metrics", "depth", "nothing"]]

    def default_cap(self, sparsity: float) -> float:
        """Highest sparsity of a single Linear where the user gives none."""
        return 1.0

    @abstractmethod
    def share_out(
        self,
        importance: Mapping[str, float],
        numel: Mapping[str, int],
        sparsity: float,
        max_sparsity: float,
    ) -> dict[str, float]:
        """Sparsity of every Linear, for a budget that has been checked."""

    def __call__(
        self,
        importance: Mapping[str, float],
        numel: Mapping[str, int],
        sparsity: float,
        max_sparsity: float,
    ) -> dict[str, float]:
        """Sparsity of every Linear.

        Args:
            importance: Linear -> what the rule measures.
            numel: Linear -> number of weights.
            sparsity: share of all weights that is pruned, in (0, 1).
            max_sparsity: cap of a single Linear, in [sparsity, 1].

        Returns:
            Linear -> sparsity in [0, max_sparsity]; numel x sparsity sums up to sparsity x total.

        Raises:
            ValueError: values out of range, with the name.
        """
        check_budget(numel, sparsity, max_sparsity)
        return self.share_out(importance, numel, sparsity, max_sparsity)
