"""Which Linears are packed: on disk by ``tamp pack``, and in memory by vLLM with the plugin.

`packs` decides about the disk, `serve` about the memory. They differ where vLLM has a kernel of its
own, as for quantized experts: these are packed on disk and dense in memory. Inspection, packing and
the plugin ask here, so that they agree: `stock_scheme` tells which schemes of compressed-tensors
stay vLLM's own, `kernel` whether a weight has zeros enough and a sparse kernel that is fast enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tamp_modifier.architectures import FUSED, NEVER_PACKED
from tamp_modifier.checkpoint.marker import ACTIVATIONS
from tamp_modifier.sparse.choice import Choice, Sizes, choose, setting
from tamp_modifier.sparse.format import COMPUTE_DTYPES, STORAGE_DTYPES, nonzero
from tamp_modifier.sparse.serialization import storable

MIN_SPARSITY = 0.2
"""Least share of zeros of a packed weight.

Below it the mask, 1 bit a weight, takes most of what the zeros save, and expanding the weight at
large batch sizes does not pay.
"""

LEAST_OF = {"int4": 0.3, "int4-int8": 0.3}
"""The same by kind of weight where it is more: a mask is a quarter of a 4-bit weight."""

STRATEGIES = {
    "float8_e4m3fn": ("tensor", "channel"),
    "int8": ("tensor", "channel"),
    "int4": ("channel", "group"),
}
"""What may have a scale, by kind of weight."""
INPUT_BITS = {"float8_e4m3fn": 8, "int8": 8, "int4": 16}
GROUP_SIZES = (32, 64, 128)
"""Columns of a group of INT4 weights."""
ACTIVATION_ORDERS = ("static", "weight")
"""Of GPTQ that leave every group its columns; "group" and "dynamic" vLLM itself refuses."""

ACTIVATIONS_VARIABLE = "TAMP_INT4_ACTIVATIONS"

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


def kernel(kind: str, zeros: int, numel: int, sizes: Sizes | None) -> Choice:
    """Choose the kernel of a weight that may be served sparse.

    Args:
        kind: its dtype, such as "bfloat16", or one of `int4_kind`.
        zeros: of `numel` weights.
        numel: number of weights of what vLLM multiplies with.
        sizes: numbers of rows that it will be multiplied with; None on a GPU.

    Raises:
        ValueError: an environment variable that forces the choice is wrong.
    """
    least = LEAST_OF.get(kind, MIN_SPARSITY)
    if not sparse_enough(zeros, numel, least):
        return Choice(False, f"under {least:.0%} zeros")
    return choose(kind, zeros / numel, sizes)


def activations(configured: str | None) -> str:
    """Return in what the inputs of INT4 Linears are multiplied, one of `ACTIVATIONS`.

    Args:
        configured: what config.json says, None if nothing; the environment goes before it.

    Raises:
        ValueError: the environment variable ``TAMP_INT4_ACTIVATIONS`` is wrong.
    """
    return setting(ACTIVATIONS_VARIABLE, ACTIVATIONS) or configured or ACTIVATIONS[0]


def int4_kind(int8_activations: bool) -> str:
    """Return the kind of INT4 weights, by what their inputs are multiplied in."""
    return "int4-int8" if int8_activations else "int4"


def stock_scheme(
    kind: str, strategy: str | None, group_size: int | None = None, actorder: str | None = None
) -> str:
    """Why the plugin leaves a scheme of compressed-tensors to vLLM; "" where it takes it over.

    Args:
        kind: of the weight: "int8" and "float8_e4m3fn" with 8-bit inputs, "int4" with 16-bit ones.
        strategy: what has a scale: "tensor", "channel", "group" or another.
        group_size: columns with one scale, with strategy "group".
        actorder: order in which GPTQ took the columns, None if it kept theirs.
    """
    strategies = STRATEGIES.get(kind)
    if strategies is None:
        return f"{kind} has no sparse kernel"
    if strategy not in strategies:
        return f"{kind} with scales per {strategy} has no sparse kernel"
    if strategy == "group" and group_size not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        return f"{kind} in groups of {group_size} has no sparse kernel, only in groups of {sizes}"
    if actorder not in (None, *ACTIVATION_ORDERS):
        return f"activation order {actorder} is not supported"
    return ""


def serve(
    name: str,
    dtype: str,
    share: tuple[int, int] | None,
    listed: Mapping[str, int] | None,
    quantization: Mapping[str, Any],
    sizes: Sizes | None,
    configured: str | None = None,
) -> Choice:
    """Return how vLLM with the plugin multiplies a Linear of a marked checkpoint on this machine.

    Args:
        name: on disk, without ".weight".
        dtype: of the weight, such as "bfloat16".
        share: zeros and weights of what vLLM multiplies with, `fused` where it fuses; None where
            the values are not plain numbers.
        listed: the Linears of the marker; None if it lists none.
        quantization: ``quantization_config`` beneath the packing; empty if there is none.
        sizes: numbers of rows that the Linear will be multiplied with; None on a GPU.
        configured: in what inputs of INT4 are multiplied according to config.json.

    Raises:
        ValueError: an environment variable that forces the choice is wrong.
    """
    method = quantization.get("quant_method")
    experts = EXPERTS in name
    stock = ""
    if method not in (None, COMPRESSED_TENSORS):
        stock = f"refused: sparse weights with {method} are not supported"
    elif name.rpartition(".")[2] == OUTPUT_HEAD:
        stock = "the output head is not pruned"
    elif experts and dtype not in _short(COMPUTE_DTYPES):
        stock = "quantized experts go to vLLM's own kernels"
    elif method is None and dtype not in _short(COMPUTE_DTYPES):
        stock = f"{dtype} without quantization_config is not served packed"
    elif share is None:
        stock = "stays with the stock kernel of its quantization"
    elif listed is not None and name not in listed and not experts:
        stock = "not listed in config.json"
    elif dtype not in _short(COMPUTE_DTYPES):
        stock = _stock_group(dtype, quantization)
    if stock or share is None:
        return Choice(False, stock)
    kind = int4_kind(activations(configured) == "int8") if dtype == "int4" else dtype
    return kernel(kind, *share, sizes)


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


def _stock_group(kind: str, quantization: Mapping[str, Any]) -> str:
    """`stock_scheme` of the groups of a compressed-tensors config that a kind may be in.

    Which Linears a group takes is vLLM's to match: one that the plugin takes over is enough.
    """
    found = []
    for group in (quantization.get("config_groups") or {}).values():
        weights, inputs = group.get("weights") or {}, group.get("input_activations")
        if f"{weights.get('num_bits', 8)}" not in kind:
            continue
        bits = 16 if inputs is None else inputs.get("num_bits", 8)
        if bits != INPUT_BITS.get(kind):
            found.append(f"{kind} weights with {bits}-bit inputs have no sparse kernel")
            continue
        found.append(
            stock_scheme(
                kind, weights.get("strategy"), weights.get("group_size"), weights.get("actorder")
            )
        )
    return min(found, key=len, default="")
