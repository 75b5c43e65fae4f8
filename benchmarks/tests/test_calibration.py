"""`benchmarks/calibration.py` runs from end to end; what it measures is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "calibration.py"


@pytest.mark.slow
def test_calibration_measures_every_method(tmp_path: Path) -> None:
    arguments = ["--models", "box", "--samples", "2", "--repeats", "1", "--markdown"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, "--output", "result.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    data = json.loads((tmp_path / "result.json").read_text())
    methods = {run["method"] for run in data["results"] if run["samples"] == 2}
    assert methods == {"forward", "Wanda", "TAMP", "TAMP one_pass", "SparseGPT", "best"}
    for run in data["results"]:
        assert run["seconds"] > 0 and run["peak_bytes"] > 100e6
        pruned = 0.0 if run["method"] == "forward" else 0.5
        assert run["sparsity"] == pytest.approx(pruned, abs=0.01)
    assert "| TAMP one_pass |" in done.stdout
