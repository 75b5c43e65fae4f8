"""How the demo shows what it found: the table, two figures and what to do next."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from tamp_modifier.demo.methods import METHODS, OURS, setting_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tamp_modifier.demo.evaluation import Scores
    from tamp_modifier.report.model import PruningReport

SPREAD = 0.2
"""How far the methods of one setting are apart; settings are 1 apart."""
SAVED, SMALL, RECOVERED = "best-50", "best-50-w4a16", "best-70-recovered"


@dataclass(frozen=True)
class Run:
    """One model and its scores.

    Attributes:
        method: A name of `methods.METHODS`, or `DENSE`.
        mask_structure: "0:0" or "2:4".
        then: What came after pruning, "" for nothing.
        requested: Requested sparsity of the decoder's Linears, 0 to 1.
        reached: Share of their weights that are zero.
        size: Bytes of the decoder's Linears, dense or as ``tamp pack`` stores them.
        retention: Mean over all tasks of accuracy relative to the dense model.
        picture_retention: The same over the picture tasks.
        text_retention: The same over the text tasks.
        seconds: Wall time of pruning and of what came then.
        scores: Accuracy and negative log-likelihood per task.
    """

    method: str
    mask_structure: str
    then: str
    requested: float
    reached: float
    size: int
    retention: float
    picture_retention: float
    text_retention: float
    seconds: float
    scores: Scores

    @property
    def label(self) -> str:
        """The setting as people write it, empty for the dense model."""
        if not self.requested:
            return ""
        return setting_label(self.requested, self.mask_structure, self.then)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {**asdict(self), "label": self.label, "scores": self.scores.to_dict()}


def table(runs: list[Run], items: int) -> Table:
    """All runs, one row each."""
    result = Table(
        title=f"The demo model after pruning, {items} questions per task",
        title_justify="left",
        caption="size: the decoder's Linears as stored. retained: accuracy relative to dense.\n"
        "NLL: nats per answer token, lower is better.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    result.add_column("\nmethod", no_wrap=True)
    for header in (
        "zeros\n%",
        "size\nMB",
        "retained\nimage",
        "%\ntext",
        "NLL\nimage",
        "\ntext",
        "took\ns",
    ):
        result.add_column(header, justify="right", no_wrap=True)
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        result.add_row(
            f"{run.method} {run.label}",
            f"{100 * run.reached:.1f}",
            f"{run.size / 1e6:.1f}",
            f"{100 * run.picture_retention:.1f}",
            f"{100 * run.text_retention:.1f}",
            f"{run.scores.picture_nll:.3f}",
            f"{run.scores.text_nll:.3f}",
            f"{run.seconds:.0f}" if run.requested else "",
            end_section=following is None or following.label != run.label,
        )
    return result


def next_steps(output: Path) -> str:
    """Return what to do after the demo, as commands."""
    saved = output / SAVED
    serve = "python -m vllm.entrypoints.openai.api_server --max-model-len 256"
    return f"""
Next, look at the pruned model:
  tamp inspect {saved}
  tamp report {saved} --html {output / "report.html"}
Serve it, in the environment with vLLM (in a clone `make serve`, then `make ask`):
  {serve} --model {saved}
or the one with 4-bit weights, {output / SMALL}, or the recovered one, {output / RECOVERED}
Prune your own model, ask it your questions, serve it:
  tamp prune MODEL --data calibration.jsonl --preset best --sparsity 0.5 --output pruned
  tamp eval pruned --data questions.jsonl --reference MODEL
  vllm serve ./pruned"""


def draw(runs: list[Run], reports: dict[str, PruningReport], output: Path) -> list[Path]:
    """Write ``retention.png`` and ``das_sparsity.png``."""
    return [retention_figure(runs, output / "retention.png"), grids(reports, output)]


def retention_figure(runs: list[Run], path: Path) -> Path:
    """Draw accuracy and NLL of picture and text tasks, the methods of a setting side by side."""
    from tamp_modifier.report.figures import COLOURS, MARKERS, new_figure, save_figure

    settings = list(dict.fromkeys(run.label for run in runs[1:]))
    figure = new_figure(12, 6.4)
    grid = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, kind in enumerate(("picture", "text")):
        for index, method in enumerate(METHODS):
            mine = [run for run in runs if run.method == method]
            places = [settings.index(run.label) + _shift(run, runs) for run in mine]
            for axes, values in zip(
                grid[:, column],
                (
                    [100 * getattr(run, f"{kind}_retention") for run in mine],
                    [getattr(run.scores, f"{kind}_nll") for run in mine],
                ),
                strict=True,
            ):
                axes.plot(
                    places,
                    values,
                    linestyle="none",
                    color="black" if method == OURS else COLOURS[index],
                    marker=MARKERS[index],
                    markersize=7,
                    label="preset best" if method == OURS else method,
                )
        dense = getattr(runs[0].scores, f"{kind}_nll")
        _finish(grid[0, column], settings, 100, f"{kind} tasks")
        _finish(grid[1, column], settings, dense, "")
    grid[0, 0].set_ylabel("accuracy relative to dense, %")
    grid[1, 0].set_ylabel("NLL per answer token, nats")
    grid[1, 0].set_yscale("log")  # one destroyed model would hide what is between the others
    grid[1, 0].yaxis.set_major_formatter("{x:g}")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return save_figure(figure, path)


def _shift(run: Run, runs: list[Run]) -> float:
    """Return where a run stands among those of its setting, 0 in the middle."""
    beside = [other.method for other in runs if other.label == run.label]
    return SPREAD * (beside.index(run.method) - (len(beside) - 1) / 2)


def _finish(axes: Axes, settings: list[str], dense: float, title: str) -> None:
    axes.axhline(dense, color="grey", linestyle="--", linewidth=1, label="dense")
    axes.set_title(title, fontsize=10)
    labels = [label.replace(" + ", "\n+ ") for label in settings]
    axes.set_xticks(range(len(settings)), labels, fontsize=9)
    axes.set_xlim(-0.5, len(settings) - 0.5)
    for place in range(1, len(settings)):
        axes.axvline(place - 0.5, color="lightgrey", linewidth=0.8)
    axes.grid(alpha=0.3, axis="y")


def grids(reports: dict[str, PruningReport], output: Path) -> Path:
    """Draw which sparsity DAS gave each Linear in the unstructured runs of TAMP."""
    from tamp_modifier.report.figures import (
        add_sparsity_bar,
        draw_sparsity_grid,
        new_figure,
        save_figure,
    )

    shown = {
        name: report
        for name, report in reports.items()
        if name.startswith("TAMP ") and report.mask_structure == "0:0"
    }
    figure = new_figure(1.8 + 3.6 * len(shown), 3.4)
    all_axes = figure.subplots(1, len(shown), sharey=True)
    limits = (0.0, max(linear.reached for r in shown.values() for linear in r.linears.values()))
    for axes, (name, report) in zip(all_axes, shown.items(), strict=True):
        image = draw_sparsity_grid(axes, report, limits)
        axes.set_title(name)
    add_sparsity_bar(figure, image, all_axes)
    return save_figure(figure, output / "das_sparsity.png")
