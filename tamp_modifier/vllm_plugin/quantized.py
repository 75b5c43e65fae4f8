"""Weights that are quantized and sparse: FP8 and INT8 values stay packed in memory.

Each call expands the weight of one Linear to a scratch buffer and runs the arithmetic of vLLM's
scheme on it, so that the results are those of the stock scheme. This saves memory, not time.
Weight-only INT4 stays with vLLM's own kernel and layout, as does everything on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm import _custom_ops as ops
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (
    CompressedTensorsW8A8Fp8,
    CompressedTensorsW8A8Int8,
)
from vllm.model_executor.layers.quantization.utils.w8a8_utils import convert_to_channelwise
from vllm.platforms import current_platform

from tamp_modifier.checkpoint.served import keeps_8_bit
from tamp_modifier.sparse.ops import expand
from tamp_modifier.vllm_plugin.linear import SparseLinearMethod, Summary


def takes_over(scheme: object) -> bool:
    """Whether the weights of a compressed-tensors scheme stay packed; else vLLM serves them."""
    if not current_platform.is_cpu():
        return False  # GPU kernels want layouts of their own
    if isinstance(scheme, CompressedTensorsW8A8Fp8):
        return keeps_8_bit("float8_e4m3fn", scheme.weight_block_size is not None, True)
    if isinstance(scheme, CompressedTensorsW8A8Int8):
        return keeps_8_bit("int8", False, scheme.input_symmetric)
    return False


@register_weight_loader_v2_supported_method
class SparseQuantizedLinearMethod(SparseLinearMethod):
    """Keeps the 8-bit values of a compressed-tensors Linear packed."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Bring the scales into the form that `apply` wants: one per output channel."""
        super().process_weights_after_loading(layer)
        scale = layer.weight_scale.data
        if scale.dim() < 2:  # per tensor, one for each part of a fused Linear
            scale = convert_to_channelwise(scale, layer.logical_widths)
        layer.weight_scale = nn.Parameter(scale.reshape(1, -1).float(), requires_grad=False)
        input_scale = getattr(layer, "input_scale", None)
        if input_scale is not None:
            input_scale = nn.Parameter(input_scale.data.max(), requires_grad=False)
        layer.input_scale = input_scale

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x [..., in] -> [..., out]``, with the scheme's quantization of `x`."""
        rows = x.reshape(-1, x.shape[-1])
        weight = expand(
            layer.weight_mask, layer.weight_values, layer.weight_offsets, *layer.sparse_shape
        )
        if isinstance(layer.scheme, CompressedTensorsW8A8Int8):
            product, scale = _int8_product(layer, rows, weight)
        else:
            product, scale = _fp8_product(layer, rows, weight)
        out = product * scale * layer.weight_scale
        if bias is not None:
            out = out + bias
        return out.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def _int8_product(layer: Any, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    quantized, scale, _ = ops.onednn_scaled_int8_quant(rows, layer.input_scale, None, True)
    return torch._int_mm(quantized, weight.t()).float(), scale


def _fp8_product(layer: Any, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    # The kernel pads the rows for CUDA's sake; the padding must not come back.
    quantized, scale = layer.scheme.fp8_linear.quant_fp8(rows, layer.input_scale)
    one = torch.ones(1, dtype=torch.float32)
    product = torch._scaled_mm(
        quantized, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.float32
    )
    count = rows.shape[0]
    return product[:count], scale[:count] if scale.dim() == 2 else scale


def sparse_method(
    dense: LinearMethodBase, layer: Any, name: str, expected: int | None, summary: Summary
) -> LinearMethodBase:
    """Return method that keeps `layer` packed, or `dense` itself where it must stay as it is."""
    scheme = getattr(layer, "scheme", None)
    if scheme is None:
        return SparseLinearMethod(dense, name, expected, summary)
    if takes_over(scheme):
        return SparseQuantizedLinearMethod(dense, name, expected, summary)
    return dense
