"""``tamp prune``: from a model and data to a pruned model, in one command."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamp_modifier.commands.arguments import (
    add_answers,
    add_dtype,
    add_pipeline,
    add_skip_bad,
    answering,
    positive,
)

if TYPE_CHECKING:
    from tamp_modifier.workflows.prune import Pruned

FIELDS = (
    "preset",
    "sparsity",
    "mask_structure",
    "allocation",
    "selection",
    "score",
    "max_sparsity",
    "targets",
    "ignore",
    "one_pass",
)
"""Fields of TAMPModifier that have an option of the same name."""

SAMPLING = ("samples", "seed", "batch_size", "max_length", "frames", "skip_bad")
"""Options that say how samples are chosen and encoded."""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``tamp``."""
    parser = subparsers.add_parser(
        "prune",
        help="prune a model with TAMP, and save it",
        description="Calibrate MODEL with the conversations in DATA, prune the Linears of its text "
        "decoder, and write model, processor and report to the new folder OUT. Run the same "
        "command again to resume a run that was killed.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="folder of the model, or its name on the hub"
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DATA",
        help="a file or folder of conversations: JSON Lines, JSON, CSV, parquet, webdataset tar, "
        "plain text, a saved dataset of Hugging Face (see docs/data.md)",
    )
    parser.add_argument("--output", type=Path, metavar="OUT", help="must not exist, or be empty")
    _add_method(parser.add_argument_group("method (see docs/choosing.md)"))
    _add_calibration(parser.add_argument_group("calibration"))
    add_dtype(parser)
    parser.add_argument(
        "--restart", action="store_true", help="start over instead of resuming a killed run"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be pruned, and the estimated time and memory; write nothing",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def _add_method(group: Any) -> None:
    group.add_argument(
        "--preset", help='"best" is what to try first: SparseGPT with a refit, modalities balanced'
    )
    group.add_argument(
        "--sparsity", type=float, help="share of the weights that is removed (default: 0.5)"
    )
    group.add_argument("--mask-structure", metavar="N:M", help='"0:0" (default) or as "2:4"')
    group.add_argument("--allocation", help="how the budget is shared out (default: das)")
    group.add_argument("--selection", help="which tokens enter the statistic (default: amia)")
    group.add_argument("--score", help="how weights are ranked (default: wanda)")
    group.add_argument(
        "--max-sparsity", type=float, help="cap of a single Linear (default: sparsity + 0.1)"
    )
    group.add_argument("--targets", nargs="+", metavar="NAME", help="what is pruned")
    group.add_argument("--ignore", nargs="+", metavar="NAME", help="what is left alone")
    group.add_argument(
        "--one-pass",
        action="store_true",
        default=None,
        help="one forward pass instead of three, without passing on the error of pruned layers",
    )
    group.add_argument(
        "--recipe", type=Path, metavar="FILE", help="a YAML recipe instead of all these options"
    )


def _add_calibration(group: Any) -> None:
    group.add_argument(
        "--samples", type=positive, help="how many (default: 128, or all if there are fewer)"
    )
    group.add_argument(
        "--seed", type=int, default=0, help="of the choice of samples (default: %(default)s)"
    )
    group.add_argument(
        "--batch-size", type=positive, default=1, help="samples at once (default: %(default)s)"
    )
    group.add_argument(
        "--max-length",
        type=positive,
        help="most tokens of a sample (default: 4096, or what the model can read)",
    )
    group.add_argument(
        "--frames", type=positive, default=8, help="taken from a video (default: %(default)s)"
    )
    add_pipeline(group)
    add_answers(group)
    add_skip_bad(group)


def run(args: argparse.Namespace) -> None:
    """Prune, or print what would be done."""
    from tamp_modifier.commands.output import phases
    from tamp_modifier.files import check_output
    from tamp_modifier.quiet import library_silence

    fields = _fields(args)
    if not args.dry_run:
        if args.output is None:
            raise ValueError("give --output OUT, the folder for the pruned model, or --dry-run")
        check_output(args.output)
    sampling = {name: getattr(args, name) for name in SAMPLING} | {"answers": answering(args)}
    with phases() as step, library_silence() as warnings:
        if args.dry_run:
            from tamp_modifier.workflows.plan import plan
            from tamp_modifier.workflows.recipes import make_recipe
            from tamp_modifier.workflows.samples import Sampling, prepare

            recipe = make_recipe(args.recipe, fields)
            prepared = prepare(args.model, Sampling(args.data, **sampling), step, answer=False)
            summary = plan(prepared, recipe, args.dtype)
        else:
            from tamp_modifier import prune

            done = prune(
                args.model,
                data=args.data,
                recipe=args.recipe,
                output=args.output,
                dtype=args.dtype,
                pipeline=args.pipeline,
                restart=args.restart,
                progress=step,
                command=args.command_line,
                **sampling,
                **fields,
            )
            summary = _summary(args, done)
    summary["warnings"] = warnings
    if args.json:
        print(json.dumps(summary, indent=2))
    elif args.dry_run:
        _print_plan(summary)
    else:
        _print_result(args, done, warnings)


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of TAMPModifier that are given.

    Raises:
        ValueError: there is a recipe too.
    """
    given = {name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None}
    if given and args.recipe is not None:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"--recipe has fields of its own, leave out {options}")
    return given


def _summary(args: argparse.Namespace, done: Pruned) -> dict[str, Any]:
    report = done.report
    return {
        "output": str(args.output),
        "requested_sparsity": report.requested_sparsity,
        "reached_sparsity": report.reached_sparsity,
        "mask_structure": report.mask_structure,
        "linears": len(report.linears),
        "weights": sum(linear.numel for linear in report.linears.values()),
        "samples": report.samples,
        "tokens": report.tokens,
        "seconds": done.seconds,
    }


def _print_result(args: argparse.Namespace, done: Pruned, warnings: list[str]) -> None:
    from rich.console import Console

    console = Console()
    from tamp_modifier.report.table import report_table

    console.print(report_table(done.report))
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in done.seconds.items())
    console.print(f"time: {seconds}", highlight=False)
    console.print(f"wrote {args.output}", highlight=False, soft_wrap=True)


def _print_plan(plan: dict[str, Any]) -> None:
    from rich.console import Console

    from tamp_modifier.workflows.plan import tables

    console = Console()
    for table in tables(plan):
        console.print(table)
    for warning in plan["warnings"]:
        console.print(f"warning: {warning}", style="yellow", highlight=False)
    console.print("nothing was written", highlight=False)
