"""The GPU check: steps of limited time, and a report that is whole after each of them.

    benchmarks/gpu_check.sh [--wheels FOLDER] [--output FOLDER] [--small] [--steps check float ...]
    python -m benchmarks.gpu --write-table output/gpu-check/gpu.json

The first measures; the second takes what a card's report suggests over into gpu_table.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.gpu import steps

OUTPUT = Path("output/gpu-check")
LIMIT = 570.0
"""Seconds of all steps together."""
SAVE_EVERY = 5.0
"""Seconds between two reports while a step runs."""


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    import torch

    card = torch.cuda.is_available()
    found = {
        "gpu": torch.cuda.get_device_name() if card else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "date": date.today().isoformat(),
    }
    for name in ("triton", "transformers", "llmcompressor"):
        found[name] = _version(name)
    return found


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def save(report: dict[str, Any], output: Path) -> None:
    """Write the report as JSON and as Markdown."""
    from benchmarks.gpu import kernels, tables
    from tamp_modifier.files import write_json

    report["suggested"] = kernels.suggested(
        [result for step in report["steps"].values() for result in step["results"]]
    )
    write_json(output / "gpu.json", report)
    (output / "gpu.md").write_text(tables.markdown(report))


def run(names: list[str], small: bool, limit: float, output: Path) -> dict[str, Any]:
    """Run the steps one after another; the report is written while they run.

    Args:
        names: of `steps.STEPS`.
        small: tiny shapes, and the demo model; what a CPU can interpret.
        limit: seconds of all steps together.
        output: folder of the report.
    """
    output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "format": "tamp-gpu-check",
        "format_version": 1,
        "machine": machine(),
        "small": small,
        "steps": {},
    }
    card = report["machine"]["gpu"] is not None
    begin = saved = time.monotonic()
    for name in names:
        results: list[dict[str, Any]] = []
        step = {"status": "running", "seconds": 0.0, "message": "", "results": results}
        report["steps"][name] = step

        def keep(result: dict[str, Any], results: list[dict[str, Any]] = results) -> None:
            nonlocal saved
            results.append(result)
            if time.monotonic() - saved > SAVE_EVERY:
                saved = time.monotonic()
                save(report, output)

        left = limit - (time.monotonic() - begin)
        if left <= 0:
            step.update(status="left out", message="no time is left")
        else:
            # A busy CPU interprets at any speed: there the limit of all steps is the only one.
            seconds = min(left, steps.STEPS[name].limit) if card else left
            step.update(steps.run_apart(name, small, card, seconds, keep))
        print(f"{name}: {step['status']} after {step['seconds']:.0f} s", flush=True)
        save(report, output)
    return report


def main() -> int:
    """Run what the arguments ask for; 1 where a step failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder (%(default)s)")
    parser.add_argument("--steps", nargs="+", choices=steps.STEPS, default=list(steps.STEPS))
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds in all (%(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny; runs without a GPU, too")
    parser.add_argument("--write-table", type=Path, metavar="JSON", help="adopt a card's report")
    parser.add_argument("--step", choices=steps.STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.limit <= 0:
        parser.error(f"--limit must be above 0 seconds, got {args.limit}")
    if args.step:
        steps.run_here(args.step, args.small)
        return 0
    if args.write_table:
        from benchmarks.gpu import tables

        try:
            card = tables.adopt(json.loads(args.write_table.read_text()))
        except (OSError, ValueError) as error:
            parser.error(f"--write-table {args.write_table}: {error}")
        print(f"gpu_table.json has an entry for {card}")
        return 0
    import torch

    if not args.small and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --small runs everything tiny on the CPU, interpreted")
    report = run(args.steps, args.small, args.limit, args.output)
    print((args.output / "gpu.md").read_text())
    return int(any(step["status"] == "failed" for step in report["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
