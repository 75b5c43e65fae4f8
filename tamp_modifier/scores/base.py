"""What every score is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from tamp_modifier.statistics import Statistics

COPIED_BYTES = 4
"""Bytes a weight of a Linear while it is pruned: a copy in bf16, and marks of what is zero."""

COMPARED_BYTES = 22
"""Bytes a weight that is compared: two copies in bf16, the metric and its copy in fp32, what
selecting the smallest needs (fp32 value and int64 place, for the pruned half), and the mask."""


class Score(ABC):
    """The score by which one Linear is pruned. A new one is a subclass, listed in `SCORES`.

    Attributes:
        name: what the user calls it.
        needs_tokens: whether it reads the selected tokens at all.
        keeps_weights: whether the remaining weights are unchanged.
    """

    name: ClassVar[str]
    needs_tokens: ClassVar[bool] = True
    keeps_weights: ClassVar[bool] = True

    @property
    def by_row(self) -> bool:
        """Whether every row has the same number of zeros."""
        return True

    @abstractmethod
    def statistics(self, in_features: int) -> Statistics:
        """Return empty statistics of one Linear, which take in its selected tokens.

        Args:
            in_features: width of its input.
        """

    @abstractmethod
    def prune(
        self, weight: Tensor, statistics: Statistics, sparsity: float, mask_structure: str
    ) -> Tensor:
        """Return the pruned weight.

        Args:
            weight: [out, in]; may be overwritten.
            statistics: from `statistics`, filled; used up.
            sparsity: share of the weights that is set to zero, in [0, 1].
            mask_structure: "0:0", or "N:M": N of every M consecutive weights of a row are zero.

        Returns:
            [out, in] in the dtype of `weight`, with exactly this sparsity.

        Raises:
            ValueError: no token was selected; weights or statistics that are not finite.
        """

    def forget(self) -> None:  # noqa: B027, most scores keep nothing
        """Free what pruning one Linear left for the next one; nothing by default."""

    # -- what it costs, for the estimate

    def collecting(self, in_features: int) -> float:
        """Return floating-point operations a selected token; next to none by default."""
        return 0.0

    def solving(self, in_features: int, out_features: int) -> float:
        """Return floating-point operations of pruning one Linear; next to none by default."""
        return 0.0

    def statistics_bytes(self, in_features: int) -> int:
        """Bytes of the statistics of one Linear; none by default."""
        return 0

    def pruning_bytes(self, in_features: int, out_features: int) -> int:
        """Bytes that pruning one Linear takes; by default all its weights are compared at once."""
        return (COPIED_BYTES + COMPARED_BYTES) * in_features * out_features
