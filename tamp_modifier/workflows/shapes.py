"""The shapes of a model, which is all that an estimate needs to know of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tamp_modifier.calibration.targets import find_decoder_layers


@dataclass(frozen=True)
class Shapes:
    """What the estimate needs to know of a model.

    Attributes:
        parameters: all of them.
        outside: parameters outside of the decoder layers: embeddings, head, towers, projector.
        largest_outside: parameters of the largest single tensor outside, the embeddings as a rule.
        tower: matrices of towers and projector; each token is taken to pass them once.
        layers: number of decoder layers.
        layer: parameters of the largest decoder layer.
        linears: number of each shape (in, out) among the Linears of all decoder layers, without
            those of experts.
        experts: the same for experts.
        routed: share of the experts that a token is routed to.
        hidden: width of the decoder.
        heads: attention heads.
        head_width: features of all heads together.
        bytes: bytes a parameter.
    """

    parameters: int
    outside: int
    largest_outside: int
    tower: int
    layers: int
    layer: int
    linears: Mapping[tuple[int, int], int]
    experts: Mapping[tuple[int, int], int]
    routed: float
    hidden: int
    heads: int
    head_width: int
    bytes: int = 2

    @property
    def targets(self) -> int:
        """Weights that are pruned."""
        return weights_of(self.linears) + weights_of(self.experts)

    @property
    def active(self) -> float:
        """Weights of the decoder layers that one token meets."""
        return weights_of(self.linears) + self.routed * weights_of(self.experts)


def measure(model: nn.Module) -> Shapes:
    """Read the shapes off a model; its weights may be on the meta device.

    Raises:
        ValueError: the decoder layers cannot be found.
    """
    layers = find_decoder_layers(model)
    inside = {id(p) for layer in layers.values() for p in layer.parameters()}
    linears: Counter[tuple[int, int]] = Counter()
    experts: Counter[tuple[int, int]] = Counter()
    for layer in layers.values():
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith(("gate", "router")):
                where = experts if ".experts." in f".{name}." else linears
                where[module.in_features, module.out_features] += 1
        for name, parameter in layer.named_parameters():
            if ".experts." in f".{name}." and parameter.dim() == 3:
                _count_fused(experts, name, tuple(parameter.shape))
    get_text = getattr(model.config, "get_text_config", None)
    text = get_text(decoder=True) if callable(get_text) else model.config
    others = [p for p in _unique(model.parameters()) if id(p) not in inside]
    vocabulary = getattr(text, "vocab_size", 0)
    tables = [p.numel() for p in others if p.dim() == 2 and vocabulary in p.shape]
    count = max(_first(text, "num_experts", "num_local_experts", "n_routed_experts") or 1, 1)
    heads = _first(text, "num_attention_heads") or 1
    hidden = _first(text, "hidden_size") or 1
    first = next(model.parameters())
    return Shapes(
        parameters=sum(p.numel() for p in _unique(model.parameters())),
        outside=sum(p.numel() for p in others),
        largest_outside=max((p.numel() for p in others), default=0),
        tower=sum(p.numel() for p in others if p.dim() > 1) - sum(tables),
        layers=len(layers),
        layer=max(sum(p.numel() for p in layer.parameters()) for layer in layers.values()),
        linears=dict(linears),
        experts=dict(experts),
        routed=(_first(text, "num_experts_per_tok") or count) / count,
        hidden=hidden,
        heads=heads,
        head_width=heads * (_first(text, "head_dim") or hidden // heads),
        bytes=first.element_size(),
    )


def measure_config(config: Any) -> Shapes:
    """Read the shapes off the config of a model, without its weights.

    Raises:
        ValueError: transformers has no model for this config, or no decoder layers are found.
    """
    import transformers

    for auto in (
        transformers.AutoModelForImageTextToText,
        transformers.AutoModelForMultimodalLM,
        transformers.AutoModelForCausalLM,
    ):
        if type(config) in auto._model_mapping:
            with torch.device("meta"):
                return measure(auto.from_config(config, dtype=torch.bfloat16))
    raise ValueError(f"transformers has no language model for {type(config).__name__}")


def weights_of(counts: Mapping[tuple[int, int], int]) -> int:
    """Return the weights of Linears, from the number of each shape (in, out)."""
    return sum(i * o * n for (i, o), n in counts.items())


def _count_fused(experts: Counter[tuple[int, int]], name: str, shape: tuple[int, ...]) -> None:
    """Experts in one tensor [experts, a, b]; gate and up are fused, which halves one side."""
    number, rows, columns = shape
    if "gate_up" in name:
        # [experts, 2 * intermediate, hidden], or transposed: the larger side does not tell, so the
        # count of weights is what matters, as two Linears of half the rows.
        experts[columns, rows // 2] += 2 * number
    else:
        experts[columns, rows] += number


def _unique(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(parameter): parameter for parameter in parameters}.values())


def _first(config: Any, *names: str) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((int(value) for value in found if value), None)
