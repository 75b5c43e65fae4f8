"""The tables of the benchmark, from its JSON, whole or cut short."""

from __future__ import annotations

from typing import Any

MIB = 1 << 20
Run = dict[str, Any]


def step_bytes(run: Run) -> int:
    """Bytes of weights that one decode step reads."""
    return sum(run["weights"][kind] for kind in ("sparse", "dense", "head"))


def label(run: Run) -> str:
    """Return a row's name."""
    return f"{run['sparsity']:.0%} sparse" if run["sparsity"] else "stock dense"


def markdown(results: dict[str, Any]) -> str:
    """Memory and loading, decode and prefill with their ratios to dense; what was measured."""
    lines: list[str] = []
    for model, description in results["models"].items():
        runs = [run for run in results["runs"] if run["model"] == model and "error" not in run]
        if not runs:
            continue
        dense = {run["threads"]: run for run in runs if not run["sparsity"]}
        lines += ["", f"### {description}", ""]
        lines += _memory(runs, dense)
        for key in ("decode", "prefill"):
            lines += _speed(runs, dense, key, results["batches"], results["prompt"])
    for run in results["runs"]:
        if "error" in run:
            lines += ["", f"{run['model']}, {label(run)}, {run['threads']} thread(s): failed"]
    lines += [
        "",
        f"{results['cpu']}, {results['cores']} cores, {results['date'][:10]}, "
        f"vLLM {results['vllm']} on CPU, eager, bf16; prompts of {results['prompt']} tokens. "
        "The limit is for batch size 1: the read bandwidth, measured, over the bytes of the "
        "weights that a step reads; in brackets the ratio of these bytes. Memory is what the "
        "process holds more than before the load, without mapped files such as the checkpoint's.",
    ]
    return "\n".join(lines).lstrip()


def _ratio(value: float, base: float | None) -> str:
    return "" if base is None else f" ({value / base:.2f}x)"


def _memory(runs: list[Run], dense: dict[int, Run]) -> list[str]:
    lines = [
        "| | Linears, MiB (of dense) | resident after load, MiB | peak of load, MiB | load, s |",
        "|---|---:|---:|---:|---:|",
    ]
    threads = runs[0]["threads"]
    base = dense.get(threads)
    for run in runs:
        if run["threads"] != threads:
            continue
        size = run["weights"]["sparse"] + run["weights"]["dense"]
        ratio = _ratio(size, base["weights"]["dense"] if base and run["sparsity"] else None)
        lines.append(
            f"| {label(run)} | {size / MIB:.1f}{ratio} | {run['resident_bytes'] / MIB:.0f} "
            f"| {run['peak_bytes'] / MIB:.0f} | {run['load_s']:.1f} |"
        )
    return lines


def _speed(
    runs: list[Run], dense: dict[int, Run], key: str, batches: list[int], prompt: int
) -> list[str]:
    limited = key == "decode"
    tokens = 1 if limited else prompt
    lines = ["", f"{key.capitalize()}, tokens/s (ratio to dense), by batch size:", ""]
    titles = ["threads", "", *map(str, batches), *(["limit"] if limited else [])]
    lines += ["| " + " | ".join(titles) + " |", "|---:|---" + "|---:" * (len(titles) - 2) + "|"]
    for run in sorted(runs, key=lambda run: (run["threads"], run["sparsity"])):
        base = dense.get(run["threads"]) if run["sparsity"] else None
        cells = [str(run["threads"]), label(run)]
        for batch in map(str, batches):
            speed = int(batch) * tokens / run[key][batch]
            before = int(batch) * tokens / base[key][batch] if base else None
            cells.append(f"{speed:.0f}" + _ratio(speed, before))
        if limited:
            bound = run["bandwidth"] / step_bytes(run)
            less = f" ({step_bytes(base) / step_bytes(run):.2f}x)" if base else ""
            cells.append(f"{bound:.0f}{less}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines
