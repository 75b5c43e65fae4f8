"""`benchmarks/kernels.py` runs from end to end; what it measures is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "kernels.py"


def test_every_kernel_is_measured(tmp_path: Path) -> None:
    sizes = ["--shapes", "64x96", "--rows", "1", "9", "--sparsities", "0.5", "--rounds", "3"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *sizes, "--markdown", "--output", "result.json"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    data = json.loads((tmp_path / "result.json").read_text())
    assert [result["rows"] for result in data["results"]] == [1, 9]
    for result in data["results"]:
        assert "torch" in result["dense_seconds"]
        assert ("oneDNN" in result["dense_seconds"]) != (
            "torch's oneDNN is left out" in done.stdout
        )
        assert result["sparse_seconds"] > 0 and result["ratio"] > 0 and result["limit"] > 1
    one, many = data["results"]
    assert one["huge_seconds"] > 0 and one["huge_ratio"] > 0 and many["huge_seconds"] is None
    assert {*one["page_bytes"]} == {"torch", "torch on huge pages", "sparse"}
    assert "Pages of the weights: torch 4 KB; torch on huge pages " in done.stdout
    assert data["machine"]["path"] and data["dtype"] == "bfloat16"
    assert "| 64x96 | 9 |" in done.stdout
