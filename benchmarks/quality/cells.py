"""One cell of the benchmark: one model pruned by one method, and its answer to every item.

A cell is one file of its own. A folder of results may hold cell files, or files of many cells
(`pack`), one cell a line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from tamp_modifier.files import write_json
from tamp_modifier.pruning.renamed import with_new_names

FORMAT = "tamp-quality"
FORMAT_VERSION = 2
"""Counts up whenever what is measured changes; results of another version are refused."""

DENSE = "dense"
"""The method that changes nothing. Names that begin with it and `_` prune nothing either, but
quantize (see `benchmarks.pareto`)."""

GROUPS = (2, 4, 8, 16, 32)
"""M of the patterns N:M: those that divide the rows of every model."""

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_LARGEST = 10**9
_Count = Annotated[int, Field(ge=0, le=_LARGEST)]
_Share = Annotated[float, Field(ge=0.0, le=1.0)]
# They become names of files and cells of tables.
_Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


class ResultError(ValueError):
    """Results that cannot be used, with the reason."""


@dataclass(frozen=True)
class TaskItems:
    """What a model made of the items of one task.

    Attributes:
        right: right answers, or right tokens, of every item.
        of: how many there were to get right; 1 for a question.
        nll: negative log-likelihood of every item, in thousandths of a nat per token.
        group: items of one number share a picture or sound, or are alike, whatever their task;
            empty where every item has its own.
        chance: share of right answers by guessing, mean over the items.
    """

    __pydantic_config__ = _STRICT

    right: list[_Count]
    of: list[_Count]
    nll: list[_Count]
    group: list[_Count]
    chance: float

    def __post_init__(self) -> None:
        if len({len(self.right), len(self.of), len(self.nll), len(self.group or self.nll)}) > 1:
            raise ValueError("lists of different lengths")
        pairs = list(zip(self.right, self.of, strict=True))
        if not pairs or any(n < 1 or not 0 <= right <= n for right, n in pairs):
            raise ValueError("no item, of below 1, or right outside of [0, of]")
        if not 0.0 <= self.chance <= 1.0:
            raise ValueError(f"chance must be in [0, 1], got {self.chance}")

    @classmethod
    def from_values(
        cls,
        right: Iterable[int],
        of: Iterable[int],
        nll: Iterable[float],
        group: Iterable[int],
        chance: float,
    ) -> TaskItems:
        """Round to what is stored.

        Raises:
            ValueError: lists of different lengths, or values that there cannot be.
        """
        nll = list(nll)
        if not all(map(math.isfinite, nll)):
            raise ValueError("the NLL of an answer is not finite")
        return cls(
            [int(r) for r in right],
            [int(n) for n in of],
            [round(1e3 * x) for x in nll],
            list(group),
            round(chance, 4),
        )


@dataclass(frozen=True)
class Conditions:
    """What decides the result of a cell, next to `FORMAT_VERSION`.

    A finished cell counts as done only if it was measured under the conditions of the present run,
    and the cells of one folder must agree in them. Weights count by their bytes, items by their
    content and the modifier by its settings, never by the place of a source file: modules may move
    without touching a result.

    Attributes:
        key: model, method, setting and calibration seed.
        identity: hash of weights and evaluation items, see `models.QualityModel.identity`.
        samples: number of calibration samples.
        recipe: the modifier and its fields.
    """

    key: tuple[str, str, str, int]
    identity: str
    samples: int
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """Conditions, provenance and result of one run.

    `machine`, `date`, `versions` and `code` are provenance: recorded, and never compared. What is
    compared are the `Conditions`.

    Attributes:
        model: name of the model.
        method: name of the method, or "dense".
        setting: sparsity in percent, as "50", or "N:M"; "0" for the dense model.
        seed: calibration seed.
        identity: hash of weights and evaluation items, see `models.QualityModel.identity`.
        samples: number of calibration samples.
        recipe: the modifier and its fields.
        reached: share of zeros among the target Linears.
        cpu_seconds: processor time of pruning, with the calibration.
        machine: processor.
        date: day of the run, ISO 8601.
        versions: package -> version.
        code: hash of the package's sources and their paths, empty where it is not known; it names
            the tree that was measured, and every edit or move changes it.
        tasks: task -> its items.
    """

    model: _Name
    method: _Name
    setting: str
    seed: _Count
    identity: str
    samples: Annotated[int, Field(ge=1, le=_LARGEST)]
    recipe: dict[str, Any]
    reached: _Share
    cpu_seconds: Annotated[float, Field(ge=0.0)]
    machine: str
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    versions: dict[str, str]
    code: str
    tasks: Annotated[dict[str, TaskItems], Field(min_length=1)]

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        prunes = not (self.method == DENSE or self.method.startswith(f"{DENSE}_"))
        if prunes == (self.setting == "0"):
            raise ValueError(f"setting of {self.method!r} cannot be {self.setting!r}")
        if prunes:
            parse_setting(self.setting)

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells the cell from all others."""
        return (self.model, self.method, self.setting, self.seed)


