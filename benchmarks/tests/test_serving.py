"""The tables of serving follow from its JSON."""

from __future__ import annotations

from typing import Any

from benchmarks.serving.tables import markdown


def run_of(sparsity: float, threads: int, seconds: float, size: int) -> dict[str, Any]:
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
        "runs": [run_of(0.0, 1, 0.2, 900), run_of(0.5, 1, 0.1, 400)],
    }
    text = markdown(results)
    assert "| 1 | stock dense | 5 | 10 | 1 |" in text
    # Twice as fast; 1000 bytes a step against 500.
    assert "| 1 | 50% sparse | 10 (2.00x) | 20 (2.00x) | 2 (2.00x) |" in text
    assert "| 1 | 50% sparse | 128 (1.00x) | 128 (1.00x) |" in text
    assert "| 50% sparse | 0.0 (0.44x) | 3 | 4 | 1.5 |" in text
    assert "not yet measured" not in text
    # A run that was stopped, or lost its dense engine, is printed without ratios.
    results["runs"] = [run_of(0.5, 2, 0.1, 400), {**run_of(0.6, 2, 0.1, 400), "error": "status 1"}]
    text = markdown(results)
    assert "| 2 | 50% sparse | 10 | 20 | 2 |" in text
    assert "small, 60% sparse, 2 thread(s): failed" in text
