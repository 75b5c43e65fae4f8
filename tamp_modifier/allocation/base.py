"""What an allocation rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from tamp_modifier.allocation.budget import check_budget


class Allocation(ABC):
    """The rule that shares sparsity out. A new one is a subclass, listed in `ALLOCATIONS`.

    Attributes:
        name: what the user calls it.
        measure: what its importance is and so what is measured on the dense model: "diversity" of
            every Linear's outputs, "metrics" |W_ij| ||x_j|| of every decoder layer (the rule sums
            them up itself, see `layerwise.MetricAllocation`), "depth" of the decoder layer, or
            "nothing".
        positive_only: of "diversity", whether it leaves out pairs of tokens of one modality with a
            negative cosine, see `mean_similarities`.
    """

    name: ClassVar[str]
    measure: ClassVar[Literal["diversity", "metrics", "depth", "nothing"]]
    positive_only: bool = False

    @property
    def needs_dense_pass(self) -> bool:
        """Whether it looks at activations of the dense model."""
        return self.measure in ("diversity", "metrics")

    def default_cap(self, sparsity: float) -> float:
        """Highest sparsity of a single Linear where the user gives none."""
        return 1.0

    def operations(self, tokens: float, out_features: int) -> float:
        """Return floating-point operations of measuring one Linear in one sample.

        It is for the estimate. Only with `positive_only` all tokens are compared with all; else it
        is little beside a forward pass.

        Args:
            tokens: of the sample.
            out_features: of the Linear.
        """
        return 2.0 * tokens**2 * out_features if self.positive_only else 0.0

    @abstractmethod
    def share_out(
        self,
        importance: Mapping[str, float],
        numel: Mapping[str, int],
        sparsity: float,
        max_sparsity: float,
    ) -> dict[str, float]:
        """Return the sparsity of every Linear, for a budget that has been checked.

        Args:
            importance: Linear -> what the rule measures; empty where it measures nothing.
            numel: Linear -> number of weights.
            sparsity: share of all weights that is pruned, in (0, 1).
            max_sparsity: cap of a single Linear, in [sparsity, 1].

        Returns:
            Linear -> sparsity in [0, max_sparsity]; numel x sparsity sums up to sparsity x total.
        """

    def __call__(
        self,
        importance: Mapping[str, float],
        numel: Mapping[str, int],
        sparsity: float,
        max_sparsity: float,
    ) -> dict[str, float]:
        """Check the budget, and share it out with `share_out`, whose arguments these are.

        Raises:
            ValueError: values out of range, with the name.
        """
        check_budget(numel, sparsity, max_sparsity)
        return self.share_out(importance, numel, sparsity, max_sparsity)