def parse_setting(setting: str) -> tuple[float, str]:
    """Sparsity and mask structure of "50" (percent) or "2:4".

    Raises:
        ValueError: something else.
    """
    if setting not in _SETTINGS:
        raise ValueError(
            "setting must be a sparsity in percent (1 to 99) or N:M with N below M and M one of "
            f"{', '.join(map(str, GROUPS))}, got {setting!r}"
        )
    return _SETTINGS[setting]


_SETTINGS = {str(percent): (percent / 100, "0:0") for percent in range(1, 100)} | {
    f"{prune}:{group}": (prune / group, f"{prune}:{group}")
    for group in GROUPS
    for prune in range(1, group)
}


def path_of(folder: Path, key: tuple[str, str, str, int]) -> Path:
    """Where a cell lies."""
    model, method, setting, seed = key
    return folder / model / f"{method}_{setting.replace(':', 'of')}_{seed}.json"


def save(folder: Path, cell: Cell) -> Path:
    """Write a new cell; one that is there already is never overwritten.

    Raises:
        ResultError: there is a file already.
    """
    return write_new(path_of(folder, cell.key), FORMAT, FORMAT_VERSION, asdict(cell))


def write_new(path: Path, kind: str, version: int, values: Mapping[str, Any]) -> Path:
    """Write a new results file; one that is there already is never overwritten.

    Args:
        path: of the file.
        kind: its `format`.
        version: its `format_version`.
        values: what else it holds.

    Raises:
        ResultError: there is a file already.
    """
    if path.exists():
        raise ResultError(f"{path} exists already and is not overwritten")
    return write_json(path, {"format": kind, "format_version": version, **values})


