"""The pages of results, from docs/results, with the tables that the benchmarks themselves print.

Nothing is measured here. Each table has machine and date beside it, as its results record them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import calibration, kernels
from benchmarks.pareto import rows as pareto_rows
from benchmarks.pareto import speed as pareto_speed
from benchmarks.pareto import table as pareto_table
from benchmarks.quality import cells as quality_cells
from benchmarks.quality import table as quality_table
from benchmarks.recovery import results as recovery_results
from benchmarks.recovery import table as recovery_table
from benchmarks.serving import tables as serving_tables
from devtools.docs_site.pages import ROOT

RESULTS = ROOT / "docs" / "results"
CAPTION = re.compile(r"^\*\*(.+)\*\*$", re.MULTILINE)


def quality() -> str:
    """Return every comparison of pruning methods."""
    cells = quality_cells.load_folder(RESULTS / "quality")
    tables = quality_table.markdown(quality_table.blocks(cells))
    return _page(
        "Quality tables",
        "What each method keeps of each model, with 95 % intervals. [Which method keeps the "
        "most](../quality.md) says what is compared, how to read the tables and what follows. "
        "The first table has all comparisons of the preset, retained accuracy in points and NLL "
        "in nats per answer token; bold: the preset is clearly ahead, italics: clearly behind.",
        "python -m benchmarks.quality --table docs/results/quality",
        _measured(cells),
        "![Accuracy and NLL against sparsity](../figures/quality.png)",
        CAPTION.sub(r"## \1", tables),
    )


def pareto() -> str:
    """Return pruning and quantization, alone and together: quality, size and speed."""
    own = quality_cells.load_folder(RESULTS / "pareto" / "quality")
    speeds = pareto_speed.load_folder(RESULTS / "pareto" / "speed")
    cells = pareto_rows.with_bf16(own, quality_cells.load_folder(RESULTS / "quality"))
    return _page(
        "Pruning and quantization",
        "Quality and size of every way to prune with every way to store what is left, and the "
        "speed in vLLM. NLL is bold where no other row is as small and as good. [How to "
        "choose](../choosing.md#does-it-pay) says what follows, and "
        "[the benchmarks](../benchmarks.md#does-sparsity-pay) how sizes are counted.",
        "python -m benchmarks.pareto --table docs/results/pareto --bf16 docs/results/quality",
        f"Quality: {_measured(own)}\n\nSpeed: {_measured(speeds)}",
        "![NLL against bits a weight](../figures/pareto.png)",
        pareto_table.markdown(pareto_rows.rows(cells, speeds)),
    )


def recovery() -> str:
    """Return what a training brings back of what pruning cost."""
    found = recovery_results.load_folder(RESULTS / "recovery")
    return _page(
        "Recovery",
        "What a training by the dense model brings back, without changing which weights are "
        "zero. A minute is a minute of one core where nothing else runs; the gap is the "
        "difference of NLL between the pruned and the dense model. "
        "[Recovery](../recovery.md#results) says what was trained on, and what follows.",
        "python -m benchmarks.recovery --table docs/results/recovery",
        _measured([result.cell for result in found]),
        "![What a training brings back](../figures/recovery.png)",
        CAPTION.sub(r"## \1", recovery_table.markdown(found)),
    )


def calibration_() -> str:
    """Return time and memory of pruning."""
    parts = []
    for path in sorted(RESULTS.glob("calibration-*.json"), reverse=True):
        found = _read(path)
        models = list(dict.fromkeys(run["model"] for run in found["results"]))
        samples = max(run["samples"] for run in found["results"])
        parts.append(f"## {calibration.MODELS[models[0]]}")
        parts.append(_provenance([found["machine"]], [found["date"][:10]], found["versions"]))
        parts.append(calibration.markdown(found["results"], models, samples))
    return _page(
        "Calibration",
        "Processor time and memory of pruning at 50 %, each method in a process of its own with "
        "one thread. The limit is the forward passes alone. [The "
        "benchmarks](../benchmarks.md#calibration-time-and-memory) explain what was seen.",
        "make bench-calibration",
        "",
        *parts,
    )


def kernels_() -> str:
    """Return the time of one Linear, sparse and dense."""
    parts = []
    for path in sorted(RESULTS.glob("kernels-*.json"), key=_order_of_kernels):
        found = _read(path)
        machine, (what, command) = found["machine"], _kernel(found)
        parts.append(f"## {what}, {machine['path']}")
        parts.append(f"`{command}`, [all numbers]({path.name}). One thread, microseconds.")
        parts.append(
            _provenance(
                [f"{machine['cpu']}, {machine['cores']} cores, path `{machine['path']}`"],
                [machine["date"]],
                {"torch": machine["torch"]},
            )
        )
        parts.append(kernels.table(found["results"], markdown=True))
    return _page(
        "Kernels",
        "How long one Linear takes, the sparse kernel beside each dense one. M is the number of "
        "rows of x. The ratio is the time of the fastest dense kernel over that of the sparse "
        "one, the limit is the ratio of the bytes of the weight. [The "
        "benchmarks](../benchmarks.md#kernels) explain where a ratio may exceed it. No GPU was "
        "measured.",
        "",
        "",
        *parts,
    )


def _kernel(found: Mapping[str, Any]) -> tuple[str, str]:
    """Return what was multiplied, and the command."""
    if "group_size" in found:
        return "4-bit weights", "make bench-kernels-int4"
    if found["dtype"] == "int8":
        return "INT8 weights and activations", "make bench-kernels-int8"
    return found["dtype"], "make bench-kernels"


def _order_of_kernels(path: Path) -> tuple[int, str]:
    """Return the place on the page: floating point, INT8, 4 bits; earlier runs first."""
    commands = ("make bench-kernels", "make bench-kernels-int8", "make bench-kernels-int4")
    found = _read(path)
    return commands.index(_kernel(found)[1]), found["machine"]["date"]


def serving() -> str:
    """Return memory and speed of vLLM, dense against sparse."""
    found = _read(RESULTS / "serving.json")
    return _page(
        "Serving",
        "Memory and speed of stock vLLM with dense bf16 weights, and of the plugin. [The "
        "benchmarks](../benchmarks.md#serving) say what the numbers show.",
        "make bench-serving",
        "",
        re.sub(r"^###", "##", serving_tables.markdown(found), flags=re.MULTILINE),
    )


PAGES: dict[str, Callable[[], str]] = {
    "results/quality.md": quality,
    "results/pareto.md": pareto,
    "results/recovery.md": recovery,
    "results/calibration.md": calibration_,
    "results/kernels.md": kernels_,
    "results/serving.md": serving,
}
"""Pages of the site, and what writes each."""


def _page(title: str, intro: str, command: str, measured: str, *parts: str) -> str:
    """Return the Markdown of a page."""
    shown = f"```bash\n{command}\n```" if command else ""
    return "\n\n".join(part for part in (f"# {title}", intro, shown, measured, *parts) if part)


def _measured(runs: Sequence[Any]) -> str:
    """Machines, days and versions of cells that record them."""
    versions: dict[str, set[str]] = {}
    for run in runs:
        for name, version in run.versions.items():
            versions.setdefault(name, set()).add(version)
    joined = {name: " and ".join(sorted(found)) for name, found in versions.items()}
    return _provenance([run.machine for run in runs], [run.date for run in runs], joined)


def _provenance(machines: Iterable[str], days: Iterable[str], versions: Mapping[str, str]) -> str:
    first, *rest = sorted(set(days))
    day = f"{first} to {rest[-1]}" if rest else first
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"*{'; '.join(sorted(set(machines)))}; {day}; {names}.*"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
