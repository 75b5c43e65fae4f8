"""The demo: prune the model in the box with Wanda and with TAMP, and ask it questions.

Every run starts from a fresh copy of the model and sees the same calibration samples in the same
order. Wanda is llm-compressor's own modifier on the same Linears.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tamp_modifier.files import write_json
from tamp_modifier.quiet import quiet
from tamp_modifier.report.model import PruningReport

if TYPE_CHECKING:
    from tamp_modifier.demo.evaluation import Scores

FORMAT = "tamp-demo"
FORMAT_VERSION = 1
DECODER_LAYER = "LlamaDecoderLayer"
METHODS = ("Wanda", "TAMP")
SAVED = ("TAMP", 0.5, "0:0")
"""The run whose model is kept: what ``make serve`` serves."""
SETTINGS = ((0.5, "0:0"), (0.6, "0:0"), (0.7, "0:0"), (0.5, "2:4"))
SEED = 0


@dataclass(frozen=True)
class Run:
    """One pruned model and its scores.

    Attributes:
        method: A name of `METHODS`, or "dense".
        mask_structure: "0:0" or "2:4".
        requested: Requested sparsity of the decoder's Linears, 0 to 1.
        reached: Sparsity that they have.
        retention: Mean over all tasks of accuracy relative to the dense model.
        picture_retention: The same over the picture tasks.
        text_retention: The same over the text tasks.
        seconds: Wall time of pruning.
        scores: Accuracy and negative log-likelihood per task.
    """

    method: str
    mask_structure: str
    requested: float
    reached: float
    retention: float
    picture_retention: float
    text_retention: float
    seconds: float
    scores: Scores

    @property
    def label(self) -> str:
        """The sparsity as people write it, empty for the dense model."""
        return setting_label(self.requested, self.mask_structure) if self.requested else ""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {**asdict(self), "scores": self.scores.to_dict()}


def setting_label(sparsity: float, mask_structure: str) -> str:
    """Return a setting as people write it: "50 %" or "2:4"."""
    return mask_structure if mask_structure != "0:0" else f"{100 * sparsity:.0f} %"


def run_demo(
    output: Path, samples: int = 32, items: int = 50, folder: Path | None = None
) -> list[Run]:
    """Run the whole comparison, prints the table and writes JSON, figures and reports.

    Args:
        output: Folder for ``demo.json``, ``retention.png``, ``das_sparsity.png``, the reports and
            the checkpoint of `SAVED`.
        samples: Calibration samples, one picture with one question each.
        items: Evaluation questions per task.
        folder: The model; by default the one in the box.

    Returns:
        The dense model's run and then one run per setting and method.

    Raises:
        FileNotFoundError: There is no model in the folder.
    """
    console = Console()
    console.print("Loading torch, transformers and llm-compressor ...")
    with quiet():
        from tamp_modifier.demo import evaluation

        folder = evaluation.MODEL_FOLDER if folder is None else folder
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(2, "no model here, the demo needs one", str(folder))
        processor = evaluation.load_processor(folder)
        loader = evaluation.calibration_dataloader(samples, SEED, processor)
    output.mkdir(parents=True, exist_ok=True)

    steps = [(method, *setting) for setting in SETTINGS for method in METHODS]
    runs: list[Run] = []
    reports: dict[str, PruningReport] = {}
    paths: list[Path] = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("dense model: asking questions", total=1 + len(steps))
        with quiet():
            model = evaluation.load_model(folder)
            dense = evaluation.evaluate(model, processor, items)
        runs.append(Run("dense", "0:0", 0.0, sparsity_of(model), 1.0, 1.0, 1.0, 0.0, dense))
        progress.advance(task)
        for method, sparsity, structure in steps:
            label = setting_label(sparsity, structure)
            name = f"{method} {label}"
            progress.update(task, description=f"{name}: pruning")
            report_path = output / f"tamp-{label.replace(' %', '').replace(':', '-')}.json"
            with quiet():
                model = evaluation.load_model(folder)
                seconds = prune(model, method, sparsity, structure, loader, report_path.as_posix())
            progress.update(task, description=f"{name}: asking questions")
            with quiet():
                scores = evaluation.evaluate(model, processor, items)
            kept = retention(scores, dense)
            runs.append(
                Run(method, structure, sparsity, sparsity_of(model), *kept, seconds, scores)
            )
            if not console.is_terminal:  # where no bar is drawn, a line tells that work goes on
                console.print(
                    f"{name}: pruned in {seconds:.1f} s, scored in {scores.seconds:.1f} s"
                )
            if (method, sparsity, structure) == SAVED:
                with quiet():
                    paths.append(save(model, processor, report_path.with_suffix("")))
            if method == "TAMP":
                reports[name] = PruningReport.load(report_path)
            progress.advance(task)

    console.print(table(runs, items))
    data = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "calibration_samples": samples,
        "questions_per_task": items,
        "seed": SEED,
        "versions": {name: version(name) for name in ("torch", "transformers", "llmcompressor")},
        "runs": [run.to_dict() for run in runs],
    }
    paths.append(write_json(output / "demo.json", data))
    paths += draw(runs, reports, output)
    for path in paths:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    return runs


def prune(
    model: Any, method: str, sparsity: float, mask_structure: str, loader: Any, report_path: str
) -> float:
    """Prunes the Linears of the text decoder in place.

    Args:
        model: The model in the box, or another LLaVA on a Llama decoder.
        method: A name of `METHODS`.
        sparsity: Share of weights to remove, 0 to 1.
        mask_structure: "0:0" or "N:M".
        loader: Calibration batches.
        report_path: Where TAMP writes its report.

    Returns:
        Wall time in seconds.
    """
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import WandaPruningModifier

    from tamp_modifier import TAMPModifier

    recipes: dict[str, Callable[[], Any]] = {
        "Wanda": lambda: WandaPruningModifier(
            sparsity=sparsity, mask_structure=mask_structure, targets=[DECODER_LAYER]
        ),
        "TAMP": lambda: TAMPModifier(
            sparsity=sparsity, mask_structure=mask_structure, report_path=report_path
        ),
    }
    torch.manual_seed(SEED)
    begin = time.perf_counter()
    oneshot(
        model=model,
        dataset=loader,
        recipe=[recipes[method]()],
        num_calibration_samples=len(loader),
        shuffle_calibration_samples=False,
        sequential_targets=[DECODER_LAYER],
    )
    return time.perf_counter() - begin


def save(model: Any, processor: Any, folder: Path) -> Path:
    """Write a checkpoint in bfloat16, whole or not at all; one that is there is replaced.

    The model is in bfloat16 afterwards: llm-compressor ties ``save_pretrained`` to this object.
    Pruning only sets weights to zero, so bfloat16, in which they were stored, holds them exactly.
    """
    import torch

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(partial)
    processor.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def decoder_linears(model: Any) -> dict[str, Any]:
    """Return the Linears of the text decoder's layers by name: what both methods prune."""
    from torch import nn

    layers = model.get_decoder().layers
    return {name: m for name, m in layers.named_modules() if isinstance(m, nn.Linear)}


