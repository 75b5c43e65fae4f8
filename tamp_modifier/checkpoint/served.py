"""Which Linears are packed: on disk by ``tamp pack``, and in memory by vLLM with the plugin.

`packs` decides about the disk, `serve` about the memory. They differ where vLLM has a kernel of its
own, as for quantized experts: these are packed on disk and dense in memory. Inspection, packing and
the plugin ask here, so that they agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tamp_modifier.architectures import FUSED, NEVER_PACKED
from tamp_modifier.sparse.format import COMPUTE_DTYPES, STORAGE_DTYPES, nonzero
from tamp_modifier.sparse.serialization import storable

MIN_SPARSITY = 0.2
"""Least share of zeros of a packed weight.

Below it the mask, 1 bit a weight, takes most of what the zeros save, and expanding the weight at
large batch sizes does not pay.
"""

OUTPUT_HEAD = "lm_head"
EXPERTS = ".experts."
"""What stands in the names of experts. vLLM multiplies all of a layer with one kernel."""
COMPRESSED_TENSORS = "compressed-tensors"


def sparse_enough(zeros: int, numel: int, least: float = MIN_SPARSITY) -> bool:
    """Whether a weight of `numel` values has its `least` share of zeros."""
    return numel > 0 and zeros / numel >= least


def is_linear(name: str, weight: Tensor) -> bool:
    """Whether a tensor of a checkpoint is the weight of a Linear; the output head is one."""
    module, _, kind = name.rpartition(".")
    parts = module.split(".")
    embedding = "embed" in parts[-1] or any(
        part in NEVER_PACKED and part != OUTPUT_HEAD for part in parts
    )
    return weight.dim() == 2 and kind in ("weight", "weight_packed") and not embedding


def packs(name: str, weight: Tensor, least: float = MIN_SPARSITY) -> bool:
    """Whether ``tamp pack`` packs a tensor: a Linear's weight, not the head's, with enough zeros.

    Args:
        name: on disk.
        weight: its values, dense.
        least: share of zeros from which on a weight is packed.
    """
    if not is_linear(name, weight) or not name.endswith(".weight"):
        return False
    if OUTPUT_HEAD in name.split(".") or weight.dtype not in STORAGE_DTYPES:
        return False
    if not storable(weight.shape[0], weight.shape[1]):
        return False
    return sparse_enough(weight.numel() - int(nonzero(weight).sum()), weight.numel(), least)


def keeps_8_bit(dtype: str, in_blocks: bool, symmetric_inputs: bool) -> bool:
    """Whether the plugin keeps quantized weights packed on a CPU.

    Args:
        dtype: of the weight, such as "int8".
        in_blocks: it has a scale for each block, not for each channel or the whole.
        symmetric_inputs: its inputs are quantized without zero points.
    """
    return not in_blocks and (dtype == "float8_e4m3fn" or (dtype == "int8" and symmetric_inputs))


def serve(
    name: str,
    dtype: str,
    share: tuple[int, int] | None,
    listed: Mapping[str, int] | None,
    quantization: Mapping[str, Any],
) -> tuple[bool, str]:
    """Return whether vLLM with the plugin keeps a Linear of a marked checkpoint packed, and why.

    Args:
        name: on disk, without ".weight".
        dtype: of the weight, such as "bfloat16".
        share: zeros and weights of what vLLM multiplies with, `fused` where it fuses; None where
            the values are not plain numbers.
        listed: the Linears of the marker; None if it lists none.
        quantization: ``quantization_config`` beneath the packing; empty if there is none.
    """
    method = quantization.get("quant_method")
    if method not in (None, COMPRESSED_TENSORS):
        return False, f"refused: sparse weights with {method} are not supported"
    if name.rpartition(".")[2] == OUTPUT_HEAD:
        return False, "the output head is not pruned"
    experts = EXPERTS in name
    if experts and dtype not in _short(COMPUTE_DTYPES):
        return False, "quantized experts go to vLLM's own kernels"
    if method is None and dtype not in _short(COMPUTE_DTYPES):
        return False, f"{dtype} without quantization_config is not served packed"
    if share is None:
        return False, "stays with the stock kernel of its quantization"
    if listed is not None and name not in listed and not experts:
        return False, "not listed in config.json"
    if not sparse_enough(*share):
        zeros = share[0] / share[1] if share[1] else 0.0
        return False, f"{zeros:.0%} zeros, under {MIN_SPARSITY:.0%}"
    if dtype in _short(COMPUTE_DTYPES):
        return True, "on CPU: sparse kernel for experts" if experts else "sparse kernel"
    if _scheme_keeps(dtype, quantization):
        return True, "on CPU: 8-bit, expanded in each call"
    return False, f"{dtype} stays with the stock kernel of its quantization"


def fused(names: Sequence[str]) -> list[list[str]]:
    """Return the names of Linears, grouped by the weight that vLLM multiplies with."""
    groups: dict[tuple[str, Any], list[str]] = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        parts = next((parts for parts in FUSED if last in parts), last)
        if EXPERTS in name:
            parent, parts = name.partition(EXPERTS)[0], EXPERTS
        groups.setdefault((parent, parts), []).append(name)
    return list(groups.values())


def _short(dtypes: tuple[torch.dtype, ...]) -> tuple[str, ...]:
    return tuple(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _scheme_keeps(dtype: str, quantization: Mapping[str, Any]) -> bool:
    """`keeps_8_bit` for every group of a compressed-tensors config."""
    if quantization.get("quant_method") != COMPRESSED_TENSORS:
        return False
    for group in (quantization.get("config_groups") or {}).values():
        weights, inputs = group.get("weights") or {}, group.get("input_activations")
        if inputs is None or weights.get("num_bits") != 8:
            return False
        in_blocks = weights.get("strategy") not in ("channel", "tensor")
        if not keeps_8_bit(dtype, in_blocks, inputs.get("symmetric", True)):
            return False
    return dtype in ("int8", "float8_e4m3fn")
