"""Does sparsity pay? Quality of every point, cell by cell.

    python -m benchmarks.quality --prepare    # fetches models and texts, once
    python -m benchmarks.pareto               # all cells that are missing

A run that was stopped goes on where it was; results of other weights or recipes are refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.pareto.models import MODELS
from benchmarks.pareto.points import POINTS, plan
from benchmarks.quality.runner import run

OUTPUT = Path("output/bench-pareto")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pareto", description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--data", type=Path, default=Path("output/bench-quality-data"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cells", nargs="+", metavar="NAME:SETTING", help="only these")
    args = parser.parse_args(arguments)
    models = [MODELS[name](args.data) for name in args.models]
    cells = plan(models, args.seeds)
    if args.cells:
        cells = [c for c in cells if f"{c[1]}@{c[2]}" in args.cells]
    run(cells, args.output, lambda line: print(line, flush=True), POINTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
