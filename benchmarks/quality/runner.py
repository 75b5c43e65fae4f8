"""Run the cells that are missing, one after the other, and write each as soon as it is done."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from benchmarks.quality.cells import (
    DENSE,
    Cell,
    Conditions,
    ResultError,
    TaskItems,
    check_same,
    load_folder,
    parse_setting,
    path_of,
    save,
)
from benchmarks.quality.job import Job
from benchmarks.quality.methods import METHODS, applies
from benchmarks.quality.models import QualityModel
from tamp_modifier.files import probe

PACKAGES = ("torch", "transformers", "llmcompressor", "tamp-modifier")

Plan = tuple[QualityModel, str, str, int]
"""Model, method, setting, calibration seed."""


class Steps(Protocol):
    """What a method does to a model, such as `methods.Method`."""

    def recipe(self, job: Job) -> dict[str, Any]:
        """Return what decides its result."""

    def run(self, job: Job) -> None:
        """Change the job's model in place."""


def plan(
    models: Iterable[QualityModel],
    methods: Sequence[str],
    settings: Sequence[str],
    seeds: Sequence[int],
    quick: bool = False,
) -> list[Plan]:
    """All cells, in an order in which every seed is complete before the next one begins.

    Args:
        models: the models.
        methods: names of `METHODS`.
        settings: of all models; empty takes those of each.
        seeds: calibration seeds.
        quick: take the quick settings of each model.

    Raises:
        ValueError: a setting or seed that there cannot be for these models, or settings in which
            none of the methods is one of its own.
    """
    for setting in settings:
        parse_setting(setting)
    if settings and not any(applies(METHODS[m], s) for m in methods for s in settings):
        raise ValueError(
            f"with {', '.join(settings)} every Linear has the same sparsity, so "
            f"{', '.join(methods)} would be their scores alone"
        )
    if min(seeds) < 0:
        raise ValueError(f"seeds must be >= 0, got {min(seeds)}")
    models = list(models)
    for model in models:
        if model.only_seeds and not set(seeds) <= set(model.only_seeds):
            raise ValueError(
                f"seeds of {model.name} must be of {', '.join(map(str, model.only_seeds))}, whose "
                f"questions are not asked again, got {' '.join(map(str, seeds))}"
            )
    cells: list[Plan] = []
    for model in models:
        cells.append((model, DENSE, "0", 0))
        mine = settings or (model.quick if quick else model.settings)
        cells += [
            (model, name, setting, seed)
            for seed in seeds
            for setting in mine
            for name in methods
            if applies(METHODS[name], setting)
        ]
    return cells


def run(
    cells: Sequence[Plan],
    folder: Path,
    say: Callable[[str], None],
    methods: Mapping[str, Steps] = METHODS,
) -> None:
    """Run the cells that have no file yet. All files that are there are checked before any work.

    Args:
        cells: what to run, in this order.
        folder: of the cell files.
        say: is told of every cell that is done.
        methods: the methods that the cells name, besides the dense model.

    Raises:
        ResultError: a file of another version, other weights or another recipe, or packed ones.
        FileNotFoundError: weights or data of a model are missing.
        OSError: nothing can be written to the folder.
    """
    for model in dict.fromkeys(model for model, *_ in cells):
        model.check()
        if any(folder.glob(f"{model.name}-*.json")):
            raise ResultError(f"{folder} has packed results; cells go into another --output")
        probe(folder / model.name)
    missing = []
    for model, method, setting, seed in cells:
        key = (model.name, method, setting, seed)
        path = path_of(folder, key)
        if path.exists():
            check_same(path, conditions(model, method, setting, seed, methods))
        else:
            missing.append((model, method, setting, seed))
    if any(folder.rglob("*.json")):
        load_folder(folder)  # what the tables would refuse in the end
    say(f"{len(cells)} cells, {len(cells) - len(missing)} are done")
    for number, (model, method, setting, seed) in enumerate(missing, 1):
        path = path_of(folder, (model.name, method, setting, seed))
        if path.exists():
            continue  # another process has been faster
        try:
            cell = measure(model, method, setting, seed, methods)
        except ValueError as error:
            raise ValueError(f"{model.name} {method} {setting} seed {seed}: {error}") from error
        if path.exists():
            say(f"{path} came from another process meanwhile and stays")
            continue
        save(folder, cell)
        right = sum(sum(t.right) for t in cell.tasks.values())
        of = sum(sum(t.of) for t in cell.tasks.values())
        nll = sum(sum(t.nll) / len(t.nll) for t in cell.tasks.values()) / len(cell.tasks) / 1e3
        say(
            f"{number}/{len(missing)} {model.name} {method} {setting} seed {seed}: "
            f"{100 * right / of:.1f} % right, NLL {nll:.3f}, {100 * cell.reached:.2f} % zeros, "
            f"pruned in {cell.cpu_seconds:.1f} s"
        )


