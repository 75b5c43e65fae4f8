"""Prints the demo's table for docs/benchmarks.md: ``python -m devtools.demo_page``.

It reads docs/results/demo.json, a copy of what ``make demo`` leaves in output/demo.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parents[1] / "docs" / "results" / "demo.json"


def rows(data: dict[str, Any]) -> list[str]:
    """Return the table in Markdown, a row for each run."""
    found = [
        "| | zeros | size, MB | retained, pictures | retained, text | NLL, pictures | NLL, text |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for run in data["runs"]:
        name = f"{run['method']} {run['label']}".rstrip()
        shares = [f"{100 * run[f'{kind}_retention']:.1f} %" for kind in ("picture", "text")]
        losses = [f"{run['scores'][f'{kind}_nll']:.3f}" for kind in ("picture", "text")]
        size = [f"{100 * run['reached']:.1f} %", f"{run['size'] / 1e6:.1f}"]
        found.append(f"| {' | '.join([name, *size, *shares, *losses])} |")
    return found


if __name__ == "__main__":
    print("\n".join(rows(json.loads(RESULT.read_text(encoding="utf-8")))))
