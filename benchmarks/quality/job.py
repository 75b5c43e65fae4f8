"""What is to be pruned, and how much: the job that a method gets, and how a modifier runs on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.quality.models import QualityModel


@dataclass(frozen=True)
class Job:
    """What is to be pruned, and how much.

    Attributes:
        model: where it comes from.
        sparsity: share of the weights.
        structure: "0:0" or "N:M".
        batches: calibration samples.
        dense: the model.
    """

    model: QualityModel
    sparsity: float
    structure: str
    batches: list[dict[str, torch.Tensor]]
    dense: Any


def apply(modifiers: Sequence[Any], job: Job, model: Any) -> None:
    """Run modifiers, one after the other, on a model in place, with a job's calibration samples."""
    from llmcompressor import oneshot

    from tamp_modifier.upstream.tracing import complete_tracing

    complete_tracing()  # TAMPModifier would do it; the rivals need it for samples that differ
    torch.manual_seed(0)
    batches: Any = job.batches
    oneshot(
        model=model,
        processor=job.model.processor(),
        dataset=DataLoader(batches, batch_size=None),
        recipe=list(modifiers),
        num_calibration_samples=len(job.batches),
        shuffle_calibration_samples=False,
        sequential_targets=[job.model.layer],
    )
