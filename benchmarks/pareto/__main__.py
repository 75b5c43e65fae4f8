"""Does sparsity pay? Pruning and quantization, alone and together: quality, size and speed.

    python -m benchmarks.quality --prepare             # fetches models and texts, once
    python -m benchmarks.pareto                        # quality: all cells that are missing
    python -m benchmarks.pareto --speed                # speed, in the serving environment
    python -m benchmarks.pareto --table docs/results/pareto --bf16 docs/results/quality \\
        --figure docs/figures/pareto.png

Every cell is written as soon as it is done, so a run that was stopped goes on where it was. Results
of another version, other weights or another recipe are refused and never overwritten.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.packages import SetUpError
from benchmarks.pareto import speed

OUTPUT = Path("output/bench-pareto")
QUALITY, SPEED = "quality", "speed"
"""Folders of the cells, below that of the results."""

QUALITY_MODELS = ["smollm2", "smolav"]
"""Real weights; the demo model is too small for groups of 128."""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pareto",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"{OUTPUT} by default")
    parser.add_argument("--data", type=Path, default=Path("output/bench-quality-data"))
    parser.add_argument("--models", nargs="+", metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="calibration seeds; 0")
    parser.add_argument("--threads", type=int, default=1, help="of --speed; 1")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--speed", action="store_true", help="measure speed instead of quality")
    only.add_argument("--table", type=Path, metavar="FOLDER", help="print these results, then stop")
    parser.add_argument(
        "--bf16",
        type=Path,
        metavar="FOLDER",
        help="take bf16 cells that are missing from these results of benchmarks.quality",
    )
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the results")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="write one file a model")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its status."""
    try:
        _main(parser().parse_args(arguments))
    except (ValueError, OSError, SetUpError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _main(args: argparse.Namespace) -> None:
    for option, folder in (("--table", args.table), ("--bf16", args.bf16)):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{option} {folder} is not a folder")
    if args.speed:
        if args.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {args.threads}")
        # A run that is told to stop ends its engine first.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        names = _known(args.models, list(speed.MODELS))
        speed.run(args.output / SPEED, names, args.threads, _say)
        return
    if args.table is None:
        _measure(args)
    _show(args.table or args.output, args)


def _measure(args: argparse.Namespace) -> None:
    """Run the cells of quality that are missing."""
    from benchmarks.pareto.points import POINTS, plan
    from benchmarks.quality.models import MODELS
    from benchmarks.quality.runner import run

    if min(args.seeds) < 0:
        raise ValueError(f"--seeds must be >= 0, got {min(args.seeds)}")
    models = [MODELS[name](args.data) for name in _known(args.models, QUALITY_MODELS)]
    run(plan(models, args.seeds), args.output / QUALITY, _say, POINTS)


def _show(source: Path, args: argparse.Namespace) -> None:
    """Print the table of what is finished, pack and draw it."""
    from benchmarks.pareto.figure import draw
    from benchmarks.pareto.rows import rows, with_bf16
    from benchmarks.pareto.table import markdown
    from benchmarks.quality.cells import load_folder, pack

    own = load_folder(source / QUALITY)
    found = own if args.bf16 is None else with_bf16(own, load_folder(args.bf16))
    shown = rows(found, speed.load_folder(source / SPEED))
    print(markdown(shown))
    if args.pack is not None:
        for path in pack(own, args.pack / QUALITY):
            print(f"wrote {path}")
    if args.figure is not None:
        print(f"wrote {draw(shown, args.figure)}")


def _known(wanted: list[str] | None, known: list[str]) -> list[str]:
    names = list(dict.fromkeys(wanted or known))
    for name in names:
        if name not in known:
            raise ValueError(f"unknown model {name!r}; known are {', '.join(known)}")
    return names


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
