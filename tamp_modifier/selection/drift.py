"""Drift: one choice of visual tokens per decoder layer, by how far the layer moves them."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from tamp_modifier.tokens import TEXT


class DriftSelection:
    """ATV-Pruning (arXiv 2603.16001): all text tokens and the visual tokens that drift most.

    The drift of a visual token v in a decoder layer is s_v = 1 - cos(layer input, layer output),
    and s its mean over the visual tokens of all samples. Of every sample the layer's statistics get
    all text tokens and the k = min(N_visual, round(min(1, alpha s) N_text)) visual tokens of
    largest drift; the same ones for all Linears of the layer.

    s is known only when all samples have passed, but k is at most N_text. So the inputs of the
    N_text tokens of largest drift are held back (on the CPU, in the dtype of the model) until then:
    the choice is the paper's, on the layers pruned so far, without a pass of its own. Its memory is
    that of the text tokens of one decoder layer, or of all layers with ``one_pass`` or the basic
    pipeline.

    The paper knows text and image; here every token that is not text counts as visual. A sample
    without text gives all its tokens, as with "text".

    Args:
        alpha: factor of the mean drift; the paper takes 1, and 1.5 for Qwen2-VL. 0 is text only.
    """

    name: ClassVar[str] = "drift"
    needs_attention: ClassVar[bool] = False

    def __init__(self, alpha: float = 1.0) -> None:
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha must be finite and >= 0, got {alpha!r}")
        self.alpha = alpha

    def kept(self, mean_drift: float, text: int, visual: int) -> int:
        """Return number of visual tokens that one sample gives.

        Args:
            mean_drift: over the visual tokens of all samples.
            text: number of text tokens of the sample.
            visual: number of its other tokens.
        """
        return min(visual, round(min(1.0, self.alpha * mean_drift) * text))


@torch.no_grad()
def token_drift(inputs: Tensor, outputs: Tensor) -> Tensor:
    """1 - cosine similarity of what a decoder layer gets and gives, fp32 [N].

    Args:
        inputs: [N, hidden].
        outputs: [N, hidden].
    """
    return 1.0 - torch.nn.functional.cosine_similarity(inputs.float(), outputs.float(), dim=1)


def drift_ranks(drift: Tensor, token_types: Tensor) -> Tensor:
    """Rank of every token that is not text by descending drift, from 0; -1 for text.

    Args:
        drift: [N].
        token_types: [N].

    Returns:
        int64 [N]; of equal drifts the first token comes first.
    """
    visual = (token_types != TEXT).nonzero().flatten()
    order = drift[visual].argsort(descending=True, stable=True)
    ranks = torch.full_like(token_types, -1)
    ranks[visual[order]] = torch.arange(len(visual), device=ranks.device)
    return ranks
