"""Make the table by which weights are served sparse or dense, from results of kernels.py.

    python -m benchmarks.choice docs/results/kernels-*.json

Writes tamp_modifier/sparse/choice.json. A ratio is the time of the dense kernel that a Linear would
go back to, vLLM's own where it was measured, over that of the sparse one: the geometric mean of all
shapes. Files of GPUs, and such without a path of the native library, are left out.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from tamp_modifier.sparse.choice import TABLE_FILE
from tamp_modifier.sparse.native import TORCH

SERVED_BY = "vLLM"
"""Begins the names of the dense kernels as vLLM calls them."""


def dense_seconds(result: dict[str, Any]) -> float:
    """Time of the dense kernel that vLLM would use, or of the fastest one."""
    seconds = result["dense_seconds"]
    served = [time for name, time in seconds.items() if name.startswith(SERVED_BY)]
    return min(served or seconds.values())


def kind_of(content: dict[str, Any]) -> str:
    """Kind of number of a file of results, as `tamp_modifier.sparse.choice.choose` takes it."""
    if "group_size" not in content:
        return content["dtype"]
    return "int4-int8" if content["int8_activations"] else "int4"


def entry(content: dict[str, Any]) -> dict[str, Any]:
    """One entry of the table, from one file of results."""
    found: dict[float, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in content["results"]:
        ratio = dense_seconds(result) / result["sparse_seconds"]
        found[result["sparsity"]][result["rows"]].append(ratio)
    machine = content["machine"]
    return {
        "path": machine["path"],
        "kind": kind_of(content),
        "cpu": machine["cpu"],
        "date": machine["date"],
        "ratios": {
            str(sparsity): {str(rows): round(geometric_mean(r), 3) for rows, r in by_rows.items()}
            for sparsity, by_rows in found.items()
        },
    }


def make_table(files: list[Path]) -> dict[str, Any]:
    """Return the whole table; of two files with one path and kind the later one counts."""
    contents = [json.loads(file.read_text()) for file in files]
    entries = [
        entry(content)
        for content in contents
        if not content["machine"]["gpu"] and content["machine"]["path"] != TORCH
    ]
    latest = {(e["path"], e["kind"]): e for e in sorted(entries, key=lambda e: e["date"])}
    return {"measured": [latest[key] for key in sorted(latest)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="JSON", help="results of kernels.py")
    parser.add_argument("--output", type=Path, default=TABLE_FILE)
    args = parser.parse_args()
    args.output.write_text(json.dumps(make_table(args.files), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
