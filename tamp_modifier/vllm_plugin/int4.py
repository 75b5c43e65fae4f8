"""Weights that are quantized to 4 bits and sparse (W4A16): the codes that are not zero stay packed.

The kernel computes with 16-bit inputs as the scheme does. Rounding each row of the inputs to INT8
is faster where the processor has VNNI, and another arithmetic: it has to be asked for.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    register_weight_loader_v2_supported_method,
)

from tamp_modifier.checkpoint.int4 import unpack_columns, unpack_rows
from tamp_modifier.checkpoint.served import ACTIVATIONS_VARIABLE, activations, int4_kind, kernel
from tamp_modifier.sparse.choice import Choice, mode
from tamp_modifier.sparse.int4 import PackedInt4, pack_int4
from tamp_modifier.vllm_plugin.linear import SparseLinearMethod, Summary, check_kept, logger
from tamp_modifier.vllm_plugin.loading import DeferredWeight, release_memory

STOCK_OPERATOR = "cpu_gemm_wna16"


def has_stock_kernel(scheme: Any) -> bool:
    """Whether vLLM can multiply W4A16 here; it builds its CPU kernel only where AVX-512 is."""
    return not isinstance(scheme.kernel, CPUWNA16LinearKernel) or hasattr(
        torch.ops._C, STOCK_OPERATOR
    )


@register_weight_loader_v2_supported_method
class SparseInt4LinearMethod(SparseLinearMethod):
    """Multiply 16-bit inputs with the packed 4-bit weight of a compressed-tensors Linear.

    Args:
        dense: vLLM's method for the same Linear without sparsity.
        name: the layer's name, for messages.
        expected: non-zero codes of the Linear according to config.json, None if not listed.
        summary: what the Linear is added to.
        configured: in what the inputs are multiplied according to config.json.

    Raises:
        ValueError: an environment variable is wrong.
    """

    def __init__(
        self,
        dense: LinearMethodBase,
        name: str,
        expected: int | None,
        summary: Summary,
        configured: str | None = None,
    ) -> None:
        super().__init__(dense, name, expected, summary)
        self.int8_activations = activations(configured) == "int8"

    def _defer(self, layer: Any) -> None:
        names = ["weight_packed", "weight_scale"]
        names += [] if layer.scheme.symmetric else ["weight_zero_point"]
        self.parts: dict[str, Tensor] = {}
        self.deferred = []
        for name in names:
            collect = partial(self._collect, layer, name, len(names))
            self.deferred.append(DeferredWeight(layer, self.name, collect, name))

    def _collect(self, layer: Any, name: str, count: int, tensor: Any) -> None:
        self.parts[name] = tensor
        if len(self.parts) == count:
            parts, self.parts = self.parts, {}
            self._pack_parts(layer, parts)

    def _pack_parts(self, layer: Any, parts: dict[str, Tensor]) -> None:
        shape = (layer.output_size_per_partition, layer.input_size_per_partition)
        zeros = parts.get("weight_zero_point")
        packed = pack_int4(
            unpack_columns(parts["weight_packed"], shape[1]),
            parts["weight_scale"],
            None if zeros is None else unpack_rows(zeros, shape[0]),
            layer.scheme.group_size,
        )
        check_kept(self.name, packed.kept, self.expected, not self.sliced)
        choice = self._choose(layer.scheme, packed)
        dense_bytes = sum(part.nbytes for part in parts.values())
        self.summary.add(dense_bytes, packed.nbytes if choice.sparse else None, choice.why)
        if choice.sparse:
            self._keep_int4(layer, packed)
        else:
            for deferred in self.deferred:
                deferred.restore(layer, parts[deferred.attribute])
            layer.quant_method = self.dense
        del parts
        release_memory()

    def _choose(self, scheme: Any, packed: PackedInt4) -> Choice:
        numel = packed.shape[0] * packed.shape[1]
        choice = kernel(int4_kind(self.int8_activations), numel - packed.kept, numel, self.sizes)
        if not choice.sparse and mode() != "dense" and not has_stock_kernel(scheme):
            return Choice(True, "vLLM has no W4A16 kernel for this processor")
        return choice

    def _keep_int4(self, layer: Any, packed: PackedInt4) -> None:
        """Put the packed weight into `layer` in place of what the checkpoint brought.

        What remains of ``weight_packed`` is empty; vLLM's LoRA asks it for its device.
        """
        for deferred in self.deferred:
            delattr(layer, deferred.attribute)
        for name in ("mask", "values", "offsets", "scale", "zeros", "order"):
            tensor = getattr(packed, name)
            parameter = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
            layer.register_parameter(f"weight_{name}", parameter)
        empty = torch.empty(0, dtype=torch.int32, device=packed.device)
        layer.register_parameter("weight_packed", nn.Parameter(empty, requires_grad=False))
        layer.sparse_shape, layer.sparse_group_size = packed.shape, packed.group_size
        if self.int8_activations:
            logger.info_once(
                "the inputs of sparse INT4 Linears are rounded to INT8, which W4A16 does not do "
                "(%s)",
                ACTIVATIONS_VARIABLE,
            )

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x [..., in] -> [..., out]``."""
        return torch.ops.tamp_modifier.sparse_linear_int4(
            x,
            layer.weight_mask,
            layer.weight_values,
            layer.weight_offsets,
            layer.weight_scale,
            layer.weight_zeros,
            layer.weight_order,
            layer.sparse_shape[0],
            layer.sparse_group_size,
            bias,
            self.int8_activations,
        )
