"""Attention that each token receives from the last real token, per decoder layer.

AMIA weights tokens by the last row of the causal softmax attention. Eager attention is forced
during calibration, so an attention module returns its weights next to its output. Hybrid decoders
mix softmax attention with layers that have no such weights (linear attention, Mamba): for these
`find_attention_module` returns None, and the caller falls back to uniform attention.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from tamp_modifier.architectures import QUERY_PROJECTIONS, RECURRENT_CLASS, RECURRENT_PARTS


def find_attention_module(decoder_layer: nn.Module) -> nn.Module | None:
    """Find the softmax self-attention module of a decoder layer.

    A module counts as softmax attention when it owns a query projection (``q_proj``, ``q_b_proj``,
    ``qkv_proj``, ``query_key_value``, ``Wqkv``, ``c_attn``, ...) and is no linear attention or
    state space mixer: those are known by their class name (``*DeltaNet``, ``*LinearAttention``,
    ``*Mamba*``, ...) or by what only a recurrence has (``A_log``, ``dt_bias``, ``conv1d``).
    Cross-attention is passed over, as it looks at other tokens.

    Args:
        decoder_layer: one layer of the text decoder.

    Returns:
        The outermost such module, or None (Mamba, linear attention, convolution).
    """
    recurrent: tuple[str, ...] = ()
    for name, module in decoder_layer.named_modules():
        if name.startswith(recurrent):
            continue
        if module is not decoder_layer and _is_recurrent(module, decoder_layer):
            recurrent += (f"{name}.",)
            continue
        cross = "cross" in name.lower() or "cross" in type(module).__name__.lower()
        if not cross and any(hasattr(module, part) for part in QUERY_PROJECTIONS):
            return module
    return None


def attention_weights_from_output(output: Any) -> torch.Tensor | None:
    """Pick the softmax weights out of what an attention module returned.

    transformers 5 returns ``(output, weights)``; other modules put a cache in between. So every
    element is looked at, and weights are known by their shape and by the values of their last row:
    none is negative and none sums to more than 1 (less than 1 with attention sinks, as in gpt-oss).

    Args:
        output: return value of an attention module.

    Returns:
        Floating-point [batch, heads, sequence, sequence], or None when there are none (the
        attention implementation is not eager, or the module is not softmax attention).
    """
    for item in output if isinstance(output, tuple | list) else (output,):
        if not isinstance(item, torch.Tensor) or not item.is_floating_point() or item.dim() != 4:
            continue
        if item.shape[-1] != item.shape[-2] or item.numel() == 0:
            continue
        row = item[:, :, -1].detach().float()
        # Written so that NaN passes: broken weights must reach the caller's finiteness check.
        if not ((row < 0).any() or (row.sum(-1) > 1.05).any()):
            return item
    return None


def last_token_attention(weights: torch.Tensor, real_tokens: torch.Tensor) -> list[torch.Tensor]:
    """Take the attention of each sample's last real token, as AMIA weights tokens.

    Source: TAMP, arXiv 2504.09897, section AMIA (last row of the attention, mean over heads).

    Args:
        weights: softmax attention weights, [B, heads, S, S]; rows are queries.
        real_tokens: bool [B, S], False at padding (left or right).

    Returns:
        Per sample float32 [number of real tokens]: mean over heads of the row of the last real
        token, at the real tokens only. Padding gets no attention from a real token, so the values
        still sum to 1.

    Raises:
        ValueError: shapes do not fit, or a sample has no real token.
    """
    batch, length = real_tokens.shape
    if weights.dim() != 4 or weights.shape[0] != batch or weights.shape[2:] != (length, length):
        raise ValueError(
            f"weights must be [{batch}, heads, {length}, {length}] to fit real_tokens "
            f"{list(real_tokens.shape)}; got {list(weights.shape)}"
        )
    rows = []
    for sample in range(batch):
        real = real_tokens[sample].nonzero().squeeze(-1).to(weights.device)
        if real.numel() == 0:
            raise ValueError(f"sample {sample} of the batch has no real token")
        rows.append(weights[sample, :, real[-1]].detach().float().mean(0)[real])
    return rows


def _is_recurrent(module: nn.Module, layer: nn.Module) -> bool:
    if any(hasattr(module, part) for part in RECURRENT_PARTS):
        return True
    # The name of the model is no hint: KimiLinearAttention and RecurrentGemmaAttention are softmax.
    words, others = (re.findall("[A-Z][^A-Z]*", type(m).__name__) for m in (module, layer))
    same = 0
    while same < min(len(words), len(others)) and words[same] == others[same]:
        same += 1
    own_name = "".join(words[same:]) or type(module).__name__
    return RECURRENT_CLASS.search(own_name) is not None
