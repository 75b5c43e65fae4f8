"""The demo: prune the demo model with Wanda, SparseGPT, TAMP and the preset, and ask it questions.

What the preset leaves of the weights is packed in 4 bits once, and trained once.

Every run starts from a fresh copy of the model and sees the same calibration samples in the same
order. What is scored is what a checkpoint holds: weights in bfloat16, or in 4 bits.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tamp_modifier.demo.methods import ITEMS, MINUTES, RECOVERY, SCHEME, SEED, Step, prune, steps
from tamp_modifier.demo.results import Run
from tamp_modifier.files import new_folder, write_json
from tamp_modifier.quiet import quiet
from tamp_modifier.recovery.settings import RecoverySettings
from tamp_modifier.report.card import Origin, write_card
from tamp_modifier.report.model import REPORT_FILE, PruningReport

if TYPE_CHECKING:
    from tamp_modifier.demo.evaluation import Scores

FORMAT = "tamp-demo"
FORMAT_VERSION = 2
DENSE = "dense"
NAME = "demo model"
"""What was pruned, for reports and model cards."""


class Comparison:
    """The demo model, its questions, and what was found so far.

    Args:
        output: Folder for reports and checkpoints.
        samples: Calibration samples.
        items: Questions per task.
        folder: The dense model.
        minutes: Of the recovery.

    Attributes:
        runs: The dense model's run, then one per step.
        reports: The reports of TAMPModifier by the name of the step.
        written: Checkpoints.
    """

    def __init__(
        self, output: Path, samples: int, items: int, folder: Path, minutes: float = MINUTES
    ) -> None:
        from tamp_modifier.demo import evaluation

        self.output, self.folder, self.minutes = output, folder, minutes
        self.processor = evaluation.load_processor(folder)
        self.loader = evaluation.calibration_dataloader(samples, SEED, self.processor)
        model = evaluation.load_model(folder)
        # No method changes what the decoder is given, so the pictures are looked at only once.
        self.asked = evaluation.seen(model, evaluation.quiz(self.processor, items))
        self.runs: list[Run] = []
        self.reports: dict[str, PruningReport] = {}
        self.written: list[Path] = []
        size = sum(2 * linear.weight.numel() for linear in decoder_linears(model).values())
        self.add(Step(DENSE, 0.0, "0:0"), model, size, 0.0)

    def add(self, step: Step, model: Any, size: int, seconds: float) -> Run:
        """Score a model in fp32 and add its run."""
        from tamp_modifier.demo import evaluation

        scores = evaluation.score(model, self.processor, self.asked)
        kept = retention(scores, self.runs[0].scores if self.runs else scores)
        self.runs.append(
            Run(
                step.method,
                step.mask_structure,
                step.then,
                step.sparsity,
                sparsity_of(model),
                size,
                *kept,
                seconds,
                scores,
            )
        )
        return self.runs[-1]

    def take(self, step: Step) -> Run:
        """Prune a fresh model, write it where the step says so, and score it."""
        import torch

        from tamp_modifier.demo import evaluation

        report = self.output / f"{file_name(step)}.json"
        model = evaluation.load_model(self.folder)
        seconds = prune(model, step, self.loader, report.as_posix())
        model.to(torch.bfloat16)  # what checkpoints hold
        if report.is_file():
            self.reports[step.name] = self._named(report)
        if step.then == RECOVERY:
            seconds += self._recover(model, step, report)
        folder = self.output / step.folder
        if step.folder:
            shutil.rmtree(folder, ignore_errors=True)
            self.written.append(folder)
        if step.then == SCHEME:
            model, size = self._packed(model, step, folder)
        else:
            if step.folder:
                with new_folder(folder) as partial:
                    self._save(model, step, partial)
            model.to(torch.float32)
            size = packed_bytes(model)
        return self.add(step, model, size, seconds)

    def _named(self, file: Path) -> PruningReport:
        """Return a report that says what was pruned, in its file, too."""
        report = PruningReport.load(file)
        report.run |= {"model": NAME, "data": f"{len(self.loader)} drawn pictures with questions"}
        report.save(file)
        return report

    def _recover(self, model: Any, step: Step, file: Path) -> float:
        """Train what is left, say so in the report, and return the seconds it took."""
        from tamp_modifier.demo.recovered import recover
        from tamp_modifier.workflows.recover import report_section

        begin = time.perf_counter()
        done = recover(model, self.processor, self.minutes)
        report = replace(self.reports[step.name], recovery=report_section(done))
        report.save(file)
        self.reports[step.name] = report
        return time.perf_counter() - begin

    def _save(self, model: Any, step: Step, folder: Path) -> None:
        report = self.reports[step.name]
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        report.save(folder / REPORT_FILE)
        write_card(folder, report, Origin(NAME))

    def _packed(self, model: Any, step: Step, folder: Path) -> tuple[Any, int]:
        """Write a quantized model packed; return it loaded again, and the bytes of its Linears."""
        from transformers import AutoModelForImageTextToText, CompressedTensorsConfig

        from tamp_modifier.checkpoint.pack import pack_checkpoint

        with TemporaryDirectory(dir=self.output) as plain:
            self._save(model, step, Path(plain))
            pack_checkpoint(plain, folder)
            dense = CompressedTensorsConfig(dequantize=True)
            model = AutoModelForImageTextToText.from_pretrained(
                plain, quantization_config=dense, local_files_only=True
            )
        return model.float().eval(), stored_bytes(folder)


def run_demo(
    output: Path,
    samples: int = 32,
    items: int = ITEMS,
    folder: Path | None = None,
    minutes: float = MINUTES,
) -> list[Run]:
    """Run the whole comparison, print the table, and write JSON, figures, reports and checkpoints.

    Args:
        output: Folder for ``demo.json``, ``retention.png``, ``das_sparsity.png``, the reports and
            the checkpoints.
        samples: Calibration samples, one picture with one question each.
        items: Evaluation questions per task.
        folder: The model; by default the demo model.
        minutes: Of the recovery.

    Returns:
        The dense model's run and then one run per step.

    Raises:
        FileNotFoundError: There is no model in the folder.
        ValueError: The minutes are not a positive number.
    """
    RecoverySettings(minutes=minutes)  # refuses what is not allowed
    console = Console()
    console.print("Loading torch, transformers and llm-compressor ...")
    with quiet():
        from tamp_modifier.demo import evaluation, results

        folder = evaluation.MODEL_FOLDER if folder is None else folder
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(2, "no model here, the demo needs one", str(folder))
    output.mkdir(parents=True, exist_ok=True)
    wanted = steps()
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*bar, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("dense model: asking questions", total=1 + len(wanted))
        with quiet():
            comparison = Comparison(output, samples, items, folder, minutes)
        progress.advance(task)
        for step in wanted:
            progress.update(task, description=f"{step.name}: pruning, asking questions")
            with quiet():
                run = comparison.take(step)
            if not console.is_terminal:  # where no bar is drawn, a line tells that work goes on
                pruned, scored = f"{run.seconds:.1f}", f"{run.scores.seconds:.1f}"
                console.print(f"{step.name}: pruned in {pruned} s, scored in {scored} s")
            progress.advance(task)

    runs = comparison.runs
    console.print(results.table(runs, items))
    data = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "calibration_samples": samples,
        "questions_per_task": items,
        "recovery_minutes": minutes,
        "seed": SEED,
        "versions": {name: version(name) for name in ("torch", "transformers", "llmcompressor")},
        "runs": [run.to_dict() for run in runs],
    }
    paths = [*comparison.written, write_json(output / "demo.json", data)]
    paths += results.draw(runs, comparison.reports, output)
    for path in paths:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    console.print(results.next_steps(output), highlight=False, soft_wrap=True, markup=False)
    return runs


def file_name(step: Step) -> str:
    """Return the step as part of a file name: "tamp-50", "preset-2-4", "preset-50-w4a16"."""
    setting = step.setting.replace(" %", "").replace(":", "-").replace(" + ", "-")
    return f"{step.method}-{setting}".lower()


def decoder_linears(model: Any) -> dict[str, Any]:
    """Return the Linears of the text decoder's layers by name: what all methods prune."""
    from torch import nn

    layers = model.get_decoder().layers
    return {name: m for name, m in layers.named_modules() if isinstance(m, nn.Linear)}


