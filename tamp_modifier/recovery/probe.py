"""A learning rate for a model, by a few steps with each of several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

RATES = (3e-5, 1e-4, 3e-4, 1e-3)
"""Learning rates that are tried, from the lowest; the first that is worse than its best forerunner
by a lot ends the probe."""

STEPS = 4
"""Steps with each rate."""


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
    accumulation: int,
    rates: tuple[float, ...] = RATES,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> Probe:
    """Train from the same weights with each rate, and compare; the weights come back.

    Args:
        model: the student; its parameters that need gradients are trained.
        loss_of: the loss of a batch.
        batches: STEPS times `accumulation` batches are taken, the same for each rate.
        held_out: batches that are compared.
        accumulation: batches of a step.
        rates: tried in turn.
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
        found, took = _try(model, loss_of, given, compared, accumulation, parameters, rate)
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
    accumulation: int,
    parameters: list[nn.Parameter],
    rate: float,
) -> tuple[float, float]:
    """Return the held-out loss after the steps with a rate, and the seconds of a step."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    fastest = math.inf
    for number in range(STEPS):
        begin = time.perf_counter()
        for place in range(accumulation):
            batch = batches[(number * accumulation + place) % len(batches)]
            loss = loss_of(batch) / accumulation
            if not math.isfinite(float(loss.detach())):
                optimizer.zero_grad()
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
