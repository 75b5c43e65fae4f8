"""Figures of the results: retention against sparsity, and tasks one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.quality.cells import DENSE, Cell
from benchmarks.quality.methods import BEFORE, METHODS, RIVALS
from benchmarks.quality.statistics import Interval, items_of
from benchmarks.quality.table import (
    OURS,
    Block,
    blocks,
    model_title,
    setting_label,
    setting_order,
    title_of,
)
from tamp_modifier.report.figures import COLOURS, MARKERS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = (DENSE, "wanda", "sparsegpt", "tamp", OURS)
OVERVIEW = (OURS, "sparsegpt", "tamp", "wanda")
MAIN = (OURS, "wanda", "sparsegpt", "tamp", "magnitude", BEFORE)
"""What most readers ask for, each in a colour of its own; all methods are in a second figure."""
DODGE = 0.5
"""How far the methods of one setting are spread; settings are 1 apart."""


def draw(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write the figures.

    ``quality.png`` has the main methods, ``quality-all.png`` all of them; ``retained-MODEL.png``
    and ``quality-tasks-MODEL.png`` are of each model.
    """
    found = blocks(cells)
    paths = [
        save_figure(retention_figure(found, MAIN), folder / "quality.png"),
        save_figure(retention_figure(found), folder / "quality-all.png"),
    ]
    for model in dict.fromkeys(block.model for block in found):
        mine = [cell for cell in cells if cell.model == model]
        overview = overview_figure([block for block in found if block.model == model])
        if overview is not None:
            paths.append(save_figure(overview, folder / f"retained-{model}.png"))
        figure = task_figure(mine)
        if figure is not None:
            paths.append(save_figure(figure, folder / f"quality-tasks-{model}.png"))
    return paths


def retention_figure(found: Sequence[Block], only: Sequence[str] = ()) -> Figure:
    """Accuracy and NLL against the setting, one row of axes a model.

    Bars are the 95 % intervals of the preset and of those that it is tested against.

    Args:
        found: the results.
        only: methods that are drawn, each in a colour of its own if there are six at most; all if
            empty.
    """
    from matplotlib.ticker import LogLocator

    models = list(dict.fromkeys(block.model for block in found))
    figure = new_figure(11, 0.8 + 3.6 * len(models))
    grid = figure.subplots(len(models), 2, squeeze=False)
    labels: dict[str, Any] = {}
    # A method has the same colour in all rows, and those compared with have one of their own.
    names = {row.method for block in found for row in block.rows}
    names = {name for name in names if not only or name in only}
    order = list(only or dict.fromkeys([*RIVALS, *METHODS, *sorted(names)]))
    for axes, model in zip(grid, models, strict=True):
        mine = [block for block in found if block.model == model and block.setting != "0"]
        (dense,) = [
            block.rows[0] for block in found if block.model == model and block.setting == "0"
        ]
        settings = [block.setting for block in mine]
        methods = list(dict.fromkeys(row.method for block in mine for row in block.rows))
        methods = [method for method in methods if method in order]
        for place, method in enumerate(methods):
            index = order.index(method)
            shift = DODGE * ((place + 0.5) / len(methods) - 0.5)
            with_interval = method in (OURS, *RIVALS)
            points = [
                (position, row)
                for position, block in enumerate(mine)
                for row in block.rows
                if row.method == method
            ]
            style: dict[str, Any] = {
                "label": title_of(method),
                "color": "black" if method == OURS else COLOURS[index % 6],
                "marker": "*" if method == OURS else MARKERS[index % 7],
                "markersize": 10 if method == OURS else 4,
                "linewidth": 2.0 if method == OURS else 0.8,
                "linestyle": "-" if method == OURS or index < 6 else "--",
                "elinewidth": 1.0,
                "zorder": 3 if method == OURS else 2,
            }
            # Patterns are points of their own, no end of a line.
            for pattern, line in ((False, style["linestyle"]), (True, "none")):
                part = [p for p in points if (":" in mine[p[0]].setting) == pattern]
                if part:
                    x = [position + shift for position, _ in part]
                    values = ([row.kept for _, row in part], [row.nll for _, row in part])
                    for axis, found_here, scale in zip(axes, values, (100, 1), strict=True):
                        look = {**style, "linestyle": line}
                        drawn = _draw_points(axis, x, found_here, scale, with_interval, look)
                        labels.setdefault(title_of(method), drawn)
        axes[0].axhline(100, color="grey", linestyle=":", linewidth=1)
        axes[1].axhline(dense.nll.value, color="grey", linestyle=":", linewidth=1)
        axes[0].set_ylabel("accuracy relative to dense, %")
        axes[1].set_ylabel("NLL, nats")
        axes[1].set_yscale("log")  # a destroyed model would hide what is between the others
        axes[1].yaxis.set_major_formatter("{x:g}")
        axes[1].yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axes[1].yaxis.set_minor_formatter("{x:g}")
        for axis in axes:
            axis.set_title(model_title(model), fontsize=10)
            axis.set_xticks(range(len(settings)), [setting_label(s) for s in settings])
            axis.set_xlabel("pruned")
            axis.grid(alpha=0.3)
    titles = map(title_of, [*METHODS, *sorted(names)])
    shown = [title for title in dict.fromkeys(titles) if title in labels]
    handles = [labels[title] for title in shown]
    figure.legend(handles, shown, loc="outside right upper", frameon=False)
    return figure


