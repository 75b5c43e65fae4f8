"""The figure: loss and speed against bits a weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.pareto.rows import Row, front
from benchmarks.pareto.sizes import SIZES
from benchmarks.pareto.speed import MODELS
from benchmarks.quality.table import model_title, setting_label
from tamp_modifier.report.figures import COLOURS, MARKERS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPEEDS = {"decode": (1, "decode, batch 1"), "prefill": (16, "prefill, 16 x 64 tokens")}
"""What is drawn of a speed: attribute -> batch size, label."""
NEAR = (0.5, 0.035)
"""Of points that are so near in the logarithms of bits (base 2) and NLL the best has a label."""


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Draw all rows into one file."""
    return save_figure(_figure(rows), path)


def _figure(rows: Sequence[Row]) -> Figure:
    quality = [m for m in SIZES if any(m in row.quality for row in rows)]
    speed = [m for m in MODELS if any(_drawn(row, m) for row in rows)]
    columns = max(len(quality), len(SPEEDS) if speed else 0, 1)
    lines = bool(quality) + len(speed)
    figure = new_figure(5.5 * columns, 0.6 + 4.0 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    names = list(dict.fromkeys(row.stored.name for row in rows))
    look = {
        name: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[(i + i // len(COLOURS)) % len(MARKERS)],
            "fillstyle": "full" if i < len(COLOURS) else "none",
        }
        for i, name in enumerate(names)
    }
    for axis, model in zip(grid[0], quality, strict=False):
        _draw_quality(axis, [row for row in rows if model in row.quality], model, look)
    for place, model in enumerate(speed, bool(quality)):
        for axis, kind in zip(grid[place], SPEEDS, strict=False):
            _draw_speed(axis, [row for row in rows if _drawn(row, model)], model, kind, look)
    for axis in grid.flat:
        if not axis.has_data():
            axis.set_visible(False)
    titles = {row.stored.name: row.stored.title for row in rows}
    handles: dict[str, Any] = {}
    for axis in grid.flat:
        found, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    shown = [name for name in names if name in handles]
    figure.legend(
        [handles[name] for name in shown],
        [titles[name] for name in shown],
        loc="outside lower center",
        ncols=2 * columns,
        frameon=False,
    )
    return figure


def _drawn(row: Row, model: str) -> bool:
    return model in row.speed and not row.speed[model].error


def _draw_quality(axis: Any, rows: Sequence[Row], model: str, look: dict[str, Any]) -> None:
    points = [(row.quality[model].bits, row.quality[model].nll) for row in rows]
    for row, (bits, nll) in zip(rows, points, strict=True):
        # The value itself may lie outside of its interval.
        error = [[max(nll.value - nll.low, 0.0)], [max(nll.high - nll.value, 0.0)]]
        axis.errorbar(
            bits, nll.value, error, label=row.stored.name, elinewidth=0.8, **look[row.stored.name]
        )
    for row, place in _labelled(rows, [(bits, nll.value) for bits, nll in points]):
        axis.annotate(_label(row), place, (4, 4), textcoords="offset points", size=7)
    best = sorted(points[i] for i in front([(bits, nll.value) for bits, nll in points]))
    axis.plot([b for b, _ in best], [n.value for _, n in best], color="grey", linewidth=0.8)
    axis.set_yscale("log")  # a destroyed model would hide what is between the others
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.set_ylabel("NLL, nats")
    axis.set_xscale("log", base=2)  # what is decided lies between 2 and 8 bits
    axis.xaxis.set_major_formatter("{x:g}")
    _finish(axis, model_title(model))


def _draw_speed(
    axis: Any, rows: Sequence[Row], model: str, kind: str, look: dict[str, Any]
) -> None:
    batch, label = SPEEDS[kind]
    seen = set()
    for row in rows:
        found = row.speed[model]
        # Points that differ only in how they were quantized have the same speed.
        if found.path in seen:
            continue
        seen.add(found.path)
        value = getattr(found, kind)[batch]
        axis.plot(row.bits, value, linestyle="none", label=row.stored.name, **look[row.stored.name])
        axis.annotate(_label(row), (row.bits, value), (4, 4), textcoords="offset points", size=7)
    axis.set_ylabel(f"{label}, tokens/s")
    _finish(axis, MODELS[model].title)
    axis.set_ylim(bottom=0)


def _labelled(
    rows: Sequence[Row], points: Sequence[tuple[float, float]]
) -> list[tuple[Row, tuple[float, float]]]:
    """Rows whose label does not cover that of another, the best first, with their points."""
    found: list[tuple[Row, tuple[float, float]]] = []
    for row, (bits, nll) in sorted(zip(rows, points, strict=True), key=lambda pair: pair[1][1]):
        near = [
            other
            for _, other in found
            if abs(math.log2(bits / other[0])) < NEAR[0] and abs(math.log(nll / other[1])) < NEAR[1]
        ]
        if not near:
            found.append((row, (bits, nll)))
    return found


def _label(row: Row) -> str:
    wanda = " Wanda" if row.name.startswith("wanda_") else ""
    return "dense" if row.setting == "0" else f"{setting_label(row.setting)}{wanda}"


def _finish(axis: Any, title: str) -> None:
    axis.set_xlabel("bits a weight of the Linears, with scales")
    axis.set_title(title, fontsize=10)
    axis.margins(x=0.12, y=0.08)  # room for the labels
    axis.grid(alpha=0.3)
