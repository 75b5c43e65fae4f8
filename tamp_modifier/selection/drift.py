"""Drift: one choice of visual tokens per decoder layer, by how far the layer moves them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tamp_modifier.selection.base import LayerSelection


class DriftSelection(LayerSelection):
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

    name = "drift"

    def __init__(self, alpha: float = 1.0) -> None:
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha must be finite and >= 0, got {alpha!r}")
        self.alpha = alpha

    @torch.no_grad()
    def measure(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return 1.0 - torch.nn.functional.cosine_similarity(inputs.float(), outputs.float(), dim=1)

    def kept(self, mean: float, text: int, visual: int) -> int:
        return min(visual, round(min(1.0, self.alpha * mean) * text))

    def most(self, text: int, visual: int) -> int:
        return min(visual, text) if self.alpha > 0 else 0
