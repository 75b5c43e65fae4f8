"""Low-rank updates of frozen Linears, and how they are merged."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SCALE = 2.0
"""Factor of the update, alpha / rank."""


class LoRALinear(nn.Module):
    """A frozen Linear plus SCALE * B A (Hu et al., 2021, arXiv:2106.09685, eq. 3).

    Args:
        base: The Linear; frozen.
        rank: Rows of A.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, values: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the type of the input."""
        low = nn.functional.linear(values, self.lora_a.to(values.dtype))
        update = nn.functional.linear(low, (SCALE * self.lora_b).to(values.dtype))
        return self.base(values) + update


def add_lora(decoder: nn.Module, rank: int) -> None:
    """Put a LoRALinear in the place of every Linear of the decoder."""
    for module in list(decoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(module, LoRALinear):
                setattr(module, name, LoRALinear(child, rank))


def merge(weight: Tensor, lora_a: Tensor, lora_b: Tensor) -> Tensor:
    """W + SCALE * B A, computed in float32, in the type of W."""
    update = SCALE * lora_b.float() @ lora_a.float()
    return (weight.float() + update).to(weight.dtype)
