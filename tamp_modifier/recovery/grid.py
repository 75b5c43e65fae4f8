"""Weights rounded as a quantizer will round them, with gradients as if they were not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROUP = 128
"""Columns that share a scale in W4A16 by default."""


class Rounded(nn.Module):
    """Symmetric rounding to nearest with a scale from the largest weight, straight-through.

    The grid is compressed-tensors': for W4A16 a scale for each group of columns, the largest
    absolute weight over 7.5, codes -8 to 7; for W8A8 a scale for each row, over 127.5, codes -128
    to 127. The gradient passes as if nothing had been rounded (Bengio et al., arXiv 1308.3432).
    Zero stays zero.

    Args:
        scheme: "W4A16" or "W8A8".
        group: columns that share a scale in W4A16.

    Raises:
        ValueError: another scheme.
    """

    def __init__(self, scheme: str, group: int = GROUP) -> None:
        super().__init__()
        if scheme not in ("W4A16", "W8A8"):
            raise ValueError(f"scheme is {scheme!r}, allowed are W4A16 and W8A8")
        self.bits = 4 if scheme == "W4A16" else 8
        self.group = group if scheme == "W4A16" else 0

    def forward(self, weight: Tensor) -> Tensor:
        """Round ``weight [out, in]``; `in` must be a multiple of the group.

        Raises:
            ValueError: it is not.
        """
        with torch.no_grad():
            rounded = self.round(weight)
        return weight + (rounded - weight).detach()

    def round(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, in the dtype of `weight`."""
        rows, columns = weight.shape
        group = self.group or columns
        if columns % group:
            raise ValueError(
                f"W4A16 with groups of {group} needs a multiple of {group} columns, the weight has "
                f"{columns}; give another group size"
            )
        parts = weight.float().view(rows, columns // group, group)
        top = 2 ** (self.bits - 1)
        scale = parts.abs().amax(-1, keepdim=True) / (top - 0.5)
        scale = torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)
        codes = (parts / scale).round().clamp(-top, top - 1)
        return (codes * scale).view(rows, columns).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return what is trained: the weight itself."""
        return weight
