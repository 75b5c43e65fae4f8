"""Attention for training on a CPU.

PyTorch's fused CPU attention is slow in its bfloat16 backward pass at these sizes (a third of a
training step); plain matrix products are several times faster. Inference uses the stock kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax attention for ``transformers.AttentionInterface``.

    Args:
        module: The attention module (not used).
        query: [batch, heads, tokens, d].
        key: [batch, kv heads, tokens, d]; query heads share them in order.
        value: As key.
        attention_mask: Added to the scores, [batch, 1, tokens, tokens]; None attends to all.
        scaling: Factor of the scores; None means 1 / sqrt(d).

    Returns:
        [batch, tokens, heads, d], and None in place of the weights.
    """
    batch, heads, tokens, width = query.shape
    kv_heads = key.shape[1]
    factor = width**-0.5 if scaling is None else scaling
    grouped = (query * factor).reshape(batch, kv_heads, heads // kv_heads * tokens, width)
    scores = grouped @ key.transpose(2, 3)
    if attention_mask is not None:
        scores = scores.view(batch, heads, tokens, tokens) + attention_mask
        scores = scores.view(batch, kv_heads, -1, tokens)
    with torch.autocast("cpu", enabled=False):
        weights = scores.softmax(-1)
    output = weights @ value
    return output.view(batch, heads, tokens, width).transpose(1, 2), None