def read(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Return what a results file holds besides its format and version.

    Args:
        path: of the file.
        kind: the `format` that it must have.
        version: the `format_version` that it must have.

    Raises:
        ResultError: not a results file, or one of another format or version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(f"{path} cannot be read as results: {error}") from None
    if not isinstance(data, dict) or data.pop("format", None) != kind:
        raise ResultError(f"{path} is not a results file of this benchmark")
    found = data.pop("format_version", None)
    if type(found) is not int or found != version:
        raise ResultError(
            f"{path} has results of version {found!r}, this is version {version}; "
            "move it away or give another --output"
        )
    return data


def load(path: Path) -> list[Cell]:
    """Return the cells of one file: a cell file, or one that `pack` wrote.

    Raises:
        ResultError: not a results file, or one of another version.
    """
    data = read(path, FORMAT, FORMAT_VERSION)
    if "cells" in data and (len(data) > 1 or not data["cells"]):
        raise ResultError(f"{path} must have cells and nothing else, and at least one")
    try:
        # As JSON: objects of Python would have to be cells already.
        cells = _CELLS.validate_json(json.dumps(data.get("cells", [data])))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = f"{path} has a cell that cannot be used: {where}: {first['msg']}"
        raise ResultError(message) from None
    # Cells that release 0.1 measured name its fields.
    return [replace(cell, recipe=with_new_names(cell.recipe)) for cell in cells]


_CELLS = TypeAdapter(list[Cell])


def load_folder(folder: Path) -> list[Cell]:
    """All cells in a folder, sorted by key.

    Raises:
        ResultError: no cell, a file that cannot be used, the same cell twice, cells of one model
            that were not measured on the same weights and items, or seeds with other recipes.
    """
    cells = [cell for path in sorted(folder.rglob("*.json")) for cell in load(path)]
    if not cells:
        raise ResultError(f"there are no results in {folder}")
    seen: dict[tuple[str, str, str, int], Cell] = {}
    first: dict[str, Cell] = {}
    recipes: dict[tuple[str, str, str], Cell] = {}
    for cell in cells:
        if cell.key in seen:
            raise ResultError(f"{folder} has the cell {' '.join(map(str, cell.key))} twice")
        seen[cell.key] = cell
        same = recipes.setdefault((cell.model, cell.method, cell.setting), cell)
        if cell.recipe != same.recipe:
            raise ResultError(
                f"{folder} mixes recipes of {cell.model} {cell.method} {cell.setting}: "
                f"seeds {same.seed} and {cell.seed}"
            )
        other = first.setdefault(cell.model, cell)
        if (cell.identity, cell.samples) != (other.identity, other.samples):
            raise ResultError(
                f"{folder} mixes results of {cell.model} with other weights, items or samples: "
                f"{cell.method} {cell.setting} seed {cell.seed} and "
                f"{other.method} {other.setting} seed {other.seed}"
            )
    return [seen[key] for key in sorted(seen)]


def check_same(path: Path, wanted: Conditions) -> None:
    """Refuse a finished cell that was not measured as it would be now.

    Args:
        path: file of the cell.
        wanted: what would be measured now.

    Raises:
        ResultError: not one cell, another one, or other weights, items, samples or recipe.
    """
    found = load(path)
    if [cell.key for cell in found] != [wanted.key]:
        name = " ".join(map(str, wanted.key))
        raise ResultError(f"{path} must hold the cell {name} and no other")
    (cell,) = found
    for what, was, now in (
        ("model weights or items", cell.identity, wanted.identity),
        ("numbers of calibration samples", cell.samples, wanted.samples),
        ("recipe", cell.recipe, wanted.recipe),
    ):
        if was != now:
            raise ResultError(
                f"{path} was measured with other {what} ({was}, now {now}); move it away or "
                "give another --output"
            )


def pack(cells: Iterable[Cell], folder: Path) -> list[Path]:
    """Write all cells into one file a model and calibration seed, one cell a line.

    No file is written where one is refused.

    Raises:
        ResultError: a file is there that has cells which the new one would not have, or would have
            otherwise.
    """
    by_file: dict[str, list[Cell]] = {}
    for cell in cells:
        by_file.setdefault(f"{cell.model}-{cell.seed}", []).append(cell)
    for name, members in by_file.items():
        path = folder / f"{name}.json"
        new = {cell.key: cell for cell in members}
        before = load(path) if path.exists() else []
        for what, keys in (
            ("that are not packed now", [c.key for c in before if c.key not in new]),
            ("that are others now", [c.key for c in before if new.get(c.key, c) != c]),
        ):
            if keys:
                raise ResultError(
                    f"{path} has {len(keys)} cells {what}, such as {' '.join(map(str, min(keys)))};"
                    " it is not overwritten, move it away first"
                )
    folder.mkdir(parents=True, exist_ok=True)
    parts = {folder / f"{name}.part": folder / f"{name}.json" for name in by_file}
    for part, members in zip(parts, by_file.values(), strict=True):
        lines = ",\n".join(json.dumps(asdict(cell), separators=(",", ":")) for cell in members)
        head = f'{{"format": "{FORMAT}", "format_version": {FORMAT_VERSION}, "cells": [\n'
        part.write_text(f"{head}{lines}\n]}}\n", encoding="utf-8")
    for part, path in parts.items():
        part.replace(path)
    return list(parts.values())
