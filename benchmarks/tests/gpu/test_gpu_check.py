"""The GPU check: its steps end in time, and what its report says follows from its results.

`tests/serving/test_triton.py` runs the steps that need Triton.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import kernels, steps, tables
from tamp_modifier.sparse import gpu_table

ROOT = Path(__file__).parents[3]


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`gpu_check.sh` with the Python of the tests."""
    return subprocess.run(
        [str(ROOT / "benchmarks" / "gpu_check.sh"), *arguments],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.mark.slow
def test_every_method_prunes(tmp_path: Path) -> None:
    done = run_script("--small", "--steps", "prune", "--output", str(tmp_path))
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0, report
    results = report["steps"]["prune"]["results"]
    assert [result["method"] for result in results] == ["Wanda", "TAMP", "best"]
    for result in results:
        assert result["passed"] and result["seconds"] > 0 and result["host_bytes"] > 100e6
    assert "| best |" in done.stdout


def test_a_step_that_takes_too_long_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = 'import sys,time; print(\'{"kind": "first"}\', flush=True); time.sleep(60)'
    monkeypatch.setattr(steps, "command", lambda name, small: [sys.executable, "-c", endless])
    kept: list[dict[str, Any]] = []
    begin = time.monotonic()
    found = steps.run_apart("prune", True, False, 3.0, kept.append)
    assert (found["status"], found["message"]) == ("cut off", "after 3 s")
    assert kept == [{"kind": "first"}] and time.monotonic() - begin < 30


def test_a_step_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "raise RuntimeError('no luck')"
    monkeypatch.setattr(steps, "command", lambda name, small: [sys.executable, "-c", code])
    kept: list[dict[str, Any]] = []
    found = steps.run_apart("prune", True, False, 60.0, kept.append)
    assert not kept and found["status"] == "failed" and "RuntimeError: no luck" in found["message"]


def test_without_a_gpu_only_the_small_check_runs(tmp_path: Path) -> None:
    done = run_script("--output", str(tmp_path / "never"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and not (tmp_path / "never").exists()
    assert "torch sees no GPU; --small runs everything tiny on the CPU" in done.stderr


def test_wheels_are_installed_without_an_index(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    done = run_script("--wheels", str(wheels), "--help")
    assert done.returncode == 2
    assert f"error: --wheels {wheels}: no file *.whl is there" in done.stderr
    with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as wheel:
        folder = "carried-1.0.dist-info"
        wheel.writestr("sitecustomize.py", "import sys; print('carried', file=sys.stderr)")
        wheel.writestr(f"{folder}/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: a\n")
        wheel.writestr(f"{folder}/RECORD", "")
    done = run_script("--wheels", str(wheels), "--help")
    assert done.returncode == 0, done.stderr
    assert "carried" in done.stderr and "--write-table" in done.stdout


# ---- what follows from the results ---------------------------------------------------------------


def kernel(kind: str, rows: int, sparse: float, expanded: float, shape: int = 64) -> dict[str, Any]:
    """Times of one product."""
    return {
        "kind": f"kernel {kind}",
        "shape": [shape, shape],
        "sparsity": 0.5,
        "rows": rows,
        "dense_seconds": 2e-6,
        "sparse_seconds": sparse,
        "expanded_seconds": expanded,
        "bytes": 4096,
        "error": 0.0,
        "passed": True,
    }


RESULTS = [
    {"kind": "tiling float", "rows": 1, "tiling": [8, 4], "seconds": 2e-6},
    {"kind": "tiling float", "rows": 1, "tiling": [4, 2], "seconds": 1e-6},
    {"kind": "tiling float", "rows": 2, "tiling": [2, 1], "seconds": 3e-6},
    kernel("float", 1, 1e-6, 4e-6),
    kernel("float", 2, 2e-6, 4e-6),
    kernel("float", 2, 2e-6, 1.5e-6, shape=128),  # slower on one shape, faster on the mean
    kernel("float", 4, 4e-6, 3e-6),
    kernel("float", 8, 1e-6, 3e-6),  # behind a number of rows that is slower
]


def report_of(results: list[dict[str, Any]], gpu: str | None = "A card") -> dict[str, Any]:
    """A report whose step "float" has these results."""
    step = {"status": "done", "seconds": 1.0, "message": "", "results": results}
    return {
        "format": "tamp-gpu-check",
        "small": False,
        "machine": {"gpu": gpu, "torch": "2.13.0", "date": "2026-01-01"},
        "steps": {"float": step},
        "suggested": kernels.suggested(results),
    }


def test_the_suggestion_follows_from_the_times() -> None:
    assert kernels.suggested(RESULTS) == {
        "float": {"sparse_rows": 2, "tilings": {"1": [4, 2], "2": [2, 1]}}
    }
    assert (
        kernels.suggested([kernel("float", 1, 2e-6, 1e-6), *RESULTS[:3]])["float"]["sparse_rows"]
        == 0
    )
    assert kernels.suggested(RESULTS[:3]) == {}


@pytest.mark.parametrize("rows", kernels.FEW_ROWS)
def test_every_candidate_is_allowed_in_the_table(rows: int) -> None:
    found = kernels.candidates(rows, small=False)
    assert len(found) == len(set(found)) >= 3
    entry = {"sparse_rows": 1, "tilings": {}}
    for tiling in found:
        card = dict.fromkeys(gpu_table.KINDS, {**entry, "tilings": {str(rows): [*tiling]}})
        table = {"format": "tamp-gpu-table", "version": 1, "cards": {"default": card}}
        assert gpu_table.parse(table, "t")["default"]["int8"].launch(rows) == (rows, *tiling)


def test_a_report_of_a_card_becomes_an_entry_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(gpu_table.PATH.read_text())
    before = json.loads(path.read_text())["cards"]["default"]
    assert tables.adopt(report_of(RESULTS), path) == "A card"
    content = json.loads(path.read_text())
    assert content["cards"]["default"] == before
    entry = content["cards"]["A card"]
    assert (entry["measured"], entry["int8"]) == ("2026-01-01", before["int8"])
    assert gpu_table.parse(content, "t")["A card"]["float"].launch(2) == (2, 2, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": {"gpu": None}}, "not written by the check on a GPU"),
        ({"small": True}, "suggests nothing"),
        ({"suggested": {}}, "suggests nothing"),
        ({"steps": {"check": {"status": "failed"}}}, "kernels failed on the card: check"),
    ],
)
def test_what_was_not_measured_well_stays_out_of_the_table(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    path.write_text(gpu_table.PATH.read_text())
    with pytest.raises(ValueError, match=message):
        tables.adopt({**report_of(RESULTS), **copy.deepcopy(change)}, path)
    assert path.read_text() == gpu_table.PATH.read_text()


def test_the_tables_follow_from_the_results() -> None:
    copied = {"kind": "copy", "bytes_per_second": 3e12}
    report = report_of([copied, *RESULTS])
    semi = {"kind": "2:4", "shape": [64, 64], "rows": 16, "class": "Sparse", "passed": True}
    semi |= {"dense_seconds": 3e-6, "sparse_seconds": 2e-6}
    pruned = {"kind": "pruning", "method": "TAMP", "seconds": 9.5, "sparsity": 0.5}
    pruned |= {"device_bytes": 3 << 29, "host_bytes": 1 << 30}
    failed = {"kind": "pruning", "method": "best", "passed": False, "message": "out of memory"}
    report["steps"] |= {
        "semi": {"status": "done", "seconds": 1.0, "message": "", "results": [semi]},
        "prune": {"status": "cut off", "seconds": 1.0, "message": "", "results": [pruned, failed]},
    }
    text = tables.markdown(report)
    assert "A copy moves 3000 GB/s" in text
    assert "| 64x64 | 50% | 1 | 2.0 | - | 1.0 | 2.00 | 4.0 | 4 |" in text
    assert "| 64x64 | 16 | 3.0 | 2.0 | 1.50 | Sparse |" in text
    assert "| TAMP | 9.5 | 1.50 | 1.00 | 0.500 |" in text
    assert "| best | failed: out of memory |" in text
    assert '{"float": {"sparse_rows": 2' in text
