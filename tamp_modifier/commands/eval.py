"""``tamp eval``: ask a model questions that have short answers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamp_modifier.commands.arguments import add_dtype, add_skip_bad, positive

if TYPE_CHECKING:
    from tamp_modifier.workflows.evaluate import TaskScore


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``tamp``."""
    parser = subparsers.add_parser(
        "eval",
        help="score a model on questions with short answers",
        description="Ask MODEL the questions in DATA, and print per task how many answers are "
        "exactly right and how likely the right ones are. A conversation's field `task` names its "
        "task; without it the kind of its media does.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="folder of the model, or its name on the hub"
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DATA", help="conversations, as in tamp prune"
    )
    parser.add_argument(
        "--reference", metavar="MODEL", help="the dense model; adds the retained accuracy"
    )
    parser.add_argument("--samples", type=positive, help="how many (default: all)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the choice of samples (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=1, help="questions at once (default: %(default)s)"
    )
    parser.add_argument(
        "--frames", type=positive, default=8, help="taken from a video (default: %(default)s)"
    )
    add_skip_bad(parser)
    add_dtype(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Score the model, and the reference if there is one."""
    from tamp_modifier.commands.output import phases
    from tamp_modifier.quiet import library_silence

    with phases() as step, library_silence(compressing=False) as warnings:
        from tamp_modifier.data import BadRows, Encoder, choose, encode_all, read_conversations
        from tamp_modifier.tokens import modality_token_ids
        from tamp_modifier.workflows.models import load_config, load_processor

        bad = BadRows(args.skip_bad)
        rows = read_conversations(args.data, bad=bad)
        plain = next((row for row in rows if row.plain), None)
        if plain is not None:
            raise ValueError(f"{plain.name}: a plain text has no answer to score")
        rows = choose(rows, args.samples, len(rows), args.seed)
        config = load_config(args.model)
        if args.reference is not None:
            load_config(args.reference)
        processor = load_processor(args.model)
        encoder = Encoder(processor, modality_token_ids(config), frames=args.frames)
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
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        _print(summary)


def _ask(
    args: argparse.Namespace, name: str, encoded: Any, processor: Any, step: Any
) -> dict[str, TaskScore]:
    from tamp_modifier.data import Collator
    from tamp_modifier.workflows.evaluate import end_ids, score_answers
    from tamp_modifier.workflows.models import load_config, load_model

    model = load_model(name, load_config(name), args.dtype)
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


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    titles = {
        "samples": "questions",
        "accuracy": "right",
        "nll": "NLL",
        "reference_accuracy": "right, reference",
        "reference_nll": "NLL, reference",
        "retention": "retained",
    }
    fields = list(summary["mean"])
    table = Table(title=f"{summary['model']}", title_justify="left")
    table.add_column("task")
    for field in fields:
        table.add_column(titles[field], justify="right")

    def cells(row: dict[str, Any]) -> list[str]:
        return [_cell(field, row[field]) for field in fields]

    for task, row in summary["tasks"].items():
        table.add_row(task, *cells(row))
    table.add_section()
    table.add_row("mean", *cells(summary["mean"]), style="bold")
    console = Console()
    console.print(table)
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}", style="yellow", highlight=False)


def _cell(field: str, value: float | None) -> str:
    if value is None:
        return ""
    if field == "samples":
        return str(value)
    return f"{value:.3f}" if "nll" in field else f"{100 * value:.1f} %"
