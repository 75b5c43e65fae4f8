"""Measure every engine in a process of its own, bound to one core or to two; print the tables.

    python -m benchmarks.serving --output output/bench-serving.json

Runs in the serving environment. The JSON is written after every engine, so a run that is stopped
keeps what it has measured; ``--print FILE`` prints the tables of such a file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.serving.engine import PROMPT
from benchmarks.serving.models import MODELS
from benchmarks.serving.tables import markdown
from devtools.vllm_process import environment, run_limited

SPARSITIES = (0.5, 0.6, 0.7)
BATCHES = (1, 2, 4, 8, 16)
THREADS = (1, 2)
LIMIT = 240  # seconds for one engine


def cpu_name() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def run_engine(
    model: Path, threads: int, batches: list[int], plugin: bool, limit: float = LIMIT
) -> dict[str, Any]:
    """Measure in a process bound to `threads` cores; ``{"error": ...}`` if it fails."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    environ = environment(plugin) | {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "OMP_NUM_THREADS": str(threads),
    }
    with tempfile.TemporaryDirectory() as folder:
        output, log = Path(folder) / "result.json", Path(folder) / "log.txt"
        command = [sys.executable, "-m", "benchmarks.serving.engine", str(model), str(output)]
        command += ["--batches", *map(str, batches)]
        status = run_limited(command, environ, log, limit)
        if not output.exists():
            tail = log.read_text(errors="replace")[-3000:]
            print(f"the engine failed with status {status}:\n{tail}", file=sys.stderr)
            return {"error": f"status {status}"}
        return json.loads(output.read_text())


def write(path: Path, results: dict[str, Any]) -> None:
    """Write JSON to a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(results, indent=2) + "\n")
    partial.rename(path)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; a model is written, measured and removed before the next one."""
    results: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "vllm": importlib.metadata.version("vllm-cpu"),
        "torch": importlib.metadata.version("torch"),
        "prompt": PROMPT,
        "batches": arguments.batches,
        "models": {name: MODELS[name][1] for name in arguments.models},
        "runs": [],
    }
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        for model in arguments.models:
            for sparsity in dict.fromkeys([0.0, *arguments.sparsities]):
                folder = Path(work) / "model"
                MODELS[model][0](folder, sparsity)
                for threads in arguments.threads:
                    title = {"model": model, "sparsity": sparsity, "threads": threads}
                    print(
                        f"{time.monotonic() - begin:4.0f} s: {title}", file=sys.stderr, flush=True
                    )
                    measured = run_engine(folder, threads, arguments.batches, sparsity > 0)
                    results["runs"].append(title | measured)
                    results["seconds"] = time.monotonic() - begin
                    write(arguments.output, results)
                shutil.rmtree(folder)
    return results


def main() -> int:
    """Command line; status 1 if an engine failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description="Memory and speed of vLLM on CPU, stock dense against the plugin.",
    )
    parser.add_argument("--output", type=Path, default=Path("output/bench-serving.json"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--threads", nargs="+", type=int, default=list(THREADS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--print", type=Path, metavar="FILE", help="only print this JSON's tables")
    arguments = parser.parse_args()
    if arguments.print is not None:
        print(markdown(json.loads(arguments.print.read_text())))
        return 0
    # A run that is told to stop ends its engine first, and keeps what it has written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results = run(arguments)
    print(markdown(results))
    return int(any("error" in measured for measured in results["runs"]))


if __name__ == "__main__":
    sys.exit(main())
