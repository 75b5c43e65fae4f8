"""The ways to store a weight, and how a model gets there with llm-compressor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

GROUP = 64
"""Weights of a row that share a scale in 3 and 4 bits: SmolLM2's 576 columns have no groups of
128."""

IGNORE = [
    "re:.*lm_head$",
    "re:.*(vision|visual|audio|projector|connector).*",
]
"""Linears that stay as they are, as in the recipes."""

_DECODER = "re:^(?!.*(vision|visual|audio)).*"
MAPPINGS: dict[str, list[Any]] = {
    "smooth": [
        ([f"{_DECODER}{name}_proj$" for name in "qkv"], f"{_DECODER}input_layernorm$"),
        (
            [f"{_DECODER}gate_proj$", f"{_DECODER}up_proj$"],
            f"{_DECODER}post_attention_layernorm$",
        ),
    ],
    "output": [
        ([f"{_DECODER}o_proj$"], f"{_DECODER}v_proj$"),
        ([f"{_DECODER}down_proj$"], f"{_DECODER}up_proj$"),
    ],
}
"""Linears, and what comes before them: norms, and for AWQ also Linears."""


@dataclass(frozen=True)
class Format:
    """One way to store the weights of the decoder's Linears.

    Attributes:
        name: what the user calls it.
        title: for tables and figures.
        bits: of a stored value.
        group: weights of a row that share a scale; None where a whole row does or nothing is
            scaled.
        scaled: whether there are scales, 16 bits each.
        modifiers: what makes it, in this order; none for bf16.
        told: what a recipe says of it.
    """

    name: str
    title: str
    bits: int
    group: int | None
    scaled: bool
    modifiers: Callable[[], list[Any]]
    told: tuple[str, ...]


def _rounding(scheme: dict[str, Any]) -> Any:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return QuantizationModifier(ignore=IGNORE, **scheme)


def _gptq(scheme: dict[str, Any]) -> Any:
    from llmcompressor.modifiers.gptq import GPTQModifier

    return GPTQModifier(ignore=IGNORE, **scheme)


def _fitted(scheme: dict[str, Any]) -> Any:
    from tamp_modifier import FittedGPTQModifier

    return FittedGPTQModifier(ignore=IGNORE, **scheme)


def _smoothing() -> Any:
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    return SmoothQuantModifier(smoothing_strength=0.8, mappings=MAPPINGS["smooth"])


def _awq() -> Any:
    from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier

    pairs = [*MAPPINGS["smooth"], *MAPPINGS["output"]]
    return AWQModifier(mappings=[AWQMapping(before, linears) for linears, before in pairs])


def _in_groups(bits: int) -> dict[str, Any]:
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": GROUP,
    }
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


_W8A8 = {"scheme": "W8A8", "targets": ["Linear"]}

FORMATS: dict[str, Format] = {
    found.name: found
    for found in (
        Format("bf16", "bf16", 16, None, False, list, ()),
        Format(
            "int8", "W8A8", 8, None, True, lambda: [_rounding(_W8A8)], ("QuantizationModifier",)
        ),
        Format(
            "int8_gptq",
            "W8A8, SmoothQuant and GPTQ",
            8,
            None,
            True,
            lambda: [_smoothing(), _gptq(_W8A8)],
            ("SmoothQuantModifier", "GPTQModifier"),
        ),
        Format(
            "int4_rtn",
            "W4A16, rounded",
            4,
            GROUP,
            True,
            lambda: [_rounding(_in_groups(4))],
            ("QuantizationModifier",),
        ),
        Format(
            "int4_gptq",
            "W4A16, GPTQ",
            4,
            GROUP,
            True,
            lambda: [_gptq(_in_groups(4))],
            ("GPTQModifier",),
        ),
        Format(
            "int4_fit",
            "W4A16, GPTQ, fitted on the grid",
            4,
            GROUP,
            True,
            lambda: [_fitted(_in_groups(4))],
            ("FittedGPTQModifier",),
        ),
        Format(
            "int4_awq",
            "W4A16, AWQ",
            4,
            GROUP,
            True,
            lambda: [_awq(), _rounding(_in_groups(4))],
            ("AWQModifier", "QuantizationModifier"),
        ),
        Format(
            "int3_gptq",
            "3 bits, GPTQ",
            3,
            GROUP,
            True,
            lambda: [_gptq(_in_groups(3))],
            ("GPTQModifier",),
        ),
        Format(
            "int3_fit",
            "3 bits, GPTQ, fitted on the grid",
            3,
            GROUP,
            True,
            lambda: [_fitted(_in_groups(3))],
            ("FittedGPTQModifier",),
        ),
    )
}


@torch.no_grad()
def settle(linears: dict[str, nn.Linear], quantized: bool) -> None:
    """Give every Linear the weight that a saved checkpoint would have, as bfloat16 has it.

    llm-compressor's modules round their weights anew in every forward pass; here they hold the
    rounded weight, with scales in bfloat16, and only activations are still quantized.

    Args:
        linears: of the decoder layers.
        quantized: whether they were.

    Raises:
        ValueError: a Linear is quantized and should not be, or the other way round.
    """
    from compressed_tensors.quantization import fake_quantize

    wrong = [n for n, m in linears.items() if hasattr(m, "quantization_scheme") != quantized]
    if wrong:
        raise ValueError(f"{len(wrong)} Linears are not stored as asked, such as {wrong[0]}")
    for linear in linears.values():
        weight = linear.weight
        if quantized:
            scheme: Any = linear.quantization_scheme
            scale = linear.weight_scale.bfloat16().to(weight.dtype)
            zero = getattr(linear, "weight_zero_point", None)
            weight.copy_(fake_quantize(weight, scale, zero, scheme.weights))
            linear.quantization_scheme = scheme.model_copy(update={"weights": None})
        weight.copy_(weight.bfloat16())