def sparsity_of(model: Any) -> float:
    """Share of zeros among the weights of `decoder_linears`."""
    weights = [linear.weight for linear in decoder_linears(model).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


def packed_bytes(model: Any) -> int:
    """Bytes of the decoder's Linears as ``tamp pack`` stores them in bfloat16."""
    from tamp_modifier.checkpoint.inspection import packed_size

    weights = [linear.weight for linear in decoder_linears(model).values()]
    return sum(packed_size(tuple(w.shape), int((w != 0).sum()), 2) for w in weights)


def stored_bytes(folder: Path) -> int:
    """Bytes of all that a checkpoint stores of the decoder's Linears, scales and masks too."""
    from tamp_modifier.checkpoint.files import open_shard, shards

    total = 0
    for file in shards(folder):
        with open_shard(file) as shard:
            names = [n for n in shard.keys() if "language_model" in n and "_proj." in n]
            total += sum(shard.get_tensor(name).nbytes for name in names)
    return total


def retention(scores: Scores, dense: Scores) -> tuple[float, float, float]:
    """Mean over tasks of accuracy relative to the dense model: all, picture and text tasks.

    Tasks that the dense model cannot do at all are left out.
    """
    from tamp_modifier.demo.questions import PICTURE_TASKS, TEXT_TASKS

    def mean(tasks: tuple[str, ...]) -> float:
        shares = [scores.tasks[task] / dense.tasks[task] for task in tasks if dense.tasks[task]]
        return sum(shares) / len(shares) if shares else 0.0

    return mean(PICTURE_TASKS + TEXT_TASKS), mean(PICTURE_TASKS), mean(TEXT_TASKS)
