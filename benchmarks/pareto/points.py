"""What is compared: a way to prune, or none, with a way to store what is left."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.pareto.formats import FORMATS, Format, settle
from benchmarks.quality.cells import DENSE
from benchmarks.quality.job import Job, apply
from benchmarks.quality.methods import METHODS, Method
from benchmarks.quality.models import QualityModel
from benchmarks.quality.runner import Plan


class Pruner:
    """Prune, and keep the weights of the last job for the other formats of its setting."""

    def __init__(self) -> None:
        self._last: tuple[Any, dict[str, torch.Tensor]] | None = None

    def run(self, method: Method, job: Job) -> None:
        """Prune the model of a job in place; its zeros are remembered."""
        from tamp_modifier.zeros.keep import keep_zeros

        linears = job.model.linears(job.dense)
        key = (job.model.name, method.name, job.sparsity, job.structure, _digest(job.batches))
        if self._last is None or self._last[0] != key:
            method.run(job)
            settle(linears, quantized=False)
            self._last = (key, {name: m.weight.detach().clone() for name, m in linears.items()})
            return
        with torch.no_grad():
            for name, linear in linears.items():
                linear.weight.copy_(self._last[1][name])
        keep_zeros(job.dense)


def _digest(batches: Sequence[dict[str, torch.Tensor]]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        found.update(batch["input_ids"].numpy().tobytes())
    return found.hexdigest()


_PRUNER = Pruner()


@dataclass(frozen=True)
class Point:
    """One way to prune with one way to store.

    Attributes:
        name: of its cells.
        pruning: None prunes nothing.
        format: how the weights of the decoder are stored.
    """

    name: str
    pruning: Method | None
    format: Format

    def recipe(self, job: Job) -> dict[str, Any]:
        """Return what decides the result, for the cell."""
        pruning = self.pruning.recipe(job) if self.pruning is not None else {}
        stored = {"stored": self.format.name, "by": list(self.format.told)}
        return {**pruning, **stored, "group": self.format.group}

    def run(self, job: Job) -> None:
        """Prune and quantize the model of a job in place."""
        if self.pruning is not None:
            _PRUNER.run(self.pruning, job)
        modifiers = self.format.modifiers()
        if modifiers:
            apply(modifiers, job, job.dense)
            settle(job.model.linears(job.dense), quantized=True)


def _point(pruning: str, stored: str) -> Point:
    method = None if pruning == DENSE else METHODS[pruning]
    return Point(f"{pruning}_{stored}", method, FORMATS[stored])


DENSE_ONLY = ("int4_awq", "int3_gptq", "int3_fit")
"""Formats that only dense weights are stored in."""

POINTS: dict[str, Point] = {
    point.name: point
    for point in (
        *(_point(DENSE, stored) for stored in FORMATS if stored != "bf16"),
        *(_point("best", stored) for stored in FORMATS if stored not in DENSE_ONLY),
        *(_point("wanda", stored) for stored in ("bf16", "int8", "int4_gptq")),
    )
}

SPARSITIES = ("50", "60", "2:4", "70", "4:8", "30")
STORED = ("bf16", "int8", "int4_gptq")
"""With every sparsity."""

FIRST = (
    ("dense_int4_gptq", "0"),
    ("best_int8", "50"),
    ("best_int4_gptq", "50"),
    ("dense_int8", "0"),
    ("dense_int4_rtn", "0"),
    ("best_bf16", "50"),
    ("best_int4_rtn", "50"),
    ("best_int4_fit", "50"),
)
"""What decides, and the orders of pruning and rounding."""

LAST = (
    ("best_int8_gptq", "50"),
    ("dense_int8_gptq", "0"),
    ("dense_int4_fit", "0"),
    ("wanda_bf16", "50"),
    ("wanda_int8", "50"),
    ("wanda_int4_gptq", "50"),
    ("dense_int3_gptq", "0"),
    ("dense_int3_fit", "0"),
    ("dense_int4_awq", "0"),
)
"""Other ways to the same points."""


ORDER = tuple(
    dict.fromkeys(
        [
            *FIRST,
            *((f"best_{stored}", setting) for setting in SPARSITIES for stored in STORED),
            *LAST,
        ]
    )
)
"""Method and setting of every cell but the dense one, what decides first."""


def plan(models: Sequence[QualityModel], seeds: Sequence[int]) -> list[Plan]:
    """All cells of every model and seed; the dense model needs no calibration and one seed."""
    return [
        (model, *cell, seed)
        for model in models
        for seed in seeds
        for cell in [*([(DENSE, "0")] if seed == seeds[0] else []), *ORDER]
    ]
