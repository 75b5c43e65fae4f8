"""What every selection rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from tamp_modifier.tokens import TEXT


class Selection(ABC):
    """The rule that selects the tokens which enter the statistics of a Linear. Subclass it.

    Attributes:
        name: what the user calls it.
        needs_attention: whether it looks at the attention of the last token.
        needs_states: whether it looks at what a whole decoder layer gets and gives, and so waits
            for the layer; see `LayerSelection`.
        is_listed: whether a report lists the tokens; pointless where they are always all.
    """

    name: ClassVar[str]
    needs_attention: ClassVar[bool] = False
    needs_states: ClassVar[bool] = False
    is_listed: ClassVar[bool] = True

    @abstractmethod
    def select(self, outputs: Tensor, token_types: Tensor, attention: Tensor | None) -> Tensor:
        """Return the sorted indices of the selected tokens, int64 [n].

        Args:
            outputs: [N, d] outputs of the Linear, padding removed.
            token_types: [N] modality of each token.
            attention: [N] attention of the last token; None where `needs_attention` is False.
        """

    def weights(self, token_types: Tensor, sample_size: int) -> Tensor | None:
        """Return how much each selected token counts in the statistics; only ratios matter.

        Args:
            token_types: [n] modality of each selected token.
            sample_size: number of tokens of the sample.

        Returns:
            fp32 [n]; None, the default, where all tokens of all samples count the same.
        """
        return None

    def operations(self, tokens: float, out_features: int) -> float:
        """Return the floating-point operations of one choice, for the estimate; none by default.

        Args:
            tokens: of one sample.
            out_features: of the Linear.
        """
        return 0.0

    def memory(self, tokens: int) -> int:
        """Return the bytes that one choice among the tokens of a sample takes, for the estimate."""
        return 0


class LayerSelection(Selection):
    """One choice of visual tokens a decoder layer, made when all samples have passed it.

    Every sample gives its text tokens, and of its other tokens the `kept` ones of largest
    `measure`, the same ones to all Linears of the layer. Samples without text, and Linears outside
    of the decoder layers, give all tokens.
    """

    needs_states = True

    @abstractmethod
    def measure(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return what each token is ranked by, fp32 [N].

        Args:
            inputs: [N, hidden], what the decoder layer gets.
            outputs: [N, hidden], what it gives.
        """

    @abstractmethod
    def kept(self, mean: float, text: int, visual: int) -> int:
        """Return the number of visual tokens that one sample gives.

        Args:
            mean: of `measure` over the visual tokens of all samples.
            text: number of text tokens of the sample.
            visual: number of its other tokens.
        """

    @abstractmethod
    def most(self, text: int, visual: int) -> int:
        """Return the most that `kept` gives, whatever the mean; so many tokens are held back."""

    def select(self, outputs: Tensor, token_types: Tensor, attention: Tensor | None) -> Tensor:
        return torch.arange(outputs.shape[0], device=outputs.device)


def visual_ranks(values: Tensor, token_types: Tensor) -> Tensor:
    """Rank of every token that is not text by descending value, from 0; -1 for text.

    Args:
        values: [N].
        token_types: [N].

    Returns:
        int64 [N]; of equal values the first token comes first.
    """
    visual = (token_types != TEXT).nonzero().flatten()
    order = values[visual].argsort(descending=True, stable=True)
    ranks = torch.full_like(token_types, -1)
    ranks[visual[order]] = torch.arange(len(visual), device=ranks.device)
    return ranks