def conditions(
    model: QualityModel,
    method: str,
    setting: str,
    seed: int,
    methods: Mapping[str, Steps] = METHODS,
) -> Conditions:
    """Return what decides the result of a cell that would be measured now."""
    recipe = {} if method == DENSE else methods[method].recipe(_job(model, setting, [], None))
    return Conditions((model.name, method, setting, seed), model.identity, model.samples, recipe)


def measure(
    model: QualityModel,
    method: str,
    setting: str,
    seed: int,
    methods: Mapping[str, Steps] = METHODS,
) -> Cell:
    """Prune a fresh model and ask it everything."""
    from tamp_modifier.quiet import quiet

    with quiet():
        decided = conditions(model, method, setting, seed, methods)
        pruned = model.load()
        seconds = 0.0
        if method != DENSE:
            job = _job(model, setting, model.batches(seed, model.samples), pruned)
            begin = time.process_time()
            methods[method].run(job)
            seconds = time.process_time() - begin
        tasks = model.evaluate(pruned)
    return cell_of(model, decided, pruned, seconds, tasks)


def cell_of(
    model: QualityModel,
    decided: Conditions,
    pruned: Any,
    seconds: float,
    tasks: dict[str, TaskItems],
) -> Cell:
    """Return the cell of a model that has been asked, with what tells where it comes from.

    Args:
        model: where it comes from.
        decided: what decided the result.
        pruned: the model itself, whose zeros are counted.
        seconds: processor time of pruning.
        tasks: its answers.
    """
    weights = [linear.weight for linear in model.linears(pruned).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    name, method, setting, seed = decided.key
    return Cell(
        model=name,
        method=method,
        setting=setting,
        seed=seed,
        identity=decided.identity,
        samples=decided.samples,
        recipe=dict(decided.recipe),
        reached=round(zeros / sum(weight.numel() for weight in weights), 6),
        cpu_seconds=round(seconds, 1),
        machine=processor_name(),
        date=datetime.now(timezone.utc).date().isoformat(),
        versions={name: version(name) for name in PACKAGES},
        code=sources_hash(),
        tasks=tasks,
    )


def prune(job: Job, method: str, more: Mapping[str, Any] | None = None) -> None:
    """Prune the model of a job in place.

    Args:
        job: what is pruned, and how much.
        method: a name of `METHODS`.
        more: further fields of its modifier.
    """
    METHODS[method].run(job, more)


def _job(model: QualityModel, setting: str, batches: list[Any], dense: Any) -> Job:
    sparsity, structure = parse_setting(setting) if setting != "0" else (0.0, "0:0")
    return Job(model, sparsity, structure, batches, dense)


@cache
def sources_hash() -> str:
    """Short hash of the package's Python sources and their paths: provenance, see `Cell`."""
    import tamp_modifier

    digest = hashlib.sha256()
    folder = Path(tamp_modifier.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def processor_name() -> str:
    """Return what the processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
