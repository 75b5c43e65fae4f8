"""The ``tamp`` command.

A subcommand is one function that adds its parser and names the function that runs it; ``COMMANDS``
lists them. Exit status: 0 done, 1 the run failed, 2 wrong arguments, 130 interrupted. A failure is
one line on standard error; ``TAMP_DEBUG=1`` shows the traceback as well.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tamp_modifier import __version__

# Heavy imports (torch, llm-compressor, matplotlib) stay inside the commands: --help is fast.


def _add_demo(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="prune the model in the box with Wanda and TAMP, and compare",
        description="Prune the small multimodal model that comes with the package with Wanda and "
        "with TAMP, ask each pruned model about pictures and in plain text, and print one table. "
        "Writes demo.json, two figures and a report per TAMP run into the output folder.",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/demo"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--samples", type=_positive, default=32, help="calibration samples (default: %(default)s)"
    )
    parser.add_argument(
        "--items", type=_positive, default=50, help="questions per task (default: %(default)s)"
    )
    parser.set_defaults(run=_run_demo)


def _run_demo(args: argparse.Namespace) -> None:
    from tamp_modifier.demo.run import run_demo

    run_demo(args.output, samples=args.samples, items=args.items)


def _add_report(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "report",
        help="show what a pruning run decided and reached",
        description="Print the table of a report that TAMPModifier wrote (its field report_path).",
    )
    parser.add_argument("report", type=Path, metavar="REPORT.json", help="the report")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw figures into this folder")
    parser.set_defaults(run=_run_report)


def _run_report(args: argparse.Namespace) -> None:
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


COMMANDS: tuple[Callable[[Any], None], ...] = (_add_demo, _add_report)


def _positive(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands; each sets ``run`` to the function that does its work."""
    parser = argparse.ArgumentParser(
        prog="tamp", description="Token-adaptive layerwise pruning of multimodal LLMs."
    )
    parser.add_argument("--version", action="version", version=f"tamp-modifier {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in COMMANDS:
        add_command(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    args = build_parser().parse_args(arguments)
    try:
        args.run(args)
    except KeyboardInterrupt:
        print("tamp: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("TAMP_DEBUG"):
            raise
        print(f"tamp: error: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
