"""The Linear methods: how a layer's weight is kept and multiplied."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    register_weight_loader_v2_supported_method,
)
from vllm.platforms import current_platform

from tamp_modifier import sparse
from tamp_modifier.checkpoint.served import kernel
from tamp_modifier.sparse.choice import SPARSE_KERNEL, Choice, Sizes
from tamp_modifier.vllm_plugin.loading import DeferredWeight, release_memory, short

logger = init_logger("vllm.plugins.tamp_sparse")  # vLLM shows only what is below "vllm"

# vLLM sets and reads attributes of its layers freely, so they are `Any` to the type checker.


@dataclasses.dataclass
class Summary:
    """Add up what is kept how, so that one line of vLLM's log tells it when all is loaded."""

    expected: int = 0
    loaded: int = 0
    dense_bytes: int = 0
    kept_bytes: int = 0
    choices: Counter[Choice] = dataclasses.field(default_factory=Counter)

    def add(self, dense_bytes: int, packed_bytes: int | None, why: str = "") -> None:
        """Count a Linear, or a layer of experts; `packed_bytes` is None for what stays dense."""
        self.loaded += 1
        self.choices[Choice(packed_bytes is not None, why)] += 1
        self.dense_bytes += dense_bytes
        self.kept_bytes += dense_bytes if packed_bytes is None else packed_bytes
        if self.loaded == self.expected:
            logger.info(
                "%d of %d Linears and layers of experts are served sparse: "
                "%.1f MiB instead of %.1f MiB",
                sum(count for choice, count in self.choices.items() if choice.sparse),
                self.loaded,
                self.kept_bytes / 2**20,
                self.dense_bytes / 2**20,
            )
            for choice, count in self.choices.most_common():
                if choice.why not in ("", SPARSE_KERNEL):
                    served = "sparse" if choice.sparse else "dense"
                    logger.info("served %s, %d: %s", served, count, choice.why)


def batch_sizes() -> Sizes | None:
    """Return the numbers of rows that the engine being built will multiply; None on a GPU."""
    if not current_platform.is_cpu():
        return None
    scheduler = get_current_vllm_config().scheduler_config
    return Sizes(scheduler.max_num_seqs, scheduler.max_num_batched_tokens)


def register_packed(layer: Any, prefix: str, packed: sparse.PackedWeight) -> None:
    """Give `layer` the parameters ``PREFIX_mask``, ``PREFIX_values`` and ``PREFIX_offsets``.

    Plain parameters, so that torch.compile sees them as inputs of the graph.
    """
    for name in ("mask", "values", "offsets"):
        tensor = nn.Parameter(getattr(packed, name), requires_grad=False)
        layer.register_parameter(f"{prefix}_{name}", tensor)


def keep_packed(layer: Any, packed: sparse.PackedWeight) -> None:
    """Put a packed weight into `layer` in place of its dense one.

    What remains of ``weight`` is empty, as vLLM's own CPU path leaves it: some models read its
    dtype.
    """
    register_packed(layer, "weight", packed)
    layer.sparse_shape = packed.shape
    empty = torch.empty(0, dtype=packed.dtype, device=packed.device)
    layer.weight = nn.Parameter(empty, requires_grad=False)


def check_kept(name: str, kept: int, expected: int | None, whole: bool) -> None:
    """Compare the non-zero weights of a Linear with the number that config.json lists.

    Args:
        name: the layer's name.
        kept: non-zero weights found.
        expected: the number listed, None if the marker lists none for this layer.
        whole: False where a rank holds a slice, or the dtype changed and may have rounded to zero.

    Raises:
        ValueError: they differ.
    """
    if expected is None or kept == expected or (kept < expected and not whole):
        return
    raise ValueError(
        f"{name}: the weight has {kept} non-zero values, config.json says {expected}; the mask was "
        "changed after pruning (remove `linears` from compression_config to serve it as it is)"
    )


@register_weight_loader_v2_supported_method
class SparseLinearMethod(LinearMethodBase):
    """Pack the weight of a Linear as soon as it is loaded and multiply with the packed weight.

    A weight without enough zeros, or whose dense kernel is faster (`checkpoint.served.kernel`),
    stays dense and goes back to vLLM's own method.

    Args:
        dense: vLLM's method for the same Linear without sparsity.
        name: the layer's name, for messages.
        expected: non-zero weights of the Linear according to config.json, None if not listed.
        summary: what the Linear is added to.
    """

    # The weight is no parameter that a checkpoint could fill: vLLM's own check must skip it.
    uses_meta_device = True

    def __init__(
        self, dense: LinearMethodBase, name: str, expected: int | None, summary: Summary
    ) -> None:
        self.dense = dense
        self.name = name
        self.expected = expected
        self.summary = summary
        summary.expected += 1

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs,
    ) -> None:
        """Create the parameters; the weight takes no memory until it is loaded."""
        self.dense.create_weights(
            layer,
            input_size_per_partition=input_size_per_partition,
            output_partition_sizes=output_partition_sizes,
            input_size=input_size,
            output_size=output_size,
            params_dtype=params_dtype,
            **extra_weight_attrs,
        )
        self.sliced = (
            input_size_per_partition != input_size or sum(output_partition_sizes) != output_size
        )
        self.sizes = batch_sizes()
        self._defer(layer)

    def _defer(self, layer: Any) -> None:
        """Have what the checkpoint brings collected, and packed when it is whole."""
        self.deferred = [DeferredWeight(layer, self.name, lambda weight: self._pack(layer, weight))]

    def _pack(self, layer: Any, weight: Tensor | sparse.PackedWeight) -> None:
        packed = weight if isinstance(weight, sparse.PackedWeight) else sparse.pack(weight)
        whole = not (self.sliced or self.deferred[0].converted)
        check_kept(self.name, packed.kept, self.expected, whole)
        numel = packed.shape[0] * packed.shape[1]
        choice = kernel(short(packed.dtype), numel - packed.kept, numel, self.sizes)
        kept_bytes = packed.nbytes if choice.sparse else None
        self.summary.add(numel * packed.dtype.itemsize, kept_bytes, choice.why)
        if choice.sparse:
            self._keep(layer, packed)
        else:
            dense = weight if isinstance(weight, Tensor) else sparse.unpack(packed)
            layer.weight = nn.Parameter(dense, requires_grad=False)
            layer.quant_method = self.dense
        del weight
        release_memory()

    def _keep(self, layer: Any, packed: sparse.PackedWeight) -> None:
        keep_packed(layer, packed)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check that the whole weight came; the packing is done by then."""
        for deferred in self.deferred:
            deferred.require_complete()

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x [..., in] -> [..., out]``."""
        return torch.ops.tamp_modifier.sparse_linear(
            x,
            layer.weight_mask,
            layer.weight_values,
            layer.weight_offsets,
            layer.sparse_shape[0],
            bias,
        )
