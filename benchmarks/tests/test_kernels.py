"""`benchmarks/kernels.py` runs from end to end; what it measures is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_every_kernel_is_measured(tmp_path: Path) -> None:
    script = str(ROOT / "benchmarks" / "kernels.py")
    sizes = ["--shapes", "64x96", "--rows", "1", "9", "--sparsities", "0.5", "--rounds", "3"]
    done = subprocess.run(
        [sys.executable, script, *sizes, "--markdown", "--output", str(tmp_path / "result.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    data = json.loads((tmp_path / "result.json").read_text())
    assert [result["rows"] for result in data["results"]] == [1, 9]
    for result in data["results"]:
        assert {"torch", "oneDNN"} <= result["dense_seconds"].keys()
        assert result["sparse_seconds"] > 0 and result["ratio"] > 0 and result["limit"] > 1
    assert data["machine"]["path"] and data["dtype"] == "bfloat16"
    assert "| 64x96 | 9 |" in done.stdout
