"""The benchmarks run from end to end; what they measure is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving.tables import markdown

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_calibration_measures_every_method(tmp_path: Path) -> None:
    script = str(ROOT / "benchmarks" / "calibration.py")
    arguments = ["--models", "box", "--samples", "2", "--repeats", "1", "--markdown"]
    done = subprocess.run(
        [sys.executable, script, *arguments, "--output", "result.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    data = json.loads((tmp_path / "result.json").read_text())
    methods = {run["method"] for run in data["results"] if run["samples"] == 2}
    assert methods == {"forward", "Wanda", "TAMP", "TAMP one_pass", "SparseGPT"}
    for run in data["results"]:
        assert run["seconds"] > 0 and run["peak_bytes"] > 100e6
        pruned = 0.0 if run["method"] == "forward" else 0.5
        assert run["sparsity"] == pytest.approx(pruned, abs=0.01)
    assert "| TAMP one_pass |" in done.stdout


def _run(sparsity: float, threads: int, seconds: float, size: int) -> dict[str, Any]:
    kind = "sparse" if sparsity else "dense"
    return {
        "model": "small",
        "sparsity": sparsity,
        "threads": threads,
        "weights": {"sparse": 0, "dense": 0, "head": 100} | {kind: size},
        "resident_bytes": 3 << 20,
        "peak_bytes": 4 << 20,
        "load_s": 1.5,
        "bandwidth": 1000.0,
        "prefill": {"1": 0.5, "4": 2.0},
        "decode": {"1": seconds, "4": 2 * seconds},
    }


def test_the_tables_of_serving_follow_from_its_json() -> None:
    results: dict[str, Any] = {
        "cpu": "a CPU",
        "cores": 2,
        "date": "2026-01-01T00:00",
        "vllm": "0.32.0",
        "prompt": 64,
        "batches": [1, 4],
        "models": {"small": "a small model", "other": "not yet measured"},
        "runs": [_run(0.0, 1, 0.2, 900), _run(0.5, 1, 0.1, 400)],
    }
    text = markdown(results)
    assert "| 1 | stock dense | 5 | 10 | 1 |" in text
    # Twice as fast; 1000 bytes a step against 500.
    assert "| 1 | 50% sparse | 10 (2.00x) | 20 (2.00x) | 2 (2.00x) |" in text
    assert "| 1 | 50% sparse | 128 (1.00x) | 128 (1.00x) |" in text
    assert "| 50% sparse | 0.0 (0.44x) | 3 | 4 | 1.5 |" in text
    assert "not yet measured" not in text
    # A run that was stopped, or lost its dense engine, is printed without ratios.
    results["runs"] = [_run(0.5, 2, 0.1, 400), {**_run(0.6, 2, 0.1, 400), "error": "status 1"}]
    text = markdown(results)
    assert "| 2 | 50% sparse | 10 | 20 | 2 |" in text
    assert "small, 60% sparse, 2 thread(s): failed" in text
