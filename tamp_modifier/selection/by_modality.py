"""Selections that go by the modality of a token alone."""

from __future__ import annotations

import torch
from torch import Tensor

from tamp_modifier.selection.base import Selection
from tamp_modifier.tokens import TEXT


class AllTokens(Selection):
    """Every token, as Wanda does."""

    name = "all"
    is_listed = False

    def select(self, outputs: Tensor, token_types: Tensor, attention: Tensor | None) -> Tensor:
        return torch.arange(outputs.shape[0], device=outputs.device)


class TextTokens(Selection):
    """Text tokens only; all tokens where a sample has no text."""

    name = "text"

    def select(self, outputs: Tensor, token_types: Tensor, attention: Tensor | None) -> Tensor:
        text = (token_types == TEXT).nonzero().flatten().to(outputs.device)
        return text if text.numel() else torch.arange(outputs.shape[0], device=outputs.device)


class BalancedTokens(AllTokens):
    """Every token, weighted so that all samples count the same, and in each all modalities.

    In a sample of N tokens, N_m of them of modality m, a token of modality m has the weight

        c N_m^-modalities,   c such that the N weights add up to N^(1 - samples)

    A few words next to many image tokens are neither drowned, as with "all", nor are the image
    tokens lost for the statistics, as with "text"; and a short sample, of text alone, is not
    drowned by those with media.

    Args:
        modalities: how far modalities are made alike: 1 wholly, 0 not at all.
        samples: how far samples are made alike: 1 wholly, 0 not at all.
    """

    name = "balanced"
    is_listed = True

    def __init__(self, modalities: float = 1.0, samples: float = 1.0) -> None:
        for name, value in (("modalities", modalities), ("samples", samples)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {value!r}")
        self.modalities = modalities
        self.samples = samples

    def weights(self, token_types: Tensor, sample_size: int) -> Tensor | None:
        _, which, counts = token_types.unique(return_inverse=True, return_counts=True)
        weights = (counts.float() ** -self.modalities)[which]
        return weights * (len(token_types) * sample_size**-self.samples / weights.sum())