def sparsity_of(model: Any) -> float:
    """Share of zeros among the weights of :func:`decoder_linears`."""
    weights = [linear.weight for linear in decoder_linears(model).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


def retention(scores: Scores, dense: Scores) -> tuple[float, float, float]:
    """Mean over tasks of accuracy relative to the dense model: all, picture and text tasks.

    Tasks that the dense model cannot do at all are left out.
    """
    from tamp_modifier.demo.questions import PICTURE_TASKS, TEXT_TASKS

    def mean(tasks: tuple[str, ...]) -> float:
        shares = [scores.tasks[task] / dense.tasks[task] for task in tasks if dense.tasks[task]]
        return sum(shares) / len(shares) if shares else 0.0

    return mean(PICTURE_TASKS + TEXT_TASKS), mean(PICTURE_TASKS), mean(TEXT_TASKS)


def table(runs: list[Run], items: int) -> Table:
    """All runs, one row each."""
    result = Table(
        title=f"The model in the box after pruning, {items} questions per task",
        title_justify="left",
        caption="kept: accuracy relative to dense, mean over tasks. NLL: nats per answer token.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    result.add_column("\nmethod", no_wrap=True)
    for header in (
        "zeros\n%",
        "right\nimage",
        "%\ntext",
        "kept\nimage",
        "%\ntext",
        "NLL\nimage",
        "\ntext",
        "pruned\nin s",
    ):
        result.add_column(header, justify="right", no_wrap=True)
    for index, run in enumerate(runs):
        result.add_row(
            f"{run.method} {run.label}",
            f"{100 * run.reached:.2f}",
            f"{100 * run.scores.picture:.1f}",
            f"{100 * run.scores.text:.1f}",
            f"{100 * run.picture_retention:.1f}",
            f"{100 * run.text_retention:.1f}",
            f"{run.scores.picture_nll:.3f}",
            f"{run.scores.text_nll:.3f}",
            f"{run.seconds:.1f}" if run.requested else "",
            end_section=index == 0 or run.method == METHODS[-1],
        )
    return result


def draw(runs: list[Run], reports: dict[str, PruningReport], output: Path) -> list[Path]:
    """Write ``retention.png`` and ``das_sparsity.png``."""
    from tamp_modifier.report.figures import (
        COLOURS,
        add_sparsity_bar,
        draw_sparsity_grid,
        new_figure,
        save_figure,
    )

    figure = new_figure(9.5, 3.8)
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("picture", "text"), strict=True):
        for method, colour, marker in zip(METHODS, COLOURS, ("o", "s"), strict=False):
            mine = [run for run in runs if run.method == method]
            line = [run for run in mine if run.mask_structure == "0:0"]
            axes.plot(
                [100 * run.reached for run in line],
                [100 * getattr(run, f"{kind}_retention") for run in line],
                color=colour,
                marker=marker,
                label=f"{method}, unstructured",
            )
            for run in mine:
                if run.mask_structure != "0:0":
                    axes.plot(
                        [100 * run.reached],
                        [100 * getattr(run, f"{kind}_retention")],
                        color=colour,
                        marker=marker,
                        markersize=9,
                        markerfacecolor="none",
                        linestyle="none",
                        label=f"{method}, {run.mask_structure}",
                    )
        axes.axhline(100, color="grey", linestyle="--", linewidth=1, label="dense")
        axes.set_title(f"{kind} tasks")
        axes.set_xlabel("sparsity of the decoder's Linears, %")
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel("accuracy relative to dense, %")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    paths = [save_figure(figure, output / "retention.png")]

    grids = {name: r for name, r in reports.items() if r.mask_structure == "0:0"}
    figure = new_figure(1.8 + 3.6 * len(grids), 3.4)
    all_axes = figure.subplots(1, len(grids), sharey=True)
    limits = (0.0, max(linear.reached for r in grids.values() for linear in r.linears.values()))
    for axes, (name, report) in zip(all_axes, grids.items(), strict=True):
        image = draw_sparsity_grid(axes, report, limits)
        axes.set_title(name)
    add_sparsity_bar(figure, image, all_axes)
    paths.append(save_figure(figure, output / "das_sparsity.png"))
    return paths
