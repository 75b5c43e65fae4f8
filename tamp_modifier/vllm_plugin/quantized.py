"""Weights that are quantized to 8 bits and sparse: their values stay packed in memory.

INT8 is multiplied packed; vLLM's own operator quantizes the inputs, so that the results are those
of the stock scheme. FP8 has no kernel: if sparse weights are forced, each call expands the weight
of one Linear to a scratch buffer and runs the arithmetic of vLLM's scheme on it. That saves memory
and costs time, so that otherwise FP8 is served dense.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm import _custom_ops as ops
from vllm.model_executor.layers.linear import register_weight_loader_v2_supported_method
from vllm.model_executor.layers.quantization.utils.w8a8_utils import convert_to_channelwise

from tamp_modifier import sparse
from tamp_modifier.sparse.int8 import row_sums
from tamp_modifier.sparse.ops import expand
from tamp_modifier.vllm_plugin.linear import SparseLinearMethod

INT8 = torch.iinfo(torch.int8)


class SparseW8A8LinearMethod(SparseLinearMethod):
    """Bring the scales of a W8A8 scheme into one form: fp32, one for each output channel."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check that the whole weight came, and convert the scales."""
        super().process_weights_after_loading(layer)
        scale = layer.weight_scale.data
        if scale.dim() < 2:  # per tensor, one for each part of a fused Linear
            scale = convert_to_channelwise(scale, layer.logical_widths)
        layer.weight_scale = nn.Parameter(scale.reshape(-1).float(), requires_grad=False)
        if getattr(layer, "input_scale", None) is None:
            layer.input_scale = None


@register_weight_loader_v2_supported_method
class SparseInt8LinearMethod(SparseW8A8LinearMethod):
    """Multiply INT8 inputs with the packed INT8 weight of a compressed-tensors Linear."""

    def _keep(self, layer: Any, packed: sparse.PackedWeight) -> None:
        super()._keep(layer, packed)
        layer.register_parameter("weight_sums", nn.Parameter(row_sums(packed), requires_grad=False))

    def process_weights_after_loading(self, layer: Any) -> None:
        """Convert the scales, and static ones of the inputs as vLLM's kernel does."""
        super().process_weights_after_loading(layer)
        if layer.input_scale is None:
            return
        scale, zero = layer.input_scale.data, layer.input_zero_point
        if zero is None:
            scale = scale.max()
        else:
            zero = zero.data.int()
            highest = (scale * (INT8.max - zero)).max()
            lowest = (scale * (INT8.min - zero)).min()
            scale = (highest - lowest) / (INT8.max - INT8.min)
            zero = (INT8.min - lowest / scale).round().int().reshape(1)
            layer.input_zero_point = nn.Parameter(zero, requires_grad=False)
        layer.input_scale = nn.Parameter(scale.reshape(1), requires_grad=False)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x [..., in] -> [..., out]``, with the scheme's quantization of `x`."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        symmetric = layer.scheme.input_symmetric
        static_zero = None if symmetric else layer.input_zero_point
        quantized, scale, zero = ops.onednn_scaled_int8_quant(
            rows, layer.input_scale, static_zero, symmetric
        )
        out = torch.ops.tamp_modifier.sparse_linear_int8(
            quantized,
            scale,
            zero,
            layer.weight_mask,
            layer.weight_values,
            layer.weight_offsets,
            layer.weight_scale,
            layer.weight_sums,
            layer.sparse_shape[0],
            bias,
            x.dtype,
        )
        return out.reshape(*x.shape[:-1], layer.sparse_shape[0])


@register_weight_loader_v2_supported_method
class SparseFp8LinearMethod(SparseW8A8LinearMethod):
    """Expand the packed FP8 weight of a compressed-tensors Linear in each call."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Convert the scales."""
        super().process_weights_after_loading(layer)
        if layer.input_scale is not None:
            layer.input_scale = nn.Parameter(layer.input_scale.data.max(), requires_grad=False)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x [..., in] -> [..., out]``, with the scheme's quantization of `x`."""
        rows = x.reshape(-1, x.shape[-1])
        weight = expand(
            layer.weight_mask, layer.weight_values, layer.weight_offsets, *layer.sparse_shape
        )
        # The kernel pads the rows for CUDA's sake; the padding must not come back.
        quantized, scale = layer.scheme.fp8_linear.quant_fp8(rows, layer.input_scale)
        count = rows.shape[0]
        scale = scale[:count] if scale.dim() == 2 else scale
        one = torch.ones(1, dtype=torch.float32)
        product = torch._scaled_mm(
            quantized, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.float32
        )
        out = product[:count] * scale * layer.weight_scale
        if bias is not None:
            out = out + bias
        return out.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])
