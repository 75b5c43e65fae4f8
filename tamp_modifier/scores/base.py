"""What every score is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from tamp_modifier.statistics import Statistics


class Score(ABC):
    """How one Linear is pruned. A new score is one subclass, listed in `SCORES`.

    Attributes:
        name: what the user calls it.
        needs_tokens: whether it looks at the selected tokens at all.
        keeps_weights: whether the weights that stay are as they were.
        by_row: whether every row has the same number of zeros.
    """

    name: ClassVar[str]
    needs_tokens: ClassVar[bool] = True
    keeps_weights: ClassVar[bool] = True
    by_row: ClassVar[bool] = True

    @abstractmethod
    def statistics(self, in_features: int) -> Statistics:
        """Empty statistics that take in the selected tokens of one Linear."""

    @abstractmethod
    def prune(
        self, weight: Tensor, statistics: Statistics, sparsity: float, mask_structure: str
    ) -> Tensor:
        """Return pruned weight; `weight` [out, in] may be overwritten, `statistics` are used up.

        Raises:
            ValueError: no token was selected; weights or statistics that are not finite.
        """
