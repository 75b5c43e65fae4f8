"""The table that the package ships is what the measurements in docs/results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.choice import make_table
from tamp_modifier.sparse import choice

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_the_shipped_table_is_made_from_the_results() -> None:
    shipped = json.loads(choice.TABLE_FILE.read_text())
    assert shipped == make_table(sorted(RESULTS.glob("kernels-*.json")))
    for ratios in choice.table().values():
        assert all(0 < ratio < 50 for by_rows in ratios.values() for ratio in by_rows.values())


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"dtype": "int8"}, "int8"),
        ({"group_size": 128, "int8_activations": False}, "int4"),
        ({"group_size": 128, "int8_activations": True}, "int4-int8"),
    ],
)
def test_a_table_of_results(tmp_path: Path, fields: dict[str, object], kind: str) -> None:
    def results(date: str, sparse_seconds: float, gpu: str | None = None) -> Path:
        file = tmp_path / f"{date}{gpu}.json"
        result = {"rows": 4, "sparsity": 0.5, "sparse_seconds": sparse_seconds}
        dense = [{"torch": 1.0, "vLLM W4A16": 2.0}, {"torch": 8.0}]
        rows = [result | {"dense_seconds": seconds} for seconds in dense]
        machine = {"path": "avx2", "cpu": "a", "gpu": gpu, "date": date}
        file.write_text(json.dumps({"machine": machine, **fields, "results": rows}))
        return file

    files = [results("2026-02-01", 2.0), results("2026-01-01", 1.0), results("2026-03-01", 1, "b")]
    (entry,) = make_table(files)["measured"]
    assert (entry["path"], entry["kind"], entry["date"]) == ("avx2", kind, "2026-02-01")
    assert entry["ratios"] == {"0.5": {"4": 2.0}}  # of 2 / 2 and 8 / 2, in the geometric mean
