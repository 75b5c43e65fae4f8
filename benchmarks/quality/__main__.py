"""Which pruning method keeps the most? Methods x sparsities x calibration seeds x models.

    python -m benchmarks.quality --prepare    # fetches models and texts, once
    python -m benchmarks.quality              # all cells that are missing, then the tables
    python -m benchmarks.quality --quick      # one seed, two sparsities of the demo model
    python -m benchmarks.quality --table docs/results/quality    # prints from finished results

Every cell (model, method, setting, seed) is written as soon as it is done, with the answer to every
item, so a run that was stopped goes on where it was. Results of another version, other weights or
another recipe are refused and never overwritten.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.packages import SetUpError
from benchmarks.quality import cells as files
from benchmarks.quality.methods import METHODS, QUICK
from benchmarks.quality.models import CALIBRATION_SEEDS, MODELS
from benchmarks.quality.table import blocks, markdown
from tamp_modifier.files import probe

OUTPUT = Path("output/bench-quality")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, help=f"folder of the cells; {OUTPUT} by default")
    parser.add_argument("--data", type=Path, default=Path("output/bench-quality-data"))
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--settings", nargs="+", metavar="S", help='such as 50 or "2:4"')
    parser.add_argument("--seeds", nargs="+", type=int, help="calibration seeds; 0 1 2 by default")
    parser.add_argument(
        "--samples",
        type=int,
        help="calibration samples; each number has an --output of its own (default: the model's)",
    )
    parser.add_argument("--quick", action="store_true", help="one seed, two sparsities")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--prepare", action="store_true", help="fetch models and texts, then stop")
    only.add_argument("--table", type=Path, metavar="FOLDER", help="print these results, then stop")
    only.add_argument(
        "--explain", type=Path, metavar="FOLDER", help="draw what TAMP looks at, then stop"
    )
    parser.add_argument(
        "--figures", type=Path, metavar="FOLDER", help="draw figures of the results"
    )
    parser.add_argument(
        "--pack", type=Path, metavar="FOLDER", help="write one file a model and seed"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command and returns its status."""
    try:
        _main(parser().parse_args(arguments))
    except (ValueError, OSError, SetUpError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _main(args: argparse.Namespace) -> None:
    _refuse_ignored(args)
    if args.table is not None and not args.table.is_dir():
        raise ValueError(f"--table {args.table} is not a folder")
    source = args.table or args.output or OUTPUT
    if args.pack is not None and args.pack.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"--pack {args.pack} is where the results are; give another folder")
    for folder in (args.explain, args.pack, args.figures):
        if folder is not None:
            probe(folder)
    if args.explain is not None:
        _explain(args)
        return
    if args.table is None:
        _measure(args, source)
        if args.prepare:
            return
    _show(source, args)


def _refuse_ignored(args: argparse.Namespace) -> None:
    """Refuse options that what is asked for would not look at."""
    cells = ("methods", "settings", "seeds", "samples", "quick")
    ignored = {
        "explain": (*cells, "output", "pack", "figures"),
        "prepare": (*cells, "output", "pack", "figures"),
        "table": (*cells, "output", "models"),
        "quick": ("settings",),
    }
    for option, others in ignored.items():
        given = [f"--{other}" for other in others if getattr(args, other)]
        if getattr(args, option) and given:
            raise ValueError(f"--{option} does not go with {', '.join(given)}")


def _explain(args: argparse.Namespace) -> None:
    """Draw what TAMP looks at."""
    from benchmarks.quality.explain import draw

    for name in _known("model", args.models or ["box"], MODELS):
        for path in draw(MODELS[name](args.data), args.explain):
            print(f"wrote {path}")


def _measure(args: argparse.Namespace, output: Path) -> None:
    """Fetch what is needed or, without --prepare, runs the cells that are missing."""
    from benchmarks.quality.runner import plan, run

    names = args.models or (["box"] if args.quick else None)
    models = [MODELS[name](args.data) for name in _known("model", names, MODELS)]
    if args.samples is not None:
        if args.samples < 1:
            raise ValueError(f"--samples must be at least 1, got {args.samples}")
        for model in models:
            model.samples = args.samples
    methods = _known("method", args.methods or (list(QUICK) if args.quick else None), METHODS)
    settings = list(dict.fromkeys(args.settings or []))
    # One seed more or less is no other benchmark, so quick cells count in the full run too.
    seeds = list(dict.fromkeys(args.seeds or ([0] if args.quick else CALIBRATION_SEEDS)))
    todo = plan(models, methods, settings, seeds, args.quick)
    if args.prepare:
        for model in models:
            model.prepare()
    else:
        run(todo, output, lambda line: print(line, flush=True))


def _show(source: Path, args: argparse.Namespace) -> None:
    """Print the tables of finished results, packs and draws them."""
    found = files.load_folder(source)
    print(markdown(blocks(found)))
    if args.pack is not None:
        for path in files.pack(found, args.pack):
            print(f"wrote {path}")
    if args.figures is not None:
        from benchmarks.quality.figures import draw

        for path in draw(found, args.figures):
            print(f"wrote {path}")


def _known(kind: str, wanted: list[str] | None, known: dict) -> list[str]:
    names = list(dict.fromkeys(wanted or known))
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}; known are {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
