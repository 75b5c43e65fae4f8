"""Run the recipes and keep what comes out, or compare it with what came out before."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

# Read when torch, transformers and llm-compressor are imported, here and in child processes.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "LLM_COMPRESSOR_LOG_LEVEL": "ERROR",
}

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import benchmarks.same_results  # noqa: E402
from benchmarks.same_results.files import SameResultsError, read, write  # noqa: E402
from benchmarks.same_results.outcome import Outcome, differences  # noqa: E402
from benchmarks.same_results.recipes import RECIPES  # noqa: E402
from benchmarks.same_results.running import run, run_child  # noqa: E402


def run_all(names: Sequence[str]) -> tuple[dict[str, Outcome], dict[str, str]]:
    """Return the outcome of every recipe, and of those that fail the message."""
    outcomes, failures = {}, {}
    for name in names:
        begin = time.perf_counter()
        try:
            outcomes[name] = run(name)
        except Exception as error:
            # The others still tell something about a change that breaks this one.
            traceback.print_exc()
            failures[name] = f"{type(error).__name__}: {error}"
        print(f"{name}: {time.perf_counter() - begin:.1f} s", flush=True)
    return outcomes, failures


def compare(
    before: Mapping[str, Outcome], after: Mapping[str, Outcome], failures: Mapping[str, str]
) -> tuple[Table, bool]:
    """One row a recipe, and whether all recipes give the same."""
    table = Table("recipe", title_justify="left")
    table.add_column("Linears", justify="right")
    table.add_column("result", overflow="fold")
    all_same = True
    for name, old in before.items():
        found = differences(old, after[name]) if name in after else []
        if name in failures:
            told = f"failed: {failures[name].splitlines()[0]}"
        elif found:
            told = f"{len(found)} differ, first {found[0]}"
        else:
            told = "same"
        all_same = all_same and told == "same"
        table.add_row(name, str(len(old["linears"])), told)
    return table, all_same


def main() -> int:
    """Parse the arguments, runs the recipes, and writes or compares; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.same_results",
        description=(benchmarks.same_results.__doc__ or "").split("\n")[0],
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, help="run the recipes and keep what comes out")
    what.add_argument("--against", type=Path, help="run them and compare with a file of --output")
    what.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="recipes; all by default")
    args = parser.parse_args()
    if args.child:
        run_child(args.child[0], Path(args.child[1]))
        return 0
    names = list(args.only or RECIPES)
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        parser.error(f"--only must name some of {', '.join(RECIPES)}; got {', '.join(unknown)}")
    if args.output:
        if not args.output.parent.is_dir():
            parser.error(f"--output must be in a folder that exists, got {args.output}")
        outcomes, failures = run_all(names)
        if failures:
            print(f"failed, nothing written: {', '.join(failures)}", file=sys.stderr)
            return 1
        write(args.output, outcomes)
        return 0
    try:
        before = read(args.against, names)
    except SameResultsError as error:
        parser.error(str(error))
    table, all_same = compare(before, *run_all(names))
    Console().print(table)
    return 0 if all_same else 1


if __name__ == "__main__":
    sys.exit(main())
