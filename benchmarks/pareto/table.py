"""The table: one row a point."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.pareto.rows import Row, front
from benchmarks.pareto.sizes import SIZES
from benchmarks.pareto.speed import BATCHES, MODELS, Speed
from benchmarks.quality.statistics import Interval
from benchmarks.quality.table import as_markdown, model_title


def markdown(rows: Sequence[Row]) -> str:
    """Return the table; bold NLL is on the front of bits a weight and NLL of its model."""
    quality = sorted({model for row in rows for model in row.quality}, key=list(SIZES).index)
    speed = [model for model in MODELS if any(model in row.speed for row in rows)]
    on_front = {model: _front(rows, model) for model in quality}
    head = ["point", "bits a weight"]
    for model in quality:
        head += [f"{model_title(model)}: MiB", "retained", "NLL"]
    for model in speed:
        batches = ", ".join(map(str, BATCHES))
        head += [f"{MODELS[model].title}: MiB", f"decode, batch {batches}", "prefill"]
    lines = []
    for row in rows:
        line = [row.title, f"{row.bits:.2f}"]
        for model in quality:
            line += _quality(row, model, row.name + row.setting in on_front[model])
        for model in speed:
            line += _speed(row.speed.get(model))
        lines.append(line)
    return "\n".join(as_markdown(head, lines)).rstrip() + "\n"


def _front(rows: Sequence[Row], model: str) -> set[str]:
    mine = [row for row in rows if model in row.quality]
    points = [(row.quality[model].bits, row.quality[model].nll.value) for row in mine]
    return {mine[i].name + mine[i].setting for i in front(points)}


def _quality(row: Row, model: str, on_front: bool) -> list[str]:
    found = row.quality.get(model)
    if found is None:
        return ["", "", ""]
    nll = f"{found.nll.value:.3f}"
    return [
        f"{SIZES[model].mib(found.bits):.0f}",
        f"{100 * found.kept.value:.1f} % {_bounds(found.kept, 100, 1)}",
        f"{f'**{nll}**' if on_front else nll} {_bounds(found.nll, 1, 3)}",
    ]


def _bounds(interval: Interval, scale: float, digits: int) -> str:
    return f"({scale * interval.low:.{digits}f} to {scale * interval.high:.{digits}f})"


def _speed(found: Speed | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    if found.error:
        return ["", found.error, ""]
    decode = " / ".join(f"{found.decode[batch]:.1f}" for batch in BATCHES)
    return [f"{found.mib:.0f}", decode, f"{found.prefill[max(BATCHES)]:.0f}"]
