"""ATP (arXiv 2502.14770) with its slope searched for the model, as in the paper.

The paper tries slopes in steps of 0.002 and keeps the one of least perplexity. Here the loss is
that of the text of the calibration samples, and the search goes up from 0 until two slopes in a row
are worse than the best one: on the way a worse one can be chance, and steep lines are hopeless.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.quality.ecoflap import layer_of, text_loss
from benchmarks.quality.job import Job, apply
from tamp_modifier.allocation.layerwise import ATP

STEP = 0.002
PATIENCE = 2


def allocate(job: Job) -> dict[str, float]:
    """Sparsity of every Linear by the slope that loses least; the job's model is not changed."""
    from tamp_modifier import TAMPModifier

    numel = {name: linear.weight.numel() for name, linear in job.model.linears(job.dense).items()}
    depth = {name: float(layer_of(name)[1]) for name in numel}
    steepest = ATP.steepest(job.sparsity, len(set(depth.values())))

    def shares(beta: float) -> dict[str, float]:
        rule = ATP(beta=beta) if beta else ATP(share=0.0)
        return rule(depth, numel, job.sparsity, 1.0)

    @torch.no_grad()
    def text_loss_with(beta: float) -> float:
        model = job.model.load()
        modifier = TAMPModifier(
            selection="all",
            sparsity=job.sparsity,
            allocation=shares(beta),
            **job.model.fields(),
        )
        apply([modifier], job, model)
        return sum(text_loss(model, batch) for batch in job.batches)

    return shares(search(text_loss_with, steepest))


def search(loss: Callable[[float], float], steepest: float) -> float:
    """Return the slope of least loss among 0, STEP, 2 STEP ... up to the steepest.

    Args:
        loss: of a slope.
        steepest: the last slope that may be tried.
    """
    best, least, worse = 0.0, loss(0.0), 0
    for number in range(1, int(steepest / STEP + 1e-9) + 1):
        value = loss(number * STEP)
        if value < least:
            best, least, worse = number * STEP, value, 0
        else:
            worse += 1
            if worse == PATIENCE:
                break
    return best
