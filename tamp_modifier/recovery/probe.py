"""A learning rate for a model: the usual one, or a lower one where a few steps with it do harm."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

RATE, WIDTH = 3e-4, 576
"""The best of 1e-4, 3e-4 and 1e-3 on SmolLM2 and the demo model (docs/recovery.md), up to this
width; beyond, Adam's goes down with the width (Yang et al., arXiv 2203.03466, table 3)."""
FACTORS = (1.0, 1 / 3, 1 / 9)
"""What the probe multiplies that rate by, from the highest."""

STEPS = 4
"""Steps with each rate, of one batch."""
COMPARED = 2
"""Held-out batches that are compared."""


def usual_rate(width: int) -> float:
    """Return the usual learning rate of models of a width (features of a hidden state)."""
    return float(f"{RATE * min(1.0, WIDTH / width):.2g}")


def probe_batches() -> float:
    """Batches' worth of forward passes of both models that a probe takes at most, about.

    A backward pass takes as long as two forward passes.
    """
    return len(FACTORS) * (2 * STEPS + COMPARED) + COMPARED


@dataclass(frozen=True)
class Probe:
    """What came out.

    Attributes:
        rate: the learning rate.
        losses: held-out loss after the steps with each rate that was tried; NaN where it was not
            finite.
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
    """Train from the same weights with rate after rate until one does good; the weights come back.

    Few steps favour low rates, and a whole run does not, so the first that lowers the held-out loss
    is taken and not the one that lowers it most.

    Args:
        model: the student; its parameters that need gradients are trained.
        loss_of: the loss of a batch.
        batches: of the steps, the same for each rate.
        held_out: batches that are compared.
        rates: tried in turn, from the highest.
        step: called after every rate with how many are done, and of how many.

    Returns:
        The first rate that lowered the loss, or the one with the lowest where none did.

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
        if found < before:
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
