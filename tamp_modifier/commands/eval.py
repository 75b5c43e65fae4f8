"""``tamp eval``: ask a model questions that have short answers, or the tasks that people cite."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamp_modifier.commands.arguments import add_dtype, add_skip_bad, count, positive
from tamp_modifier.files import name_of

if TYPE_CHECKING:
    from tamp_modifier.workflows.evaluate import TaskScore
    from tamp_modifier.workflows.harness import HarnessScore, Metric

TITLES = {
    "samples": "questions",
    "accuracy": "right",
    "nll": "NLL",
    "reference_accuracy": "right, reference",
    "reference_nll": "NLL, reference",
    "retention": "retained",
}
"""Columns of the table for ``--data``, by field."""

ONLY_WITH = {
    "data": ("seed", "frames", "skip_bad"),
    "tasks": ("include_path", "num_fewshot"),
}
"""Options that mean nothing without another one."""

FRAMES = 8


@dataclass(frozen=True)
class Table:
    """Results as a reader sees them.

    Attributes:
        kind: the option that asked for them, "data" or "tasks".
        text: what was asked, and how, for the model card.
        columns: names of the columns; the first is that of the task.
        rows: the cells.
        mean: over the rows, if that means something.
    """

    kind: str
    text: str
    columns: list[str]
    rows: list[list[str]]
    mean: list[str] | None = None


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``tamp``."""
    parser = subparsers.add_parser(
        "eval",
        help="score a model on questions with short answers, or on tasks that people cite",
        description="Ask MODEL the questions in DATA, and print per task how many answers are "
        "exactly right and how likely the right ones are. A conversation's field `task` names its "
        "task; without it the kind of its media does. Or ask the tasks of lm-evaluation-harness "
        "that `--tasks` names; these are text. See docs/evaluation.md.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="folder of the model, or its name on the hub"
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--data", type=Path, metavar="DATA", help="conversations, as in tamp prune")
    asked.add_argument(
        "--tasks",
        nargs="+",
        metavar="NAME",
        help="tasks of lm-evaluation-harness, such as mmlu; needs the extra eval",
    )
    parser.add_argument(
        "--reference", metavar="MODEL", help="the dense model; adds the retained accuracy"
    )
    parser.add_argument(
        "--samples", type=positive, help="how many; with --tasks of each task (default: all)"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=1, help="questions at once (default: %(default)s)"
    )
    add_dtype(parser)
    parser.add_argument(
        "--card", action="store_true", help="write the results into the model card in MODEL"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    questions = parser.add_argument_group("with --data")
    questions.add_argument("--seed", type=int, help="of the choice of samples (default: 0)")
    questions.add_argument(
        "--frames", type=positive, help=f"taken from a video (default: {FRAMES})"
    )
    add_skip_bad(questions)
    tasks = parser.add_argument_group("with --tasks")
    tasks.add_argument(
        "--include-path", type=Path, metavar="DIR", help="tasks of your own, as YAML"
    )
    tasks.add_argument(
        "--num-fewshot",
        type=count,
        metavar="N",
        help="examples before each question (default: as the task says)",
    )
    parser.set_defaults(run=run, skip_bad=None)


def run(args: argparse.Namespace) -> None:
    """Score the model, and the reference if there is one."""
    other = "tasks" if args.data is not None else "data"
    for name in ONLY_WITH[other]:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} goes with --{other}")
    if args.card:
        from tamp_modifier.report.card import check_card

        check_card(Path(args.model))
    summary, table = _questions(args) if args.data is not None else _tasks(args)
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        _print(args.model, table, summary["warnings"])
    if args.card:
        from tamp_modifier.report.card import add_results

        rows = table.rows + ([table.mean] if table.mean is not None else [])
        add_results(Path(args.model), table.kind, table.text, table.columns, rows)


def _print(title: str, table: Table, warnings: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Shown

    shown = Shown(title=escape(title), title_justify="left")
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    if table.mean is not None:
        shown.add_section()
        shown.add_row(*table.mean, style="bold")
    console = Console()
    console.print(shown)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)


# -- questions of one's own ------------------------------------------------------------------------


def _questions(args: argparse.Namespace) -> tuple[dict[str, Any], Table]:
    """Ask the conversations of ``--data``; returns JSON values and the table."""
    from tamp_modifier.commands.output import phases
    from tamp_modifier.quiet import library_silence

    with phases() as step, library_silence(compressing=False) as warnings:
        from tamp_modifier.data import BadRows, Encoder, choose, encode_all, read_conversations
        from tamp_modifier.tokens import modality_token_ids
        from tamp_modifier.workflows.models import load_config, load_processor

        bad = BadRows(args.skip_bad or 0)
        rows = read_conversations(args.data, bad=bad)
        plain = next((row for row in rows if row.plain), None)
        if plain is not None:
            raise ValueError(f"{plain.name}: a plain text has no answer to score")
        rows = choose(rows, args.samples, len(rows), args.seed or 0)
        config = load_config(args.model)
        if args.reference is not None:
            load_config(args.reference)
        processor = load_processor(args.model)
        encoder = Encoder(processor, modality_token_ids(config), frames=args.frames or FRAMES)
        _, encoded = encode_all(
            encoder, rows, bad, lambda done, total: step("samples", done, total), find_answer=True
        )
        scores = _ask(args, args.model, encoded, processor, step)
        reference = (
            None if args.reference is None else _ask(args, args.reference, encoded, processor, step)
        )
        bad.tell()
    summary = _summary(args, scores, reference)
    summary["warnings"] = warnings
    return summary, _questions_table(args.data, summary)


def _ask(
    args: argparse.Namespace, name: str, encoded: Any, processor: Any, step: Any
) -> dict[str, TaskScore]:
    from tamp_modifier.data import Collator
    from tamp_modifier.workflows.evaluate import end_ids, score_answers
    from tamp_modifier.workflows.models import load_config, load_to_run

    model = load_to_run(name, load_config(name), args.dtype)
    ends = end_ids(model, getattr(processor, "tokenizer", processor))
    return score_answers(
        model,
        encoded,
        Collator(processor, dtype=model.dtype),
        args.batch_size,
        ends,
        lambda done, total: step(f"questions to {name}", done, total),
    )


def _summary(
    args: argparse.Namespace,
    scores: dict[str, TaskScore],
    reference: dict[str, TaskScore] | None,
) -> dict[str, Any]:
    """JSON values: per task and their means over tasks."""
    from dataclasses import asdict

    from tamp_modifier.workflows.evaluate import retention

    tasks: dict[str, dict[str, Any]] = {}
    for task, score in scores.items():
        tasks[task] = asdict(score)
        if reference is not None:
            tasks[task]["reference_accuracy"] = reference[task].accuracy
            tasks[task]["reference_nll"] = reference[task].nll
            tasks[task]["retention"] = retention(score, reference[task])
    mean: dict[str, Any] = {}
    for field in next(iter(tasks.values())):
        values = [task[field] for task in tasks.values() if task[field] is not None]
        total = sum(values)
        if field == "samples":
            mean[field] = total
        else:
            mean[field] = total / len(values) if values else None
    found = {"model": args.model, "reference": args.reference, "tasks": tasks, "mean": mean}
    return found if reference is not None else {k: v for k, v in found.items() if k != "reference"}


def _questions_table(data: Path, summary: dict[str, Any]) -> Table:
    fields = list(summary["mean"])

    def cells(name: str, row: dict[str, Any]) -> list[str]:
        return [name, *(_cell(field, row[field]) for field in fields)]

    return Table(
        "data",
        f"Questions with short answers from `{name_of(data)}`: how many answers are "
        "exactly right, and the negative log-likelihood (NLL) of the right ones in nats a token.",
        ["task", *(TITLES[field] for field in fields)],
        [cells(task, row) for task, row in summary["tasks"].items()],
        cells("mean", summary["mean"]),
    )


def _cell(field: str, value: float | None) -> str:
    if value is None:
        return ""
    if field == "samples":
        return str(value)
    return f"{value:.3f}" if "nll" in field else f"{100 * value:.1f} %"


# -- tasks of lm-evaluation-harness ----------------------------------------------------------------


def _tasks(args: argparse.Namespace) -> tuple[dict[str, Any], Table]:
    """Ask the tasks of ``--tasks``; returns JSON values and the table."""
    from tamp_modifier.commands.output import phases
    from tamp_modifier.quiet import library_silence
    from tamp_modifier.workflows.harness import harness_version, load_tasks, score_tasks
    from tamp_modifier.workflows.models import load_config

    version = harness_version()
    names = [args.model, *([] if args.reference is None else [args.reference])]
    with phases() as step, library_silence(compressing=False) as warnings:
        for name in names:
            load_config(name)
        step("tasks", 0, 0)
        tasks = load_tasks(args.tasks, args.include_path, args.num_fewshot)
        found = []
        for name in names:
            step(f"tasks to {name}", 0, 0)
            found.append(score_tasks(name, tasks, args.samples, args.batch_size, args.dtype))
    summary = {
        "model": args.model,
        **({} if args.reference is None else {"reference": args.reference}),
        "lm_eval": version,
        "tasks": _scored(*found),
        "warnings": [*tasks.warnings, *warnings],
    }
    return summary, _tasks_table(summary)


def _scored(
    scores: Mapping[str, HarnessScore], reference: Mapping[str, HarnessScore] | None = None
) -> dict[str, Any]:
    """JSON values by task."""

    def metric(mine: Metric, theirs: Metric | None) -> dict[str, Any]:
        values = asdict(mine)
        if theirs is not None:
            compared = mine.higher_is_better and theirs.value > 0
            values["reference"] = theirs.value
            values["reference_stderr"] = theirs.stderr
            values["retention"] = mine.value / theirs.value if compared else None
        return values

    found = {}
    for task, score in scores.items():
        others = {} if reference is None else reference[task].metrics
        metrics = {name: metric(one, others.get(name)) for name, one in score.metrics.items()}
        found[task] = {**asdict(score), "metrics": metrics}
    return found


def _tasks_table(summary: dict[str, Any]) -> Table:
    compared = "reference" in summary
    rows = []
    for task, score in summary["tasks"].items():
        for name, metric in score["metrics"].items():
            error = metric["stderr"]
            around = "" if error is None else f" ± {error:.2g}"
            row = [task, name, _number(metric["value"]) + around]
            if compared:
                kept = metric.get("retention")
                row.append(_number(metric.get("reference")))
                row.append("" if kept is None else f"{100 * kept:.1f} %")
            shots = score["fewshot"]
            rows.append([*row, str(score["samples"]), "" if shots is None else str(shots)])
    text = (
        f"With lm-evaluation-harness {summary['lm_eval']}, as text and without a chat template: "
        "the value with its standard error, how many questions were asked, and how many examples "
        "(shots) stood before each."
    )
    columns = ["task", "metric", "value", *(["reference", "retained"] if compared else [])]
    return Table("tasks", text, [*columns, "asked", "shots"], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
