"""Runs the cells that are missing, one after the other, and writes each as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.pareto.formats import settle
from benchmarks.quality.cells import DENSE, Conditions, path_of
from benchmarks.quality.job import apply
from benchmarks.quality.methods import METHODS
from benchmarks.quality.runner import cell_of
from benchmarks.recovery import results
from benchmarks.recovery.plan import Way
from benchmarks.recovery.results import Result, Training
from benchmarks.recovery.stages import Order, Say, job_of, pruned_weights, put, train
from tamp_modifier.files import probe

CELLS, STAGES = "cells", "stages"
"""Folders below that of the results: what is shown, and what is only kept to go on from."""


@dataclass(frozen=True)
class Runner:
    """Runs cells.

    Attributes:
        output: folder of cells and stages.
        options: fields of `RecoverySettings` besides those that a way names.
        threads: of torch in training.
        say: is told what is done.
    """

    output: Path
    options: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    say: Say = print

    def run(self, models: Sequence[Any], ways: Sequence[Way]) -> None:
        """Run the cells that have no file yet. All files that are there are checked first.

        Args:
            models: of `MODELS`.
            ways: what is measured of each.

        Raises:
            ResultError: a file that was measured otherwise.
            FileNotFoundError: weights or data are missing.
            OSError: nothing can be written to the folder.
        """
        cells = self.output / CELLS
        missing = []
        for model in models:
            model.check()
            probe(cells / model.name)
            for way in ways:
                wanted = self.conditions(model, way)
                path = path_of(cells, wanted.key)
                if path.exists():
                    results.check_same(path, wanted)
                else:
                    missing.append((model, way, wanted))
        self.say(f"{len(models) * len(ways)} cells, {len(missing)} are missing")
        for model, way, wanted in missing:
            result = self.measure(model, way, wanted)
            results.save(cells, result)
            self.say(f"{' '.join(map(str, wanted.key))}: {_told(result)}")

    def conditions(self, model: Any, way: Way) -> Conditions:
        """Return what decides the result of a cell."""
        recipe: dict[str, Any] = {}
        if way.pruning != DENSE:
            recipe |= METHODS[way.pruning].recipe(job_of(model, way, None))
        recipe |= {"stored": way.stored, "by": list(way.format.told), "group": way.format.group}
        if way.amount.number:
            recipe["recovery"] = way.settings(self.options).to_dict()
            recipe["trained_on"] = model.told
        key = (model.name, DENSE if _is_dense(way) else way.method, way.setting, way.seed)
        return Conditions(key, model.identity, model.samples, recipe if not _is_dense(way) else {})

    def measure(self, model: Any, way: Way, wanted: Conditions) -> Result:
        """Prune, train, quantize and ask, each where it is part of the way."""
        from tamp_modifier.quiet import quiet

        begin = time.process_time()
        stages = self.output / STAGES
        with quiet():
            pruned = pruned_weights(model, way, stages / "pruned", self._aloud())
        seconds = time.process_time() - begin
        training = None
        weights = pruned
        if way.amount.number:
            order = self._order(model, way, pruned)
            training = train(order, self.say)
            weights = order.trained
        with quiet():
            loaded = model.load()
            if weights is not None:
                put(loaded, weights)
            self._store(model, way, loaded)
            tasks = model.evaluate(loaded)
        return Result(cell_of(model, wanted, loaded, seconds, tasks), training)

    def _aloud(self) -> Say:
        """Say through streams that are shut meanwhile."""
        import sys

        shown = sys.stdout
        return lambda line: print(line, file=shown, flush=True)

    def _order(self, model: Any, way: Way, pruned: Path | None) -> Order:
        # The formats after training as it is share one training.
        name = f"{way.pruning}_{way.setting.replace(':', 'of')}_{way.amount.name}"
        folder = self.output / STAGES / "trained" / model.name / f"{name}_{way.scheme}_{way.seed}"
        return Order(
            model.name, model.data, pruned, way.settings(self.options), folder, self.threads
        )

    def _store(self, model: Any, way: Way, loaded: Any) -> None:
        """Quantize a model as the way says."""
        from tamp_modifier.zeros.keep import keep_zeros

        modifiers = way.format.modifiers()
        if not modifiers:
            return
        if way.pruning != DENSE:
            keep_zeros(loaded)
        job = job_of(model, way, loaded)
        apply(modifiers, job, loaded)
        settle(model.linears(loaded), quantized=True)


def _is_dense(way: Way) -> bool:
    return way.pruning == DENSE and not way.amount.number and way.stored == "bf16"


def _told(result: Result) -> str:
    nll = {task: sum(t.nll) / len(t.nll) / 1e3 for task, t in result.cell.tasks.items()}
    parts = [f"NLL {sum(nll.values()) / len(nll):.3f}"]
    if len(nll) < 5:
        parts.append(", ".join(f"{task} {value:.3f}" for task, value in nll.items()))
    right = [sum(t.right) / sum(t.of) for t in result.cell.tasks.values()]
    parts.append(f"{100 * sum(right) / len(right):.1f} % right")
    parts.append(f"{100 * result.cell.reached:.2f} % zeros")
    training = result.training
    if isinstance(training, Training):
        parts.append(f"held-out KL {training.curve[0]['loss']:.4f} to {_best(training):.4f}")
        parts.append(f"{training.tokens / max(training.seconds, 1e-9):.0f} tokens/s")
    return "; ".join(parts)


def _best(training: Training) -> float:
    return min(entry["loss"] for entry in training.curve)


def set_threads(threads: int) -> None:
    """Let this process and those that it starts use so many threads."""
    import os

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
