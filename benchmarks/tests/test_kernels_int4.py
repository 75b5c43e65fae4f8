"""`benchmarks/kernels_int4.py` runs from end to end; what it measures is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("options", [[], ["--int8-activations"]])
def test_every_kernel_is_measured(tmp_path: Path, options: list[str]) -> None:
    sizes = ["--shapes", "64x256", "--rows", "1", "9", "--sparsities", "0.5", "--rounds", "3"]
    output = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.kernels_int4", *sizes, *options]
    done = subprocess.run(
        [*command, "--markdown", "--output", str(output)],
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
        assert "torch bf16" in result["dense_seconds"]
        assert ("vLLM W4A16" in result["dense_seconds"]) != ("vLLM W4A16 is left" in done.stdout)
        assert result["sparse_seconds"] > 0 and result["ratio"] > 0 and result["limit"] > 1
    assert data["group_size"] == 128 and data["int8_activations"] == bool(options)
    assert "| 64x256 | 9 |" in done.stdout
