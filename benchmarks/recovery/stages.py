"""The stages of a cell, each in a file of its own: pruned weights, then trained ones.

Training and its dry run have a process each, because their peak of memory is measured, and a
process only knows that of its whole life. A training that was stopped goes on from its own states.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.pareto.formats import settle
from benchmarks.quality.cells import DENSE, parse_setting
from benchmarks.quality.job import Job
from benchmarks.quality.methods import METHODS
from benchmarks.recovery.models import MODELS, TrainableModel
from benchmarks.recovery.plan import Way
from benchmarks.recovery.results import Training
from tamp_modifier.files import whole_file, write_json
from tamp_modifier.recovery.settings import RecoverySettings

EVERY = 60
"""Seconds between two lines about a training."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What a training process is told.

    Attributes:
        model: a name of `MODELS`.
        data: folder of the model's data.
        weights: file of the pruned weights; None trains the dense model against a grid.
        settings: of the training.
        folder: for states and results.
        threads: of torch.
    """

    model: str
    data: Path
    weights: Path | None
    settings: RecoverySettings
    folder: Path
    threads: int

    @property
    def trained(self) -> Path:
        """File of the trained weights."""
        return self.folder / "trained.safetensors"

    @property
    def record(self) -> Path:
        """File of the `Training`."""
        return self.folder / "training.json"


def pruned_weights(model: Any, way: Way, folder: Path, say: Say) -> Path | None:
    """Return the file of the pruned weights of a way, made where it is not there; None for dense.

    Args:
        model: of `MODELS`.
        way: what is pruned, and how.
        folder: of such files.
        say: is told what is done.
    """
    if way.pruning == DENSE:
        return None
    name = f"{way.pruning}_{way.setting.replace(':', 'of')}_{way.seed}.safetensors"
    path = folder / model.name / name
    if not path.exists():
        say(f"pruning {model.name} {way.setting} by {way.pruning}")
        job = job_of(model, way, model.load())
        METHODS[way.pruning].run(job)
        linears = model.linears(job.dense)
        settle(linears, quantized=False)
        _save(path, {name: m.weight for name, m in linears.items()})
    return path


def job_of(model: Any, way: Way, loaded: Any) -> Job:
    """Return a job of `benchmarks.quality` for a loaded model."""
    sparsity, structure = parse_setting(way.setting) if way.setting != "0" else (0.0, "0:0")
    return Job(model, sparsity, structure, model.batches(way.seed, model.samples), loaded)


@torch.no_grad()
def put(loaded: Any, path: Path) -> None:
    """Write stored weights into a model.

    Raises:
        KeyError: a name that the model does not have.
    """
    parameters = dict(loaded.named_parameters())
    for name, value in load_file(path).items():
        parameters[name if name in parameters else f"{name}.weight"].copy_(value)


def train(order: Order, say: Say) -> Training:
    """Train in a process of its own, once; what the dry run tells is measured before.

    Raises:
        RuntimeError: the process failed; it has told why.
    """
    told = order.folder.parent / f"told-{_kind(order.settings)}-{order.threads}.json"
    order.folder.mkdir(parents=True, exist_ok=True)
    if not told.exists():
        say("measuring what a dry run tells")
        _process(_tell, order, told)
    if not order.record.exists():
        say("training")
        _process(_train, order, told)
    return Training(**json.loads(order.record.read_text()))


def _kind(settings: RecoverySettings) -> str:
    """Return what decides the memory of a training, for a name."""
    return f"{settings.train}-{settings.scheme}-{settings.batch_size}-{settings.hidden:g}"


def _process(target: Callable[..., None], *arguments: Any) -> None:
    arguments = (os.getpid(), target, *arguments)
    process = multiprocessing.get_context("spawn").Process(target=_watched, args=arguments)
    process.start()
    try:
        process.join()
    finally:
        process.terminate()
    if process.exitcode:
        raise RuntimeError(f"{target.__name__[1:]} ended with status {process.exitcode}")


def _watched(starter: int, target: Callable[..., None], *arguments: Any) -> None:
    """Run, but not longer than the process that started this one, however that ends."""

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    target(*arguments)


def _pair(order: Order) -> Any:
    from tamp_modifier.recovery.run import Pair

    torch.set_num_threads(order.threads)
    model: TrainableModel = MODELS[order.model](order.data)
    student, teacher = model.load_stored(), model.load_stored()
    if order.weights is not None:
        put(student, order.weights)
    samples = model.training_samples()
    processor = model.processor()  # type: ignore[attr-defined]
    return Pair(student, teacher, processor, samples, model.placeholders())


def _tell(order: Order, path: Path) -> None:
    from tamp_modifier.quiet import quiet
    from tamp_modifier.recovery.run import measure_costs

    with quiet():
        costs = measure_costs(_pair(order), order.settings, order.folder / "dry")
    shutil.rmtree(order.folder / "dry", ignore_errors=True)
    write_json(path, asdict(costs))


def _train(order: Order, told: Path) -> None:
    from tamp_modifier.quiet import quiet
    from tamp_modifier.recovery.run import recover_model

    def clock() -> float:
        return time.process_time() / order.threads

    shown, last = sys.stdout, [time.monotonic()]

    def step(phase: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > EVERY:
            last[0] = time.monotonic()
            print(f"  {phase}: {done} of {total}", file=shown, flush=True)

    with quiet():
        pair = _pair(order)
        done = recover_model(pair, order.settings, order.folder / "states", step, clock)
    end = done.curve[-1]
    _save(order.trained, _changed(pair.student, order))
    training = Training(
        curve=done.curve,
        rate=done.rate,
        trained=done.trained,
        zeros=done.zeros,
        tokens=int(end["tokens"]),
        seconds=round(end["seconds"], 1),
        cpu_seconds=round(time.process_time(), 1),
        threads=order.threads,
        peak=done.peak,
        told=json.loads(told.read_text())["peak"],
        ended=done.reason,
    )
    write_json(order.record, asdict(training))
    shutil.rmtree(order.folder / "states")


def _changed(student: Any, order: Order) -> dict[str, torch.Tensor]:
    """Return the weights that are not those of the dense model."""
    dense = dict(MODELS[order.model](order.data).load_stored().named_parameters())
    return {n: p for n, p in student.named_parameters() if not torch.equal(p, dense[n])}


def _save(path: Path, weights: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: w.detach().bfloat16().contiguous() for name, w in weights.items()}
    with whole_file(path) as temporary:
        save_file(stored, temporary)
