"""One row a point, from cells and speeds alone: what table and figure show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.pareto.formats import FORMATS, Format
from benchmarks.pareto.points import ORDER, POINTS
from benchmarks.pareto.sizes import SIZES, bits_a_weight
from benchmarks.pareto.speed import Speed
from benchmarks.quality.cells import DENSE, Cell, ResultError
from benchmarks.quality.statistics import Interval, Items, items_of, summarise
from benchmarks.quality.table import setting_label, setting_order


@dataclass(frozen=True)
class Quality:
    """What one model made of a point.

    Attributes:
        bits: a weight of the Linears, with scales.
        zeros: share of the stored weights that is zero, mean over seeds.
        kept: accuracy relative to dense bf16.
        nll: nats.
        seeds: calibration seeds.
    """

    bits: float
    zeros: float
    kept: Interval
    nll: Interval
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One point.

    Attributes:
        name: of its cells.
        setting: "0", percent or "N:M".
        stored: the format.
        quality: by model, where it was measured.
        speed: by model, where it was measured.
    """

    name: str
    setting: str
    stored: Format
    quality: Mapping[str, Quality]
    speed: Mapping[str, Speed]

    @property
    def bits(self) -> float:
        """Bits a weight: mean over the models on which quality was measured."""
        found = [quality.bits for quality in self.quality.values()]
        return sum(found) / len(found)

    @property
    def title(self) -> str:
        """For tables and figures."""
        if self.setting == "0":
            return f"dense, {self.stored.title}"
        method = "" if self.name.startswith("best_") else ", Wanda"
        return f"{setting_label(self.setting)}{method}, {self.stored.title}"


def format_of(method: str) -> Format:
    """Return how the weights of a method are stored.

    Raises:
        ResultError: no such point.
    """
    if method == DENSE:
        return FORMATS["bf16"]
    if method not in POINTS:
        raise ResultError(f"there is no point {method!r}; known are {', '.join(POINTS)}")
    return POINTS[method].format


def with_bf16(cells: Sequence[Cell], borrowed: Sequence[Cell]) -> list[Cell]:
    """Return cells, and those of pruned or dense bf16 models that they lack.

    Args:
        cells: of this benchmark.
        borrowed: of `benchmarks.quality`, measured in bf16; taken are those of the models, weights,
            items and calibration seeds of `cells`, by the name that the same point has here.

    Returns:
        All of them, in the order of their keys.
    """
    known = {cell.key for cell in cells}
    wanted = {(cell.model, cell.identity, cell.samples, cell.seed) for cell in cells}
    found = list(cells)
    for cell in borrowed:
        name = cell.method if cell.method == DENSE else f"{cell.method}_bf16"
        same = replace(cell, method=name)
        if (
            (name == DENSE or (name, cell.setting) in ORDER)
            and (cell.model, cell.identity, cell.samples, cell.seed) in wanted
            and same.key not in known
        ):
            found.append(same)
    return sorted(found, key=lambda cell: cell.key)


def rows(cells: Sequence[Cell], speeds: Sequence[Speed]) -> list[Row]:
    """Rows in the order of their bits a weight, largest first.

    Raises:
        ResultError: a model has no dense cell, or a cell is of no point.
    """
    grouped: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in cells:
        of_model = grouped.setdefault((cell.method, cell.setting), {})
        of_model.setdefault(cell.model, []).append(cell)
    dense = {model: items_of(found) for model, found in grouped.get((DENSE, "0"), {}).items()}
    missing = {cell.model for cell in cells} - set(dense)
    if missing:
        raise ResultError(f"there is no dense cell of {', '.join(sorted(missing))}")
    found = []
    for (method, setting), of_model in grouped.items():
        stored = format_of(method)
        quality = {m: _quality(members, dense[m], stored) for m, members in of_model.items()}
        speed = {s.model: s for s in speeds if (s.bits, s.setting) == (stored.bits, setting)}
        found.append(Row(method, setting, stored, quality, speed))
    return sorted(found, key=lambda row: (-row.bits, setting_order(row.setting), row.name))


def _quality(cells: Sequence[Cell], dense: Items, stored: Format) -> Quality:
    kept, nll = summarise(items_of(cells), dense)
    zeros = sum(cell.reached for cell in cells) / len(cells)
    bits = bits_a_weight(stored, zeros, SIZES[cells[0].model])
    return Quality(bits, zeros, kept, nll, tuple(cell.seed for cell in cells))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return indices of the points that no other beats: at most as large in both, less in one.

    Args:
        points: (size, loss) of each.
    """
    return [
        i
        for i, (size, loss) in enumerate(points)
        if not any(
            s <= size and other <= loss and (s, other) != (size, loss) for s, other in points
        )
    ]
