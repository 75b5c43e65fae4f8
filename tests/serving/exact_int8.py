"""Stock vLLM's INT8 product with exact sums, on processors where its own saturates.

Without VNNI oneDNN multiplies bytes into 16-bit sums of pairs, which overflow: on random bytes 15 %
of the largest sum is lost. The plugin's sums are exact everywhere, so there the stock scheme is
given exact ones too before its answers are compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def saturates() -> bool:
    """Whether oneDNN's sums of bytes overflow on this processor."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return not {"avx512_vnni", "avx_vnni"} & set(flags)


def use_exact_sums() -> None:
    """Give vLLM's oneDNN kernel an exact product in this process."""
    from vllm import _custom_ops as ops

    create = ops.create_onednn_scaled_mm

    def keep(weight: Any, weight_scales: Any, *args: Any, **options: Any) -> Any:
        handler = create(weight, weight_scales, *args, **options)
        handler.exact = weight, weight_scales  # [in, out], [out]
        return handler

    def multiply(
        handler: Any, x: Any, output: Any, scale: Any, zero: Any, adjustment: Any, bias: Any
    ) -> Any:
        weight, weight_scales = handler.exact
        sums = torch._int_mm(x, weight)
        if zero is not None:
            sums = sums - zero * weight.sum(0, dtype=torch.int32)
        product = sums.float() * scale * weight_scales.reshape(1, -1)
        return output.copy_(product if bias is None else product + bias)

    ops.create_onednn_scaled_mm = keep
    ops.onednn_scaled_mm = multiply
