"""``tamp report``: what a pruning run decided and reached."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tamp_modifier.commands.arguments import positive


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of ``tamp``."""
    parser = subparsers.add_parser(
        "report",
        help="show what a pruning run decided and reached",
        description="Print the table of a report that TAMPModifier wrote (its field report_path), "
        "or that tamp prune left in the folder of the pruned model.",
    )
    parser.add_argument(
        "report", type=Path, metavar="REPORT.json", help="the report, or the folder it is in"
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write a page with all figures",
    )
    parser.add_argument(
        "--media",
        type=Path,
        metavar="DIR",
        help="the folder of the calibration data: the page then shows the pictures of the first "
        "samples with their selected tokens; pictures outside of it are never read (default: the "
        "folder of the report, which holds none unless you put them there)",
    )
    parser.add_argument(
        "--pictures", type=positive, default=12, help="samples shown (default: %(default)s)"
    )
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw figures into this folder")
    parser.set_defaults(
        run=run,
        interrupted="figures that are drawn stay, the page was not written",
    )


def run(args: argparse.Namespace) -> None:
    """Print the table, and draw the figures if asked for."""
    _check_outputs(args)
    from rich.console import Console

    from tamp_modifier.report.model import REPORT_FILE, SAMPLES_FILE, PruningReport
    from tamp_modifier.report.samples import read_samples
    from tamp_modifier.report.table import report_table

    path = args.report
    if path.is_dir():
        path = path / REPORT_FILE
        if not path.is_file():
            raise FileNotFoundError(2, f"there is no {REPORT_FILE} in it", str(args.report))
    report = PruningReport.load(path)
    samples = [] if args.html is None else read_samples(path.with_name(SAMPLES_FILE))
    console = Console()
    console.print(report_table(report))
    tokens = ", ".join(f"{count:,} {name}" for name, count in report.tokens.items())
    seconds = ", ".join(f"{phase} {value:.1f} s" for phase, value in report.timings.items())
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    for label, text in (("tokens", tokens), ("time", seconds), ("versions", versions)):
        if text:
            console.print(f"{label}: {text}", highlight=False)
    if args.figures is not None:
        from tamp_modifier.report.figures import draw_report

        for figure in draw_report(report, args.figures):
            console.print(f"wrote {figure}", highlight=False, soft_wrap=True)
    if args.html is not None:
        from tamp_modifier.report.page import write_page

        media = path.parent if args.media is None else args.media
        written = write_page(report, args.html, samples, args.pictures, media)
        console.print(f"wrote {written}", highlight=False, soft_wrap=True)
        if args.media is None and any(sample["media"] for sample in samples):
            console.print(
                "give --media DIR, the folder of the calibration data, to show its pictures with "
                "their selected tokens",
                highlight=False,
                soft_wrap=True,
            )


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse what cannot be, or should not be, written, before anything is printed."""
    page, folder = args.html, args.figures
    if args.media is not None and page is None:
        raise ValueError("--media is for the page, give --html FILE too")
    if args.media is not None and not args.media.is_dir():
        raise ValueError(f"--media must name a folder, got {args.media}")
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--html must name a file that ends with .html, got {page}")
    if page is not None and page.is_dir():
        raise ValueError(f"--html must name a file, {page} is a folder")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ValueError(f"--figures must name a folder, {folder} is a file")
