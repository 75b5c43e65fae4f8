"""``tamp estimate``: what pruning a model will take, on paper."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tamp_modifier.commands.arguments import positive


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``tamp``."""
    parser = subparsers.add_parser(
        "estimate",
        help="estimate the time and memory that pruning a model takes",
        description="Estimate time and memory of pruning a model from its config alone, "
        "without measuring anything. docs/scale.md says what is counted.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or name of the model")
    parser.add_argument("--samples", type=positive, default=128, help="default: %(default)s")
    parser.add_argument(
        "--tokens",
        type=positive,
        default=2048,
        help="of one sample, media included (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=positive, default=1, help="default: %(default)s")
    parser.add_argument(
        "--processes",
        type=positive,
        default=1,
        help="accelerators that share the samples (default: %(default)s)",
    )
    for field, default in (("selection", "amia"), ("score", "wanda")):
        parser.add_argument(
            f"--{field}", default=default, help="field of TAMPModifier (default: %(default)s)"
        )
    parser.add_argument("--one-pass", action="store_true", help="one forward pass instead of three")
    parser.add_argument(
        "--all-experts",
        action="store_true",
        help="every token passes every expert (moe_calibrate_all_experts)",
    )
    parser.add_argument(
        "--tflops",
        type=float,
        default=200.0,
        help="of the accelerator, reached (default: %(default)g)",
    )
    parser.add_argument(
        "--link",
        type=float,
        default=20.0,
        help="GB/s between host and accelerator (default: %(default)g)",
    )
    parser.add_argument(
        "--disk", type=float, default=2.0, help="GB/s from disk (default: %(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the estimate."""
    from rich.console import Console

    from tamp_modifier.scores.registry import get_score
    from tamp_modifier.selection.registry import get_selection
    from tamp_modifier.workflows.estimate import Machine, estimate
    from tamp_modifier.workflows.models import load_config
    from tamp_modifier.workflows.shapes import measure_config

    selection, score = get_selection(args.selection), get_score(args.score)
    machine = Machine(flops=args.tflops * 1e12, link=args.link * 1e9, disk=args.disk * 1e9)
    found = estimate(
        measure_config(load_config(args.model)),
        args.samples,
        args.tokens,
        batch_size=args.batch_size,
        passes=1 if args.one_pass else 3,
        selection=selection,
        score=score,
        all_experts=args.all_experts,
        processes=args.processes,
        machine=machine,
    )
    if args.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        Console().print(found.table())
