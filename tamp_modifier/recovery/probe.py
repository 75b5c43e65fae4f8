"""A learning rate for a model, by a few steps with each of several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

RATE, WIDTH = 1e-4, 576
"""A learning rate that does for models up to this width; beyond, Adam's goes down with the width
(Yang et al., arXiv 2203.03466, table 3)."""
FACTORS = (1 / 3, 1.0, 3.0)
"""What the probe multiplies that rate by, from the lowest."""

STEPS = 4
"""Steps with each rate, of one batch."""
COMPARED = 2
"""Held-out batches that are compared."""


def usual_rate(width: int) -> float:
    """Return a learning rate that does for models of a width (features of a hidden state)."""
    return float(f"{RATE * min(1.0, WIDTH / width):.2g}")


def probe_batches() -> float:
    """Batches' worth of forward passes of both models that a probe takes, about.

    A backward pass takes as long as two forward passes.
    """
    return len(FACTORS) * (2 * STEPS + COMPARED) + COMPARED


@dataclass(frozen=True)
class Probe:
    """What came out.

    Attributes:
        rate: the best learning rate.
        losses: held-out loss after the steps with each rate; NaN where it was not finite.
        before: held-out loss before.
        seconds: of one step.
    """

    rate: float
    losses: dict[float, float]
    before: float
    seconds: float


def probe(
    model: nn.Module,
    loss_of: Callable[[Mapping[str, Tensor]], Tensor],
    batches: Iterable[Mapping[str, Tensor]],
    held_out: Iterable[Mapping[str, Tensor]],
    rates: Sequence[float],
    step: Callable[[int, int], None] = lambda done, total: None,
) -> Probe:
    """Train from the same weights with each rate, and compare; the weights come back.

    Args:
        model: the student; its parameters that need gradients are trained.
        loss_of: the loss of a batch.
        batches: of the steps, the same for each rate.
        held_out: batches that are compared.
        rates: tried in turn, from the lowest; one that is worse by half than the best ends it.
        step: called after every rate with how many are done, and of how many.

    Raises:
        ValueError: the loss before is not finite, or with every rate after.
    """
    given, compared = list(batches), list(held_out)
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().to("cpu", copy=True) for p in parameters]
    before = _mean_loss(loss_of, compared)
    if not math.isfinite(before):
        raise ValueError("the student's loss is not finite before any training")
    losses: dict[float, float] = {}
    seconds = math.inf
    for number, rate in enumerate(rates):
        found, took = _try(model, loss_of, given, compared, parameters, rate)
        seconds = min(seconds, took)
        losses[rate] = found
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        step(number + 1, len(rates))
        finite = [loss for loss in losses.values() if math.isfinite(loss)]
        if not math.isfinite(found) or found > 1.5 * min([before, *finite]):
            break
    step(len(rates), len(rates))
    known = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    if not known:
        raise ValueError("the loss is not finite with any learning rate; give a lower one")
    return Probe(min(known, key=known.__getitem__), losses, before, seconds)


def _try(
    model: nn.Module,
    loss_of: Callable[[Mapping[str, Tensor]], Tensor],
    batches: list[Mapping[str, Tensor]],
    held_out: list[Mapping[str, Tensor]],
    parameters: list[nn.Parameter],
    rate: float,
) -> tuple[float, float]:
    """Return the held-out loss after the steps with a rate, and the seconds of a step."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=True)
    fastest = math.inf
    for number in range(STEPS):
        begin = time.perf_counter()
        loss = loss_of(batches[number % len(batches)])
        if not math.isfinite(float(loss.detach())):
            return math.nan, time.perf_counter() - begin
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        fastest = min(fastest, time.perf_counter() - begin)
    return _mean_loss(loss_of, held_out), fastest


@torch.no_grad()
def _mean_loss(
    loss_of: Callable[[Mapping[str, Tensor]], Tensor], batches: list[Mapping[str, Tensor]]
) -> float:
    return sum(float(loss_of(batch)) for batch in batches) / len(batches)
