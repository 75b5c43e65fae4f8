"""``tamp report``: what a pruning run decided and reached."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``tamp``."""
    parser = subparsers.add_parser(
        "report",
        help="show what a pruning run decided and reached",
        description="Print the table of a report that TAMPModifier wrote (its field report_path).",
    )
    parser.add_argument("report", type=Path, metavar="REPORT.json", help="the report")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw figures into this folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the table, and draw the figures if asked for."""
    from rich.console import Console

    from tamp_modifier.report import PruningReport, figures

    report = PruningReport.load(args.report)
    console = Console()
    console.print(report.table())
    tokens = ", ".join(f"{count:,} {name}" for name, count in report.tokens.items())
    seconds = ", ".join(f"{phase} {value:.1f} s" for phase, value in report.timings.items())
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    for label, text in (("tokens", tokens), ("time", seconds), ("versions", versions)):
        if text:
            console.print(f"{label}: {text}", highlight=False)
    if args.figures is not None:
        for path in figures(report, args.figures):
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)
