"""The figure: how NLL and the held-out divergence fall with the time of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quality.statistics import items_of, summarise
from benchmarks.quality.table import model_title, setting_label, setting_order
from benchmarks.recovery.models import MODELS
from benchmarks.recovery.results import Result
from benchmarks.recovery.table import dense_of
from tamp_modifier.report.figures import COLOURS, MARKERS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(results: Sequence[Result], path: Path) -> Path:
    """Draw all models into one file."""
    return save_figure(_figure(results), path)


def _figure(results: Sequence[Result]) -> Figure:
    models = [name for name in MODELS if any(r.cell.model == name for r in results)]
    figure = new_figure(11.0, 0.4 + 4.0 * len(models))
    grid = figure.subplots(len(models), 2, squeeze=False)
    for (quality, curves), model in zip(grid, models, strict=True):
        mine = [r for r in results if r.cell.model == model]
        _draw_quality(quality, mine)
        _draw_curves(curves, mine)
        quality.set_title(model_title(model), fontsize=10)
    return figure


def _look(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def _families(results: Sequence[Result]) -> dict[tuple[str, str, str], list[Result]]:
    """Results that differ in the amount of training alone, bf16: (setting, pruning, seed)."""
    found: dict[tuple[str, str, str], list[Result]] = {}
    for result in sorted(results, key=lambda r: setting_order(r.cell.setting)):
        cell = result.cell
        pruning, _, rest = cell.method.partition("_")
        if rest.endswith("_bf16"):
            found.setdefault((cell.setting, pruning, str(cell.seed)), []).append(result)
    return found


def _minutes(result: Result) -> float:
    return result.training.seconds / 60 if result.training is not None else 0.0


def _draw_quality(axis: Any, results: Sequence[Result]) -> None:
    dense = dense_of(results)
    level = summarise(dense, dense)[1].value
    axis.axhline(level, color="grey", linewidth=0.8)
    axis.annotate("dense", (0, level), (4, 3), textcoords="offset points", size=7)
    for number, ((setting, pruning, _), members) in enumerate(_families(results).items()):
        members.sort(key=_minutes)
        found = [summarise(items_of([r.cell]), dense)[1] for r in members]
        error = [
            [max(nll.value - nll.low, 0.0) for nll in found],
            [max(nll.high - nll.value, 0.0) for nll in found],
        ]
        axis.errorbar(
            [_minutes(r) for r in members],
            [nll.value for nll in found],
            error,
            label=f"{setting_label(setting)}, {pruning}",
            linewidth=1.2,
            elinewidth=0.8,
            **_look(number),
        )
    axis.set_xscale("symlog", linthresh=1)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("minutes of training")
    axis.set_ylabel("NLL, nats")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)


def _draw_curves(axis: Any, results: Sequence[Result]) -> None:
    """Held-out divergence over the tokens of the longest training of each family."""
    for number, ((setting, pruning, _), members) in enumerate(_families(results).items()):
        longest = max(members, key=_minutes)
        if longest.training is None:
            continue
        curve = longest.training.curve
        axis.plot(
            [entry["tokens"] / 1e3 for entry in curve],
            [entry["loss"] for entry in curve],
            label=f"{setting_label(setting)}, {pruning}",
            markersize=3,
            **_look(number),
        )
    axis.set_xlabel("thousand tokens of training")
    axis.set_ylabel("held-out KL to the dense model, nats")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
