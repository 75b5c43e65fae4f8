"""Which of our methods serves the Linears of a compressed-tensors scheme, if any does."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (
    CompressedTensorsW8A8Fp8,
    CompressedTensorsW8A8Int8,
    CompressedTensorsWNA16,
)
from vllm.platforms import current_platform

from tamp_modifier.checkpoint.served import stock_scheme
from tamp_modifier.vllm_plugin.int4 import SparseInt4LinearMethod
from tamp_modifier.vllm_plugin.linear import SparseLinearMethod, Summary, logger
from tamp_modifier.vllm_plugin.quantized import SparseFp8LinearMethod, SparseInt8LinearMethod


def sparse_method(
    dense: LinearMethodBase,
    layer: Any,
    name: str,
    expected: int | None,
    summary: Summary,
    activations: str | None = None,
) -> LinearMethodBase:
    """Return method that keeps `layer` packed, or `dense` itself where it must stay as it is.

    Args:
        dense: vLLM's method for the Linear.
        layer: the Linear.
        name: the layer's name, for messages.
        expected: non-zero weights of the Linear according to config.json, None if not listed.
        summary: what the Linear is added to.
        activations: in what inputs of INT4 are multiplied according to config.json.

    Raises:
        ValueError: an environment variable is wrong.
    """
    scheme = getattr(layer, "scheme", None)
    if scheme is None:
        return SparseLinearMethod(dense, name, expected, summary)
    kind, reason = judge(scheme)
    if reason:
        logger.info_once("pruned Linears stay as in stock vLLM: %s", reason)
        return dense
    if kind == "int4":
        return SparseInt4LinearMethod(dense, name, expected, summary, activations)
    method = SparseInt8LinearMethod if kind == "int8" else SparseFp8LinearMethod
    return method(dense, name, expected, summary)


def judge(scheme: Any) -> tuple[str, str]:
    """Return kind of weight of a scheme, and why vLLM serves it; "" where one of ours does."""
    kind, group_size = type(scheme).__name__, None
    if isinstance(scheme, CompressedTensorsW8A8Fp8):
        kind = "float8_e4m3fn"
    elif isinstance(scheme, CompressedTensorsW8A8Int8):
        kind = "int8"
    elif isinstance(scheme, CompressedTensorsWNA16):
        kind = "int4" if scheme.num_bits == 4 else f"int{scheme.num_bits} with 16-bit inputs"
        group_size = scheme.group_size
    if not current_platform.is_cpu():
        return kind, f"{kind} has no sparse kernel on this device"
    strategy = getattr(scheme, "strategy", None)  # of an enumeration, or its value
    return kind, stock_scheme(kind, getattr(strategy, "value", strategy), group_size)
