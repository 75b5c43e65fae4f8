"""What every selection rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Selection(ABC):
    """Which tokens of one sample enter the statistics of one Linear. A new rule is one subclass."""

    name: ClassVar[str]
    needs_attention: ClassVar[bool] = False

    @abstractmethod
    def select(self, outputs: Tensor, token_types: Tensor, attention: Tensor | None) -> Tensor:
        """Sorted indices of the selected tokens.

        Args:
            outputs: [N, d] outputs of the Linear, padding removed.
            token_types: [N] modality of each token.
            attention: [N] attention of the last token; None where `needs_attention` is False.
        """

    def weights(self, token_types: Tensor, sample_size: int) -> Tensor | None:
        """How much each selected token counts in the statistics; only ratios matter.

        Args:
            token_types: [n] modality of each selected token.
            sample_size: number of tokens of the sample.

        Returns:
            fp32 [n]; None, the default, where all tokens of all samples count the same.
        """
        return None
