"""Memory and time of a pruning run, on paper, before it is started.

The model is only its shapes (on the meta device), so the estimate takes no memory and works for
models of any size. What is counted follows the default run: llm-compressor's sequential pipeline,
one decoder layer on the accelerator at a time, weights and what passes between the layers in the
memory of the host.

Forward passes. DAS makes one pass of the dense model; every layer is then calibrated, pruned, and
passed once more: three passes of the decoder and of the towers before it, two without a dense pass,
one with ``one_pass``. A token of a Linear costs 2 * in * out operations, attention 4 * S * width a
token (every pair of tokens: eager attention computes the masked ones too).

Selection. AMIA compares all tokens of a sample in the outputs of every Linear: 2 * S^2 * out.
SparseGPT adds 2 * in^2 a selected token, and its solver about out * in^2 + in^3.

The accelerator holds at its fullest one decoder layer, what one batch makes of it, the sums of
its statistics, and the copies that pruning makes of the largest Linear; or the embeddings, where
they are larger.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tamp_modifier.messages import duration

if TYPE_CHECKING:
    from rich.table import Table

COPIED_BYTES = 4
"""Bytes a weight of a Linear while it is pruned: a copy in bf16, and marks of what is zero."""

COMPARED_BYTES = 22
"""Bytes a weight that is compared: two copies in bf16, the metric and its copy in fp32, what
selecting the smallest needs (fp32 value and int64 place, for the pruned half), and the mask."""

SORTED_PER_SECOND = 1e9
"""Weights that an accelerator selects from in a second; an assumption, small beside the passes."""


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
        return _weights(self.linears) + _weights(self.experts)

    @property
    def active(self) -> float:
        """Weights of the decoder layers that one token meets."""
        return _weights(self.linears) + self.routed * _weights(self.experts)


@dataclass(frozen=True)
class Estimate:
    """Memory in bytes and time in seconds, of one accelerator and of the host of all.

    Attributes:
        weights: of the whole model.
        layer: of the largest decoder layer.
        activations: what one batch makes in a decoder layer.
        statistics: sums of one decoder layer.
        pruning: copies of the largest Linear while it is pruned.
        device_peak: on the accelerator, at the fullest.
        host_peak: weights and what passes between layers, of all processes together, where weights
            are kept in memory (which processes share).
        host_peak_disk: the same where weights are offloaded to disk.
        operations: floating-point operations of all passes.
        moved: bytes that cross between host and accelerator.
        seconds: time of the whole calibration.
        seconds_disk: the same where weights come from disk.
    """

    weights: int
    layer: int
    activations: int
    statistics: int
    pruning: int
    device_peak: int
    host_peak: int
    host_peak_disk: int
    operations: float
    moved: float
    seconds: float
    seconds_disk: float

    def to_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return asdict(self)

    def table(self) -> Table:
        """Return the numbers for the terminal."""
        from rich.table import Table

        table = Table(title="Estimate, not measured", title_justify="left", show_header=False)
        for label, value in (
            ("weights", _gigabytes(self.weights)),
            ("one decoder layer", _gigabytes(self.layer)),
            ("peak on the accelerator", _gigabytes(self.device_peak)),
            ("peak on the host", _gigabytes(self.host_peak)),
            ("peak on the host, weights on disk", _gigabytes(self.host_peak_disk)),
            ("operations", f"{self.operations / 1e15:.2f} PFLOP"),
            ("time", duration(self.seconds)),
            ("time, weights on disk", duration(self.seconds_disk)),
        ):
            table.add_row(label, value)
        return table


@dataclass(frozen=True)
class Machine:
    """What one accelerator and its host do; reached values, not those of a data sheet.

    Attributes:
        flops: operations a second in the model's dtype.
        link: bytes a second between host and accelerator.
        disk: bytes a second from disk.
        sorted_per_second: weights a second that are compared and pruned.
    """

    flops: float = 200e12
    link: float = 20e9
    disk: float = 2e9
    sorted_per_second: float = SORTED_PER_SECOND

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite and > 0, got {value}")


def measure(model: nn.Module) -> Shapes:
    """Read the shapes off a model; its weights may be on the meta device.

    Raises:
        ValueError: the decoder layers cannot be found.
    """
    from tamp_modifier.calibration.targets import find_decoder_layers

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


def estimate(
    shapes: Shapes,
    samples: int,
    tokens: int,
    *,
    batch_size: int = 1,
    passes: int = 3,
    selection: str = "amia",
    score: str = "wanda",
    all_experts: bool = False,
    processes: int = 1,
    machine: Machine | None = None,
) -> Estimate:
    """Memory and time of one run.

    Args:
        shapes: the model.
        samples: calibration samples, of all processes together.
        tokens: tokens of one sample, media included.
        batch_size: samples of one batch.
        passes: 3 by default, 2 without a dense pass, 1 with ``one_pass``.
        selection: the modifier's field; "amia" compares tokens, the others cost next to nothing.
        score: the modifier's field; "sparsegpt" keeps Hessians.
        all_experts: whether every token passes every expert, llm-compressor's default for
            mixtures of experts (``moe_calibrate_all_experts``).
        processes: accelerators that share the samples; each reads all weights.
        machine: speeds.

    Raises:
        ValueError: a number out of range.
    """
    for name, value in {
        "samples": samples,
        "tokens": tokens,
        "batch_size": batch_size,
        "passes": passes,
        "processes": processes,
    }.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    from tamp_modifier.scores.rowwise import AT_ONCE

    machine = machine or Machine()
    mine = -(-samples // processes)
    everything = mine * tokens
    routed = 1.0 if all_experts else shapes.routed
    active = _weights(shapes.linears) + routed * _weights(shapes.experts)
    attention = 4.0 * tokens * shapes.head_width * shapes.layers
    operations = passes * everything * (2.0 * (active + shapes.tower) + attention)
    if selection == "amia":
        compared = _sum(shapes.linears, lambda i, o: o)
        # An expert compares the tokens that were routed to it.
        compared += shapes.routed**2 * _sum(shapes.experts, lambda i, o: o)
        operations += 2.0 * everything * tokens * compared
    if score == "sparsegpt":
        operations += 2.0 * everything * _sum(shapes.linears, lambda i, o: i * i)
        operations += 2.0 * everything * shapes.routed * _sum(shapes.experts, lambda i, o: i * i)
        solve: Callable[[int, int], float] = lambda i, o: o * i * i + i**3  # noqa: E731
        solved = _sum(shapes.linears, solve) + _sum(shapes.experts, solve)
        operations += solved / processes

    layer = shapes.layer * shapes.bytes
    shape_counts = [*shapes.linears.items(), *shapes.experts.items()]
    per_layer = [(i, o, n / shapes.layers) for (i, o), n in shape_counts]
    width = 8 * shapes.hidden + sum(o * n for (i, o), n in shapes.linears.items()) / shapes.layers
    width += routed * sum(o * n for (i, o), n in shapes.experts.items()) / shapes.layers
    # Outputs of all Linears wait for the attention; its weights exist in the model's dtype and in
    # fp32, before and after softmax.
    activations = batch_size * tokens * width * shapes.bytes
    activations += batch_size * shapes.heads * tokens**2 * (2 * shapes.bytes + 4)
    if selection == "amia":
        activations += 3 * 4 * tokens**2
    statistics = sum((8 * i if score != "sparsegpt" else 4 * i * i) * n for i, o, n in per_layer)
    largest = max((i * o for i, o, _ in per_layer), default=0)
    at_once = largest if score == "sparsegpt" else min(largest, AT_ONCE)
    pruning = COPIED_BYTES * largest + COMPARED_BYTES * at_once
    if score == "sparsegpt":
        pruning += 3 * 4 * max((i * i for i, o, _ in per_layer), default=0)
    table = shapes.largest_outside * shapes.bytes
    device = max(layer + statistics + max(activations, pruning), table + activations)

    # Hidden states of all samples, and their masks: one accelerator's share times their number.
    cached = everything * shapes.hidden * shapes.bytes + mine * tokens**2 * shapes.bytes
    cached *= processes
    weights = shapes.parameters * shapes.bytes
    reads = 2 if passes == 3 else 1
    moved = (reads + 1) * shapes.targets * shapes.bytes + reads * shapes.outside * shapes.bytes
    between = (2 * passes - 1) * everything * shapes.hidden * shapes.bytes * shapes.layers
    computing = operations / machine.flops
    computing += shapes.targets / processes / machine.sorted_per_second
    return Estimate(
        weights=weights,
        layer=layer,
        activations=int(activations),
        statistics=int(statistics),
        pruning=pruning,
        device_peak=int(device),
        host_peak=int(weights + cached),
        host_peak_disk=int(2 * layer * processes + cached),
        operations=operations,
        moved=moved + between,
        seconds=computing + (moved + between) / machine.link,
        seconds_disk=computing + between / machine.link + moved / min(machine.disk, machine.link),
    )


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _weights(counts: Mapping[tuple[int, int], int]) -> int:
    return sum(i * o * n for (i, o), n in counts.items())


def _sum(counts: Mapping[tuple[int, int], int], cost: Callable[[int, int], float]) -> float:
    return sum(cost(i, o) * n for (i, o), n in counts.items())


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
