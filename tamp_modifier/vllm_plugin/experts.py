"""The experts of MoE layers: kept packed, all of a layer in two packed weights.

Routing is vLLM's own. Tokens are sorted by expert, and `sparse.grouped` multiplies those of each
expert with its part of the packed weights. Quantized experts stay with vLLM's own kernels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.platforms import current_platform

from tamp_modifier import sparse
from tamp_modifier.checkpoint.served import kernel
from tamp_modifier.vllm_plugin.linear import (
    Summary,
    batch_sizes,
    check_kept,
    logger,
    register_packed,
)
from tamp_modifier.vllm_plugin.loading import DeferredWeight, release_memory

PARTS = ("w13", "w2")
"""vLLM's names of gate and up ``[experts, 2 * intermediate, hidden]`` and down, transposed."""


def _gated(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return an activation of ``[rows, gate and up]`` -> ``[rows, intermediate]``, in fp32."""

    def activate(x: Tensor) -> Tensor:
        gate, up = x.float().chunk(2, -1)
        return (function(gate) * up).to(x.dtype)

    return activate


def _swiglu_oai(x: Tensor) -> Tensor:
    """Activation of gpt-oss, in which gate and up take turns."""
    gate, up = x[:, ::2].float().clamp(max=7.0), x[:, 1::2].float().clamp(-7.0, 7.0)
    return ((up + 1) * gate * torch.sigmoid(1.702 * gate)).to(x.dtype)


ACTIVATIONS: dict[MoEActivation, Callable[[Tensor], Tensor]] = {
    MoEActivation.SILU: _gated(nn.functional.silu),
    MoEActivation.GELU: _gated(nn.functional.gelu),
    MoEActivation.GELU_TANH: _gated(partial(nn.functional.gelu, approximate="tanh")),
    MoEActivation.SWIGLUOAI: _swiglu_oai,
}
"""What vLLM's own CPU kernel for experts knows."""


def _why_stock(dense: FusedMoEMethodBase, layer: Any) -> str:
    """Why vLLM's own method has to serve the experts of a layer; empty if it need not."""
    config = layer.moe_config
    if not isinstance(dense, UnquantizedFusedMoEMethod):
        return f"{type(dense).__name__} has quantized weights"
    if not current_platform.is_cpu():
        return "only the kernels for CPUs take packed experts"
    if config.activation not in ACTIVATIONS or config.swiglu_limit is not None:
        return f"the activation is {config.activation.value}"
    if config.is_lora_enabled:
        return "LoRA is enabled"
    parallel = config.moe_parallel_config
    if parallel.enable_eplb or parallel.use_all2all_kernels or parallel.dp_size > 1:
        return "experts are spread by data parallelism or balanced"
    return ""


def experts_method(
    dense: FusedMoEMethodBase, layer: Any, name: str, expected: int | None, summary: Summary
) -> FusedMoEMethodBase:
    """Return method that keeps the experts of `layer` packed, or `dense` where they stay as stock.

    Args:
        dense: vLLM's method for the same experts without sparsity.
        layer: vLLM's `RoutedExperts`.
        name: the layer's name, for messages.
        expected: non-zero weights of all experts according to config.json, None if not listed.
        summary: what the experts are added to.
    """
    reason = _why_stock(dense, layer)
    if reason:
        logger.info_once("experts go to vLLM's own kernels: %s", reason)
        return dense
    return SparseExpertsMethod(dense, name, expected, summary)


class _WholeParameter(nn.Parameter):
    """A meta tensor whose `copy_` brings all experts: gpt-oss does not call their loader."""

    load_whole: Callable[[Tensor], None]

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:
        self.load_whole(source)
        return self


class DeferredExperts(DeferredWeight):
    """A `DeferredWeight` of all experts of a layer; those of other ranks are passed over."""

    def __init__(
        self, layer: Any, name: str, when_full: Callable[[Any], None], attribute: str
    ) -> None:
        super().__init__(layer, name, when_full, attribute)
        self.layer = layer
        self._meta.__class__ = _WholeParameter
        self._meta.load_whole = self.load_whole

    def load(self, param: Tensor, loaded_weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        """vLLM's weight loader: whether the expert belongs to this rank, where that is asked."""
        found = self._signature.bind(param, loaded_weight, *args, **kwargs).arguments
        local = self.layer._map_global_expert_id_to_local_expert_id(found["expert_id"]) != -1
        if local:
            super().load(param, loaded_weight, *args, **kwargs)
        return local if found.get("return_success") else None

    def load_whole(self, weight: Tensor) -> None:
        """Take the weights of all experts of this rank at once."""
        self._loader, self._signature = _copy_whole, inspect.signature(_copy_whole)
        super().load(self._meta, weight)


def _copy_whole(param: Tensor, loaded_weight: Tensor) -> None:
    param.data.copy_(loaded_weight)


class SparseExpertsMethod(FusedMoEMethodBase):
    """Pack the experts of a layer as soon as they are loaded and multiply with them packed.

    Experts without enough zeros stay dense and go back to vLLM's own method. The experts of a layer
    are judged together, as vLLM has one kernel for all of them.

    Args:
        dense: vLLM's method for the same experts without sparsity.
        name: the layer's name, for messages.
        expected: non-zero weights of all experts according to config.json, None if not listed.
        summary: what the experts are added to.
    """

    # The weights are no parameters that a checkpoint could fill: vLLM's own check must skip them.
    uses_meta_device = True

    def __init__(
        self,
        dense: UnquantizedFusedMoEMethod,
        name: str,
        expected: int | None,
        summary: Summary,
    ) -> None:
        super().__init__(dense.moe)
        self.dense = dense
        self.name = name
        self.expected = expected
        self.summary = summary
        self.deferred: dict[str, DeferredExperts] = {}
        self.packed: dict[str, sparse.PackedWeight] = {}
        self.shapes: dict[str, torch.Size] = {}
        summary.expected += 1

    def create_weights(self, layer: Any, *args: Any, **kwargs: Any) -> None:
        """Create the parameters; the weights take no memory until they are loaded."""
        self.dense.create_weights(layer, *args, **kwargs)
        for part in PARTS:
            self.deferred[part] = DeferredExperts(
                layer, self.name, partial(self._pack, layer, part), f"{part}_weight"
            )

    def _pack(self, layer: Any, part: str, weight: Tensor) -> None:
        """Pack one part ``[experts, out, in]``; with the last of them the experts are judged."""
        self.shapes[part] = weight.shape
        self.packed[part] = sparse.pack_groups(weight)
        if len(self.packed) == len(PARTS):
            self._finish(layer)
        del weight
        release_memory()

    def _finish(self, layer: Any) -> None:
        packed, self.packed = self.packed, {}
        total = sum(shape.numel() for shape in self.shapes.values())
        kept = sum(weight.kept for weight in packed.values())
        parallel = self.moe.moe_parallel_config
        sliced = parallel.tp_size > 1 or parallel.use_ep
        converted = any(deferred.converted for deferred in self.deferred.values())
        check_kept(self.name, kept, self.expected, not (sliced or converted))
        dense_bytes = total * packed["w2"].dtype.itemsize
        dtype = str(packed["w2"].dtype).removeprefix("torch.")
        choice = kernel(dtype, total - kept, total, batch_sizes())
        if choice.sparse:
            for part, weight in packed.items():
                register_packed(layer, part, weight)
                self._replace(layer, part, torch.empty(0, dtype=weight.dtype))
            kept_bytes = sum(weight.nbytes for weight in packed.values())
            self.summary.add(dense_bytes, kept_bytes, choice.why)
            return
        for part in PARTS:
            experts, rows, _ = self.shapes[part]
            self._replace(layer, part, sparse.unpack_groups(packed.pop(part), experts, rows))
        layer.quant_method = self.dense
        self.summary.add(dense_bytes, None, choice.why)

    def _replace(self, layer: Any, part: str, weight: Tensor) -> None:
        """Replace the meta tensor by `weight`; vLLM may still offer experts of other ranks."""
        parameter: Any = nn.Parameter(weight, requires_grad=False)
        parameter.weight_loader = self.deferred[part].load
        setattr(layer, f"{part}_weight", parameter)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check that all experts came; the packing is done by then."""
        for deferred in self.deferred.values():
            deferred.require_complete()

    def get_fused_moe_quant_config(self, layer: Any) -> Any:
        """Return vLLM's description of unquantized experts; it is not read here."""
        return self.dense.get_fused_moe_quant_config(layer)

    def apply(
        self,
        layer: Any,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        """``x [tokens, hidden] -> [tokens, hidden]``: the sum of the experts, without shared ones.

        Args:
            layer: vLLM's `RoutedExperts`.
            x: the tokens.
            topk_weights: of the experts of each token, ``[tokens, top]``.
            topk_ids: numbers of these experts among all, ``[tokens, top]``.
            shared_experts, shared_experts_input: vLLM runs shared experts before.
        """
        tokens, top = topk_ids.shape
        if layer.apply_router_weight_on_input:
            x, topk_weights = x * topk_weights.to(x.dtype), torch.ones_like(topk_weights)
        ids = topk_ids if layer.expert_map is None else layer.expert_map[topk_ids.long()]
        experts = torch.arange(layer.local_num_experts + 1, dtype=ids.dtype, device=ids.device)
        sorted_ids, order = ids.flatten().sort()
        bounds = torch.searchsorted(sorted_ids, experts)  # experts of other ranks, -1, come before
        hidden = self._multiply(layer, "w13", x[order // top], bounds)
        hidden = ACTIVATIONS[layer.activation](hidden)
        out = self._multiply(layer, "w2", hidden, bounds)
        out = torch.empty_like(out).index_copy(0, order, out).view(tokens, top, -1)
        return (out.float() * topk_weights.float().unsqueeze(-1)).sum(1).to(x.dtype)

    def _multiply(self, layer: Any, part: str, x: Tensor, bounds: Tensor) -> Tensor:
        return torch.ops.tamp_modifier.sparse_linear_grouped(
            x,
            bounds,
            getattr(layer, f"{part}_mask"),
            getattr(layer, f"{part}_values"),
            getattr(layer, f"{part}_offsets"),
            self.shapes[part][1],
            getattr(layer, f"{part}_bias", None),
        )
