"""Result files: a cell of `benchmarks.quality`, and how it was trained."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from benchmarks.quality.cells import Cell, Conditions, ResultError, path_of, read, write_new

FORMAT = "tamp-recovery"
FORMAT_VERSION = 1
"""Counts up whenever what is measured changes; results of another version are refused."""

_Number = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Training:
    """What a training did; recorded, and never compared.

    Attributes:
        curve: of each comparison the seconds, tokens and samples of training before it, and the
            held-out loss in nats.
        rate: highest learning rate.
        trained: number of weights that were trained.
        zeros: weights that were zero before and after.
        tokens: that were read.
        seconds: processor time of training over threads, comparisons left out: what a clock shows
            where nothing else runs. Minutes of a way are of this time.
        cpu_seconds: processor time of the whole process, with all that is not training.
        threads: of torch.
        peak: largest memory of the process, in bytes.
        told: the same, as a dry run told before.
        ended: why it ended.
    """

    curve: list[dict[str, _Number]]
    rate: _Number
    trained: int
    zeros: int
    tokens: int
    seconds: _Number
    cpu_seconds: _Number
    threads: int
    peak: int
    told: int
    ended: str

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Result:
    """A cell and its training; None where nothing was trained."""

    cell: Cell
    training: Training | None

    __pydantic_config__ = ConfigDict(extra="forbid")


_RESULTS = TypeAdapter(list[Result])


def save(folder: Path, result: Result) -> Path:
    """Write a new result; one that is there already is never overwritten.

    Raises:
        ResultError: there is a file already.
    """
    path = path_of(folder, result.cell.key)
    return write_new(path, FORMAT, FORMAT_VERSION, asdict(result))


def load(path: Path) -> list[Result]:
    """Return the results of one file: one, or many that `pack` wrote.

    Raises:
        ResultError: not a results file, or one of another version.
    """
    data = read(path, FORMAT, FORMAT_VERSION)
    try:
        return _RESULTS.validate_json(json.dumps(data.get("results", [data])))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ResultError(f"{path} cannot be used: {where}: {first['msg']}") from None


def load_folder(folder: Path) -> list[Result]:
    """All results in a folder, sorted by key.

    Raises:
        ResultError: none, a file that cannot be used, the same cell twice, or results of one model
            with other weights or items.
    """
    found: dict[Any, Result] = {}
    identity: dict[str, str] = {}
    for result in (r for path in sorted(folder.rglob("*.json")) for r in load(path)):
        cell = result.cell
        name = " ".join(map(str, cell.key))
        if cell.key in found:
            raise ResultError(f"{folder} has the cell {name} twice")
        if identity.setdefault(cell.model, cell.identity) != cell.identity:
            raise ResultError(f"{folder} mixes results of other weights or items, such as {name}")
        found[cell.key] = result
    if not found:
        raise ResultError(f"there are no results in {folder}")
    return [found[key] for key in sorted(found)]


def check_same(path: Path, wanted: Conditions) -> None:
    """Refuse a finished result that was not measured as it would be now.

    Raises:
        ResultError: another cell, or other weights, items, samples or recipe.
    """
    for result in load(path):
        cell = result.cell
        found = Conditions(cell.key, cell.identity, cell.samples, cell.recipe)
        if found != wanted:
            raise ResultError(
                f"{path} was measured otherwise ({found}, now {wanted}); move it away or give "
                "another --output"
            )


def pack(results: Iterable[Result], folder: Path) -> list[Path]:
    """Write all results into one file a model, one result a line.

    Raises:
        ResultError: a file is there that has results which the new one would not have.
    """
    by_model: dict[str, list[Result]] = {}
    for result in results:
        by_model.setdefault(result.cell.model, []).append(result)
    for model, members in by_model.items():
        path = folder / f"{model}.json"
        lost = [r for r in (load(path) if path.exists() else []) if r not in members]
        if lost:
            raise ResultError(
                f"{path} has {len(lost)} results that the new file would not have, such as "
                f"{' '.join(map(str, lost[0].cell.key))}; it is not overwritten, move it away first"
            )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for model, members in by_model.items():
        lines = ",\n".join(json.dumps(asdict(r), separators=(",", ":")) for r in members)
        head = f'{{"format": "{FORMAT}", "format_version": {FORMAT_VERSION}, "results": [\n'
        path = folder / f"{model}.json"
        part = path.with_suffix(".part")
        part.write_text(f"{head}{lines}\n]}}\n", encoding="utf-8")
        written.append(part.replace(path))
    return written
