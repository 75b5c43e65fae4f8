"""The results of the check in Markdown, and the table of the GPU that they suggest."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu.steps import STEPS
from tamp_modifier.files import write_json
from tamp_modifier.sparse import gpu_table

Result = dict[str, Any]


def _rows(head: list[str], lines: Iterable[list[str]]) -> list[str]:
    """Return a Markdown table, or nothing where it has no line."""
    lines = list(lines)
    if not lines:
        return []
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return ["", *("| " + " | ".join(line) + " |" for line in [head, rule, *lines])]


def _status(steps: dict[str, Result]) -> list[str]:
    lines = []
    for name, step in steps.items():
        last = (step["message"].strip().splitlines() or [""])[-1].replace("|", "/")
        lines.append([name, STEPS[name].about, step["status"], f"{step['seconds']:.0f}", last])
    return _rows(["step", "what", "status", "seconds", "why"], lines)


def _check(results: list[Result]) -> list[str]:
    kinds: dict[str, list[Result]] = {}
    for result in results:
        kinds.setdefault(result["kind"], []).append(result)
    return _rows(
        ["kernel", "products compared", "largest error (1 is allowed)", "passed"],
        [
            [
                kind,
                str(sum(r["compared"] for r in found)),
                f"{max(r['error'] for r in found):.2f}",
                "yes" if all(r["passed"] for r in found) else "NO",
            ]
            for kind, found in kinds.items()
        ],
    )


def _shape(result: Result) -> str:
    return "x".join(map(str, result["shape"]))


def _kernels(results: list[Result]) -> list[str]:
    copies = [r["bytes_per_second"] for r in results if r["kind"] == "copy"]
    lines = [f"A copy moves {copies[0] / 1e9:.0f} GB/s, read and written."] if copies else []
    head = ["out x in", "sparsity", "M", "cuBLAS bf16 µs", "dense INT8 µs", "sparse µs"]
    head += ["to cuBLAS", "expand and dense µs", "sparse GB/s"]
    table = []
    for result in results:
        if not result["kind"].startswith("kernel "):
            continue
        sparse, same = result["sparse_seconds"], result.get("same_dense_seconds")
        table.append(
            [
                _shape(result),
                f"{result['sparsity']:.0%}",
                str(result["rows"]),
                f"{result['dense_seconds'] * 1e6:.1f}",
                "-" if same is None else f"{same * 1e6:.1f}",
                f"{sparse * 1e6:.1f}",
                f"{result['dense_seconds'] / sparse:.2f}",
                f"{result['expanded_seconds'] * 1e6:.1f}",
                f"{result['bytes'] / sparse / 1e9:.0f}",
            ]
        )
    return ([""] if lines else []) + lines + _rows(head, table)


def _semi(results: list[Result]) -> list[str]:
    return _rows(
        ["out x in", "M", "cuBLAS µs", "2:4 µs", "to cuBLAS", "class"],
        [
            [
                _shape(r),
                str(r["rows"]),
                f"{r['dense_seconds'] * 1e6:.1f}",
                f"{r['sparse_seconds'] * 1e6:.1f}",
                f"{r['dense_seconds'] / r['sparse_seconds']:.2f}",
                r["class"],
            ]
            for r in results
        ],
    )


def _prune(results: list[Result]) -> list[str]:
    head = ["method", "seconds", "peak on the card, GiB", "peak on the host, GiB", "sparsity"]
    lines = []
    for result in results:
        if "message" in result:
            lines.append([result["method"], "failed: " + result["message"][:100], "", "", ""])
            continue
        device = result["device_bytes"]
        lines.append(
            [
                result["method"],
                f"{result['seconds']:.1f}",
                "-" if device is None else f"{device / 2**30:.2f}",
                f"{result['host_bytes'] / 2**30:.2f}",
                f"{result['sparsity']:.3f}",
            ]
        )
    return _rows(head, lines)


SECTIONS = {
    "check": _check,
    "float": _kernels,
    "semi": _semi,
    "int8": _kernels,
    "int4": _kernels,
    "prune": _prune,
}


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown; steps that have no result yet are in the first table alone."""
    machine = report["machine"]
    text = [f"# GPU check: {machine['gpu'] or 'no GPU, Triton interpreted'}", ""]
    text += [f"torch {machine['torch']}, {machine['date']}."]
    text += _status(report["steps"])
    for name, section in SECTIONS.items():
        results = report["steps"].get(name, {}).get("results", [])
        if results:
            text += ["", f"## {STEPS[name].about}", *section(results)]
    if report["suggested"]:
        text += ["", "## Suggested entry of gpu_table.json", "", "```json"]
        text += [json.dumps(report["suggested"]), "```"]
    return "\n".join(text) + "\n"


def adopt(report: dict[str, Any], path: Path = gpu_table.PATH) -> str:
    """Write what a report suggests for its card into the table of the GPU.

    Kinds of weights that it did not measure keep the numbers of the table.

    Args:
        report: JSON of a run on a card.
        path: the table.

    Returns:
        The name of the card.

    Raises:
        ValueError: the report was not measured on a GPU, suggests nothing, or a result was wrong.
    """
    card = report.get("machine", {}).get("gpu")
    if report.get("format") != "tamp-gpu-check" or not card:
        raise ValueError("the report was not written by the check on a GPU")
    if report["small"] or not report["suggested"]:
        raise ValueError("the report suggests nothing: no kernels were measured at full size")
    wrong = [name for name, step in report["steps"].items() if step["status"] == "failed"]
    if set(wrong) & {"check", *gpu_table.KINDS}:
        raise ValueError(f"kernels failed on the card: {', '.join(wrong)}")
    content = json.loads(path.read_text())
    before = content["cards"].get(card, content["cards"][gpu_table.DEFAULT])
    entry = {**before, **report["suggested"], "measured": report["machine"]["date"]}
    content["cards"][card] = entry
    gpu_table.parse(content, path.name)
    write_json(path, content)
    return card