def overview_figure(found: Sequence[Block]) -> Figure | None:
    """Retained accuracy of one model at each sparsity: the preset and three that are well known.

    None where the preset was not run without a pattern. Bars are the 95 % intervals.
    """
    mine = [b for b in found if b.setting != "0" and ":" not in b.setting]
    mine = [b for b in mine if any(row.method == OURS for row in b.rows)]
    if not mine:
        return None
    figure = new_figure(6.4, 3.4)
    axes = figure.add_subplot()
    for index, method in enumerate(OVERVIEW):
        shift = 0.05 * (index - (len(OVERVIEW) - 1) / 2)
        points = [(x + shift, r) for x, b in enumerate(mine) for r in b.rows if r.method == method]
        style = {
            "label": title_of(method),
            "color": "black" if method == OURS else COLOURS[MAIN.index(method)],
            "marker": MARKERS[MAIN.index(method)],
            "linewidth": 2.2 if method == OURS else 1.2,
            "elinewidth": 1.0,
        }
        _draw_points(axes, [x for x, _ in points], [r.kept for _, r in points], 100, True, style)
    axes.axhline(100, color="grey", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(mine)), [setting_label(block.setting) for block in mine])
    axes.set_xlabel("pruned")
    axes.set_ylabel("accuracy relative to dense, %")
    axes.set_ylim(bottom=0)
    axes.set_title(model_title(found[0].model), fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", frameon=False)
    return figure


def _draw_points(
    axis: Any,
    x: Sequence[float],
    values: Sequence[Interval],
    scale: int,
    with_interval: bool,
    style: Mapping[str, Any],
) -> Any:
    """Values times `scale`, if wanted with their intervals."""
    # The value itself may lie outside of its interval.
    low = [max(scale * (v.value - v.low), 0.0) for v in values]
    high = [max(scale * (v.high - v.value), 0.0) for v in values]
    error = [low, high] if with_interval else None
    return axis.errorbar(x, [scale * v.value for v in values], error, **style)


def task_figure(cells: Sequence[Cell]) -> Figure | None:
    """Accuracy of every task at the highest sparsity, some methods; None where there is none."""
    settings = {cell.setting for cell in cells if cell.method == OURS and ":" not in cell.setting}
    if not settings:
        return None
    setting = max(settings, key=setting_order)
    shown = {
        method: [cell for cell in cells if cell.method == method and cell.setting in (setting, "0")]
        for method in BARS
    }
    shown = {method: members for method, members in shown.items() if members}
    tasks = list(cells[0].tasks)
    figure = new_figure(2.0 + 0.55 * max(len(tasks), 6), 3.6)
    axes = figure.add_subplot()
    width = 0.8 / len(shown)
    for index, (method, members) in enumerate(shown.items()):
        items = items_of(members)
        axes.bar(
            [x + width * (index - (len(shown) - 1) / 2) for x in range(len(tasks))],
            [100 * float(items.right[task].mean()) for task in tasks],
            width,
            label=title_of(method),
            color="grey" if method == DENSE else COLOURS[index % len(COLOURS)],
        )
    chance = [100 * cells[0].tasks[task].chance for task in tasks]
    if any(chance):
        x = np.arange(len(tasks))
        axes.hlines(chance, x - 0.42, x + 0.42, "black", linewidth=1.2, label="by guessing")
    axes.set_xticks(range(len(tasks)), tasks, rotation=40, ha="right")
    axes.set_ylabel("right, %")
    axes.set_title(f"{setting_label(setting)} pruned", fontsize=10)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", frameon=False)
    return figure
