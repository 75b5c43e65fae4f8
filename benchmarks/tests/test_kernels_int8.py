"""`benchmarks/kernels_int8.py` runs from end to end; what it measures is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_kernel_is_measured(tmp_path: Path) -> None:
    sizes = ["--shapes", "64x96", "--rows", "1", "9", "--sparsities", "0.5", "--rounds", "3"]
    output = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels_int8", *sizes, "--markdown", "--output", output],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    data = json.loads(output.read_text())
    assert [result["rows"] for result in data["results"]] == [1, 9]
    for result in data["results"]:
        for name in ("vLLM", "oneDNN", "FBGEMM", "_int_mm"):
            assert (name in result["dense_seconds"]) != (f"{name} is left out" in done.stdout)
        assert result["sparse_seconds"] > 0 and result["ratio"] > 0 and result["limit"] > 1
    assert data["machine"]["path"] and data["dtype"] == "int8"
    assert "| 64x96 | 9 |" in done.stdout
