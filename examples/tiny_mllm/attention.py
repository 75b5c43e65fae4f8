"""Attention for training on a CPU.

PyTorch's fused CPU attention is slow in its bfloat16 backward pass at these sizes, and most of a
full score matrix of a training row would be masked out. So the scores are computed with plain
matrix products, and only where something may be seen. Inference uses the stock kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def _softmax(scores: Tensor) -> Tensor:
    # Under autocast softmax would run in float32, at twice the memory traffic.
    with torch.autocast("cpu", enabled=False):
        return scores.softmax(-1)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax attention over rows of a prefix and chunks, for ``transformers.AttentionInterface``.

    A row is a prefix of P tokens, causal in itself, and chunks of C tokens that see the prefix and
    themselves. Without a mask every token sees every token (the vision tower).

    Args:
        module: The attention module (not used).
        query: [batch, heads, tokens, d].
        key: [batch, kv heads, tokens, d]; groups of query heads share one.
        value: As key.
        attention_mask: Added to the scores of the tokens after the prefix,
            [batch, 1, tokens - P, P + C].
        scaling: Factor of the scores; None means 1 / sqrt(d).

    Returns:
        [batch, tokens, heads, d], and None in place of the weights.
    """
    batch, heads, tokens, width = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    query = query * (width**-0.5 if scaling is None else scaling)
    if attention_mask is None:
        query = query.reshape(batch, kv_heads, group * tokens, width)
        output = _softmax(query @ key.transpose(2, 3)) @ value
        return output.view(batch, heads, tokens, width).transpose(1, 2), None
    rest = attention_mask.shape[2]
    prefix = tokens - rest
    chunk = attention_mask.shape[3] - prefix
    first_keys, first_values = key[:, :, :prefix], value[:, :, :prefix]

    own = query[:, :, :prefix].reshape(batch, kv_heads, group * prefix, width)
    future = torch.ones(prefix, prefix, dtype=torch.bool).triu(1).repeat(group, 1)
    scores = (own @ first_keys.transpose(2, 3)).masked_fill(future, -30000.0)
    head_output = (_softmax(scores) @ first_values).view(batch, heads, prefix, width)

    own = query[:, :, prefix:].reshape(batch, kv_heads, group * rest, width)
    seen = (own @ first_keys.transpose(2, 3)).view(batch, heads, rest, prefix)
    # The tokens of all heads of a group that share a chunk of keys are put side by side.
    chunks = (batch, kv_heads, rest // chunk)
    own = own.view(batch, kv_heads, group, rest // chunk, chunk, width).transpose(2, 3)
    own = own.reshape(*chunks, group * chunk, width)
    rest_keys = key[:, :, prefix:].reshape(*chunks, chunk, width)
    near = (own @ rest_keys.transpose(3, 4)).view(*chunks, group, chunk, chunk)
    near = near.transpose(2, 3).reshape(batch, heads, rest, chunk)
    weights = _softmax(torch.cat([seen, near], -1) + attention_mask)
    seen, near = weights.split([prefix, chunk], -1)
    output = seen.reshape(batch, kv_heads, group * rest, prefix) @ first_values
    near = near.reshape(batch, kv_heads, group, rest // chunk, chunk, chunk).transpose(2, 3)
    near = near.reshape(*chunks, group * chunk, chunk)
    rest_values = value[:, :, prefix:].reshape(*chunks, chunk, width)
    local = (near @ rest_values).view(*chunks, group, chunk, width).transpose(2, 3)
    output = output.view(batch, heads, rest, width) + local.reshape(batch, heads, rest, width)
    return torch.cat([head_output, output], 2).transpose(1, 2), None
