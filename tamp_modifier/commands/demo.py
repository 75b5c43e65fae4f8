"""``tamp demo``: prune the demo model and compare."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tamp_modifier.commands.arguments import positive
from tamp_modifier.demo.methods import ITEMS, MINUTES


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``tamp``."""
    parser = subparsers.add_parser(
        "demo",
        help="prune the demo model with four methods, and compare",
        description="Prune the small multimodal model that comes with the package with Wanda, "
        "SparseGPT, TAMP as published and the preset, once with 4-bit weights on top and once with "
        "a recovery. Ask each pruned model about pictures and in plain text, and print one table. "
        "Writes demo.json, two figures, a report of each TAMPModifier and three checkpoints into "
        "the output folder.",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/demo"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--samples", type=positive, default=32, help="calibration samples (default: %(default)s)"
    )
    parser.add_argument(
        "--items", type=positive, default=ITEMS, help="questions per task (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="of the recovery (default: %(default)g)"
    )
    parser.set_defaults(
        run=run,
        interrupted="what is finished stays in the output folder, the same command starts anew",
    )


def run(args: argparse.Namespace) -> None:
    """Run the whole comparison."""
    from tamp_modifier.demo.run import run_demo

    run_demo(args.output, samples=args.samples, items=args.items, minutes=args.minutes)
