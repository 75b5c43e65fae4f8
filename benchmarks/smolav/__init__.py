"""SmolAV: a small model that sees, hears and reads, on real language and speech weights."""

from benchmarks.smolav.data import (
    EvaluationItem,
    Score,
    calibration_batches,
    evaluate,
    evaluation_items,
    load,
)
from benchmarks.smolav.questions import ANSWERS, TASKS

__all__ = [
    "ANSWERS",
    "TASKS",
    "EvaluationItem",
    "Score",
    "calibration_batches",
    "evaluate",
    "evaluation_items",
    "load",
]
