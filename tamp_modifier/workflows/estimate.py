"""Memory and time of a pruning run, on paper, before it is started.

The model is only its shapes (on the meta device), so the estimate takes no memory and works for
models of any size. What is counted follows the default run: llm-compressor's sequential pipeline,
one decoder layer on the accelerator at a time, weights and what passes between the layers in the
memory of the host.

Forward passes. DAS makes one pass of the dense model; every layer is then calibrated, pruned, and
passed once more: three passes of the decoder and of the towers before it, two without a dense pass,
one more with ``permute_columns``, one in all with ``one_pass``. A token of a Linear costs
2 * in * out operations, attention 4 * S * width a token (every pair of tokens: eager attention
computes the masked ones too).

What a selection, a score or an allocation adds, it tells itself. AMIA compares all tokens of a
sample in the outputs of every Linear: 2 * S^2 * out. SparseGPT adds 2 * in^2 a selected token, and
its solver about out * in^2 + in^3.

The accelerator holds at its fullest one decoder layer, what one batch makes of it, the sums of
its statistics, and the copies that pruning makes of the largest Linear; or the embeddings, where
they are larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tamp_modifier.allocation.base import Allocation
from tamp_modifier.messages import duration, size_text
from tamp_modifier.scores.base import Score
from tamp_modifier.scores.registry import get_score
from tamp_modifier.selection.amia import AMIASelection
from tamp_modifier.selection.base import Selection
from tamp_modifier.workflows.shapes import Shapes, weights_of

if TYPE_CHECKING:
    from rich.table import Table

SORTED_PER_SECOND = 1e9
"""Weights that an accelerator selects from in a second; an assumption, small beside the passes."""


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
            ("weights", size_text(self.weights)),
            ("one decoder layer", size_text(self.layer)),
            ("peak on the accelerator", size_text(self.device_peak)),
            ("peak on the host", size_text(self.host_peak)),
            ("peak on the host, weights on disk", size_text(self.host_peak_disk)),
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


@dataclass(frozen=True)
class _Run:
    """One run on one accelerator: what it computes, holds and moves. Arguments as of `estimate`."""

    shapes: Shapes
    samples: int
    tokens: int
    batch_size: int
    passes: int
    selection: Selection
    score: Score
    allocation: Allocation | None
    all_experts: bool
    processes: int

    def __post_init__(self) -> None:
        for name in ("samples", "tokens", "batch_size", "passes", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def mine(self) -> int:
        """Samples of one accelerator."""
        return -(-self.samples // self.processes)

    @property
    def routed(self) -> float:
        """Share of the experts that a token passes."""
        return 1.0 if self.all_experts else self.shapes.routed

    @property
    def per_layer(self) -> list[tuple[int, int, float]]:
        """(in, out, number) of the Linears of a decoder layer."""
        shapes = self.shapes
        counts = [*shapes.linears.items(), *shapes.experts.items()]
        return [(i, o, n / shapes.layers) for (i, o), n in counts]

    def operations(self) -> float:
        """Floating-point operations of passes, rules and score."""
        shapes, score = self.shapes, self.score
        everything = self.mine * self.tokens
        active = weights_of(shapes.linears) + self.routed * weights_of(shapes.experts)
        attention = 4.0 * self.tokens * shapes.head_width * shapes.layers
        total = self.passes * everything * (2.0 * (active + shapes.tower) + attention)
        rules = [self.selection.operations] if score.needs_tokens else []
        rules += [self.allocation.operations] if self.allocation is not None else []
        total += sum(self._of_rule(cost) for cost in rules)
        collecting: Callable[[int, int], float] = lambda i, o: score.collecting(i)  # noqa: E731
        total += everything * _sum(shapes.linears, collecting)
        total += everything * shapes.routed * _sum(shapes.experts, collecting)
        solved = _sum(shapes.linears, score.solving) + _sum(shapes.experts, score.solving)
        return total + solved / self.processes

    def _of_rule(self, cost: Callable[[float, int], float]) -> float:
        """Floating-point operations of a rule, from those in one sample (tokens, out)."""
        routed = self.shapes.routed * self.tokens  # what an expert sees of a sample
        each = _sum(self.shapes.linears, lambda i, o: cost(self.tokens, o))
        return self.mine * (each + _sum(self.shapes.experts, lambda i, o: cost(routed, o)))

    def activations(self) -> float:
        """Bytes that one batch makes in a decoder layer."""
        shapes, tokens = self.shapes, self.tokens
        width = 8.0 * shapes.hidden
        width += _sum(shapes.linears, lambda i, o: o) / shapes.layers
        width += self.routed * _sum(shapes.experts, lambda i, o: o) / shapes.layers
        # Outputs of all Linears wait for the attention; its weights exist in the model's dtype and
        # in fp32, before and after softmax.
        total = self.batch_size * tokens * width * shapes.bytes
        total += self.batch_size * shapes.heads * tokens**2 * (2 * shapes.bytes + 4)
        return total + (self.selection.memory(tokens) if self.score.needs_tokens else 0)

    def statistics(self) -> float:
        """Bytes of the sums of one decoder layer."""
        return sum(self.score.statistics_bytes(i) * n for i, _, n in self.per_layer)

    def pruning(self) -> int:
        """Bytes that pruning the most demanding Linear takes."""
        return max((self.score.pruning_bytes(i, o) for i, o, _ in self.per_layer), default=0)

    def cached(self) -> int:
        """Bytes of the hidden states of all samples of all accelerators, and of their masks."""
        hidden = self.mine * self.tokens * self.shapes.hidden * self.shapes.bytes
        return (hidden + self.mine * self.tokens**2 * self.shapes.bytes) * self.processes

    def moved(self) -> int:
        """Bytes of weights that cross to the accelerator, or back."""
        # The two passes over a layer, before and after it is pruned, share a reading.
        reads = max(self.passes - 1, 1)
        shapes = self.shapes
        return ((reads + 1) * shapes.targets + reads * shapes.outside) * shapes.bytes

    def between(self) -> int:
        """Bytes that pass between decoder layers."""
        states = self.mine * self.tokens * self.shapes.hidden * self.shapes.bytes
        return (2 * self.passes - 1) * states * self.shapes.layers


def estimate(
    shapes: Shapes,
    samples: int,
    tokens: int,
    *,
    batch_size: int = 1,
    passes: int = 3,
    selection: Selection | None = None,
    score: Score | None = None,
    allocation: Allocation | None = None,
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
        passes: over all samples, see `Rules.passes`.
        selection: the rule, which tells its cost; by default AMIA. It costs nothing where the score
            looks at no token.
        score: the score, which tells its cost; by default Wanda.
        allocation: the rule, which tells the cost of its measurement; by default none.
        all_experts: whether every token passes every expert, llm-compressor's default for
            mixtures of experts (``moe_calibrate_all_experts``).
        processes: accelerators that share the samples; each reads all weights.
        machine: speeds.

    Raises:
        ValueError: a number out of range.
    """
    run = _Run(
        shapes,
        samples,
        tokens,
        batch_size,
        passes,
        selection or AMIASelection(),
        score or get_score("wanda"),
        allocation,
        all_experts,
        processes,
    )
    machine = machine or Machine()
    layer = shapes.layer * shapes.bytes
    weights = shapes.parameters * shapes.bytes
    table = shapes.largest_outside * shapes.bytes
    operations, activations, cached = run.operations(), run.activations(), run.cached()
    statistics, pruning = run.statistics(), run.pruning()
    moved, between = run.moved(), run.between()
    device = max(layer + statistics + max(activations, pruning), table + activations)
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


def _sum(counts: Mapping[tuple[int, int], int], cost: Callable[[int, int], float]) -> float:
    return sum(cost(i, o) * n for (i, o), n in counts.items())
