"""`benchmarks/solver.py` runs from end to end; how fast either is is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_both_solvers_are_measured_and_agree(tmp_path: Path) -> None:
    sizes = ["--shapes", "48x256", "--rounds", "1", "--output", "result.json"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "solver.py"), *sizes],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "result.json").read_text())["results"]
    assert [r["setting"] for r in results] == ["0:0", "0:0 by row", "2:4", "4:8"]
    for r in results:
        assert min(r["seconds"].values()) > 0
        assert r["mask_differs"] < (0.2 if "row" in r["setting"] else 0.01)
        assert 0.9 < r["error_ratio"] < 1.1
    assert "| 48 x 256 | 2:4 |" in done.stdout
