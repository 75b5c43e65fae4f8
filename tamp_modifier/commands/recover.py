"""``tamp recover``: the dense model teaches a pruned one, whose zeros stay."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamp_modifier.commands.arguments import add_answers, add_skip_bad, answering, positive
from tamp_modifier.messages import size_text

if TYPE_CHECKING:
    from tamp_modifier.recovery.run import Costs, Recovered
    from tamp_modifier.recovery.settings import RecoverySettings


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``tamp``."""
    parser = subparsers.add_parser(
        "recover",
        help="train what a pruned model has kept; the dense model teaches",
        description="Train the kept weights of PRUNED so that it says what the dense model DENSE "
        "says to the conversations in DATA, and write the result to the new folder OUT. Zeros stay "
        "zero, towers are not trained, no labels are needed. Run the same "
        "command again to resume a run that was killed.",
    )
    parser.add_argument("model", metavar="PRUNED", help="folder of the pruned model")
    parser.add_argument(
        "--teacher", required=True, metavar="DENSE", help="the model before pruning"
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DATA", help="conversations, as in tamp prune"
    )
    parser.add_argument("--output", type=Path, metavar="OUT", help="must not exist, or be empty")
    length = parser.add_argument_group("length (one of them; default: 10 minutes)")
    length.add_argument("--minutes", type=float, metavar="N", help="of training")
    length.add_argument("--tokens", type=positive, metavar="N", help="read in training")
    length.add_argument("--samples", type=positive, metavar="N", help="read in training")
    _add_training(parser.add_argument_group("training (see docs/recovery.md)"))
    parser.add_argument(
        "--restart", action="store_true", help="start over instead of resuming a killed run"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train a few steps on the longest samples, print memory and time; write nothing",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(
        run=run,
        interrupted="what was trained, if anything, is kept beside OUT: run the same command to "
        "resume",
    )


def _add_training(group: Any) -> None:
    group.add_argument(
        "--train",
        help="kept: all kept weights (default); lora: a low-rank update of them; norms: norms and "
        "biases alone",
    )
    group.add_argument("--rank", type=positive, help="of the low-rank update (default: 16)")
    group.add_argument(
        "--quantized",
        metavar="SCHEME",
        help="W8A8 or W4A16: train against the rounded weights, and save the model quantized",
    )
    group.add_argument(
        "--group-size", type=positive, help="columns that share a scale in W4A16 (default: 128)"
    )
    group.add_argument(
        "--learning-rate",
        type=float,
        help="default: 3e-4, less for wide models or where a short probe says so",
    )
    group.add_argument("--batch-size", type=positive, help="samples at once (default: 4)")
    group.add_argument(
        "--accumulation", type=positive, help="forward passes of a step (default: 2)"
    )
    group.add_argument("--temperature-of-logits", type=float, help="default: 1")
    group.add_argument(
        "--top-k",
        type=positive,
        help="run the dense model once and keep its K most likely tokens on disk",
    )
    group.add_argument(
        "--hidden", type=float, help="weight of the error of the hidden states (default: 0)"
    )
    group.add_argument(
        "--checkpointing", action="store_true", default=None, help="less memory, more time"
    )
    group.add_argument(
        "--max-length", type=positive, help="most tokens of a sample (default: 4096, or fewer)"
    )
    group.add_argument(
        "--frames", type=positive, default=8, help="taken from a video (default: %(default)s)"
    )
    group.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    add_answers(group)
    add_skip_bad(group)


def settings_of(args: argparse.Namespace) -> RecoverySettings:
    """Return the settings that the arguments ask for.

    Raises:
        ValueError: a value that is not allowed.
    """
    from tamp_modifier.recovery.settings import SCHEMES, RecoverySettings

    if args.quantized not in (None, *SCHEMES):
        raise ValueError(f"--quantized is {args.quantized!r}, allowed are {', '.join(SCHEMES)}")
    if args.rank is not None and args.train != "lora":
        raise ValueError("--rank goes with --train lora")
    if args.group_size is not None and args.quantized != "W4A16":
        raise ValueError("--group-size goes with --quantized W4A16")
    options = {
        "temperature": args.temperature_of_logits,
        "scheme": args.quantized,
        "group": args.group_size,
        **{
            name: getattr(args, name)
            for name in (
                "minutes",
                "tokens",
                "samples",
                "train",
                "rank",
                "learning_rate",
                "batch_size",
                "accumulation",
                "top_k",
                "hidden",
                "checkpointing",
            )
        },
    }
    given = {name: value for name, value in options.items() if value is not None}
    return RecoverySettings(**given, seed=args.seed)


def run(args: argparse.Namespace) -> None:
    """Recover, or print what it would take."""
    from tamp_modifier.commands.output import phases
    from tamp_modifier.files import check_output
    from tamp_modifier.quiet import library_silence

    settings = settings_of(args)
    if args.dry_run:
        args.interrupted = "nothing was written"
    else:
        if args.output is None:
            raise ValueError("give --output OUT, the folder for the recovered model, or --dry-run")
        check_output(args.output)
    with phases() as step, library_silence() as warnings:
        from tamp_modifier.workflows import recover as job
        from tamp_modifier.workflows.samples import Sampling

        sampling = Sampling(
            args.data,
            seed=args.seed,
            max_length=args.max_length,
            frames=args.frames,
            skip_bad=args.skip_bad,
            answers=answering(args),
            default=None,
        )
        plan = job.plan_recovery(args.model, args.teacher, sampling, settings, step)
        if args.dry_run:
            with tempfile.TemporaryDirectory() as folder:
                summary = _costs(job.dry_run(plan, Path(folder), step), settings)
        else:
            summary = _summary(args, job.recover(plan, args.output, args.restart, step))
    summary["warnings"] = warnings
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        _print(summary)


def _costs(costs: Costs, settings: RecoverySettings) -> dict[str, Any]:
    return {
        "peak memory": costs.peak,
        "weights trained": costs.trained,
        "samples": costs.training,
        "samples held out": costs.held_out,
        "tokens a step": round(costs.tokens),
        "seconds a step": costs.seconds,
        "minutes": costs.minutes(settings),
    }


def _summary(args: argparse.Namespace, done: Recovered) -> dict[str, Any]:
    last = done.curve[-1]
    return {
        "output": str(args.output),
        "held-out KL before": done.curve[0]["loss"],
        "held-out KL": done.best,
        "ended": done.reason,
        "minutes": last["seconds"] / 60,
        "tokens": last["tokens"],
        "samples": last["samples"],
        "learning rate": done.rate,
        "weights trained": done.trained,
        "zeros": done.zeros,
        "peak memory": done.peak,
    }


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(show_header=False)
    for name, value in summary.items():
        if name == "warnings":
            continue
        if name == "peak memory":
            value = size_text(value)
        elif isinstance(value, float):
            value = f"{value:.4g}"
        elif isinstance(value, int):
            value = f"{value:,}"
        table.add_row(name, value)
    console.print(table)
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}", style="yellow", highlight=False)
