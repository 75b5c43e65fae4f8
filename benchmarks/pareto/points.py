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
    """Prunes, and keeps the weights of the last job for the other formats of its setting."""

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


POINTS: dict[str, Point] = {
    point.name: point
    for point in (
        *(_point(DENSE, stored) for stored in FORMATS if stored != "bf16"),
        *(
            _point("best", stored)
            for stored in ("bf16", "int8", "int8_gptq", "int4_rtn", "int4_gptq")
        ),
        *(_point("wanda", stored) for stored in ("bf16", "int8", "int4_gptq")),
    )
}

SPARSITIES = ("50", "60", "70", "2:4", "4:8", "30")
STORED = ("bf16", "int8", "int4_gptq")
"""With every sparsity."""

CONTROL = tuple(
    (name, "50")
    for name in ("best_int4_rtn", "best_int8_gptq", "wanda_bf16", "wanda_int8", "wanda_int4_gptq")
)
"""Other ways to the same points."""


def plan(models: Sequence[QualityModel], seeds: Sequence[int]) -> list[Plan]:
    """All cells: every model and seed, what decides first."""
    dense = [(name, "0") for name, point in POINTS.items() if point.pruning is None]
    late = ("dense_int4_awq", "dense_int8_gptq")
    order = [
        *((name, setting) for name, setting in dense if name not in late),
        *((f"best_{stored}", setting) for setting in SPARSITIES for stored in STORED),
        *CONTROL,
        *((name, "0") for name in late),
    ]
    return [
        (model, *cell, seed)
        for model in models
        for seed in seeds
        for cell in ([(DENSE, "0")] if seed == seeds[0] else []) + order
    ]
