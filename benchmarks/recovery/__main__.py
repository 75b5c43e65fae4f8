"""How much of what pruning costs does a short training bring back?

    python -m benchmarks.quality --prepare             # fetches models and texts, once
    python -m benchmarks.recovery --prepare            # fetches the texts of training, once
    python -m benchmarks.recovery                      # all cells that are missing
    python -m benchmarks.recovery --models smollm2 --pruning best --settings 50 --minutes 60 \\
        --stored bf16 int4_gptq --quantized W4A16      # these cells alone
    python -m benchmarks.recovery --table docs/results/recovery --figure recovery.png

Every cell is written as soon as it is done; a run that was stopped goes on where it was, also
within a training. Formats after the same training share it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.packages import SetUpError

OUTPUT = Path("output/bench-recovery")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recovery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"{OUTPUT} by default")
    parser.add_argument("--data", type=Path, default=Path("output/bench-quality-data"))
    cells = parser.add_argument_group("cells (all combinations)")
    cells.add_argument("--models", nargs="+", metavar="NAME", help="default: smollm2 smolav")
    cells.add_argument(
        "--pruning", nargs="+", default=["best"], help='as in benchmarks.quality, or "dense"'
    )
    cells.add_argument("--settings", nargs="+", default=["50", "2:4", "60", "70"])
    length = cells.add_mutually_exclusive_group()
    length.add_argument("--minutes", nargs="+", type=float, help="of training; default: 0 1 10 60")
    length.add_argument("--tokens", nargs="+", type=int, help="of training instead of minutes")
    cells.add_argument(
        "--quantized", nargs="*", default=[], metavar="SCHEME", help="also train against these"
    )
    cells.add_argument(
        "--stored", nargs="*", default=["bf16"], help="formats after training, as in the Pareto"
    )
    cells.add_argument("--seeds", nargs="+", type=int, default=[0], help="of calibration; 0")
    training = parser.add_argument_group("training (as in tamp recover)")
    training.add_argument("--learning-rate", type=float)
    training.add_argument("--train")
    training.add_argument("--batch-size", type=int)
    training.add_argument("--accumulation", type=int)
    training.add_argument("--hidden", type=float)
    training.add_argument("--threads", type=int, default=1, help="1")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--prepare", action="store_true", help="fetch texts, then stop")
    only.add_argument("--table", type=Path, metavar="FOLDER", help="print these results, then stop")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the results")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="write one file a model")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its status."""
    try:
        _main(parser().parse_args(arguments))
    except (ValueError, OSError, RuntimeError, SetUpError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _main(args: argparse.Namespace) -> None:
    from benchmarks.recovery.runner import CELLS

    if args.table is not None:
        if not args.table.is_dir():
            raise ValueError(f"--table {args.table} is not a folder")
        _show(args.table, args)
        return
    _measure(args)
    if not args.prepare:
        _show(args.output / CELLS, args)


def _measure(args: argparse.Namespace) -> None:
    """Fetch what is needed or, without --prepare, run the cells that are missing."""
    from benchmarks.recovery.models import MODELS
    from benchmarks.recovery.plan import Amount, plan
    from benchmarks.recovery.runner import Runner, set_threads

    names = list(dict.fromkeys(args.models or MODELS))
    for name in names:
        if name not in MODELS:
            raise ValueError(f"unknown model {name!r}; known are {', '.join(MODELS)}")
    if args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}")
    if args.tokens is not None:
        amounts = [Amount("tokens", number) for number in args.tokens]
    else:
        amounts = [Amount("minutes", number) for number in args.minutes or (0, 1, 10, 60)]
    ways = plan(args.pruning, args.settings, amounts, args.quantized, args.stored, args.seeds)
    options = _options(args)
    for way in ways:
        if way.amount.number:
            way.settings(options)  # what they refuse, they refuse now
    models = [MODELS[name](args.data) for name in names]
    if args.prepare:
        for model in models:
            model.prepare()
        return
    set_threads(args.threads)
    Runner(args.output, options, args.threads, _say).run(models, ways)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("learning_rate", "train", "batch_size", "accumulation", "hidden")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _show(source: Path, args: argparse.Namespace) -> None:
    """Print the table of what is finished, pack and draw it."""
    from benchmarks.recovery.results import load_folder, pack
    from benchmarks.recovery.table import markdown

    found = load_folder(source)
    print(markdown(found))
    if args.pack is not None:
        for path in pack(found, args.pack):
            print(f"wrote {path}")
    if args.figure is not None:
        from benchmarks.recovery.figure import draw

        print(f"wrote {draw(found, args.figure)}")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
