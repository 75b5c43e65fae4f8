"""How fast one Linear is solved: llm-compressor's SparseGPT solver against the project's.

One thread. Both take turns, and the fastest of the rounds counts, in processor seconds: that is
wall time on an idle machine, and leaves out the waiting on a busy one. Both get the same damped
Hessian, of inputs that go together; what is measured begins with it and ends with the pruned
weight. The table tells, too, how many weights are zero in one result only, and the error of ours on
the calibration tokens as a share of upstream's: upstream prunes one weight a block more than it is
asked for, so from the second block on the two decide on slightly different weights.

    python benchmarks/solver.py --output output/bench-solver.json
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight
from torch import Tensor, nn

from benchmarks.calibration import machine
from tamp_modifier.masks import parse_mask_structure
from tamp_modifier.scores.damping import damp
from tamp_modifier.scores.solver import factorize, solve

SHAPES = ("896x4864", "4864x896")
"""down_proj, and gate_proj or up_proj, of a language model of 0.5 billion parameters."""
SETTINGS = ("0:0", "0:0 by row", "2:4", "4:8")
SPARSITY = 0.5
Solver = Callable[[Tensor, Tensor], Tensor]


def problem(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return a weight [rows, columns], and the damped Hessian of inputs that go together."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    mixing.diagonal().add_(1.0)
    inputs = torch.randn(2 * columns, columns, generator=generator) @ mixing
    weight = torch.randn(rows, columns, generator=generator)
    return weight, damp(inputs.T @ inputs / len(inputs), len(inputs), 0.05)


def upstream(setting: str) -> Solver:
    """Return llm-compressor's solver, which overwrites its Hessian."""
    n, m = parse_mask_structure(setting.split()[0])

    def run(weight: Tensor, hessian: Tensor) -> Tensor:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        return sparsify_weight(linear, {linear: hessian}, SPARSITY, n, m, 128, 0.0, False)[1]

    return run


def ours(setting: str) -> Solver:
    """Return the project's solver."""
    structure, *by_row = setting.split(" ", 1)

    def run(weight: Tensor, hessian: Tensor) -> Tensor:
        return solve(weight, factorize(hessian), SPARSITY, structure, per_row=float(bool(by_row)))

    return run


def measure(rows: int, columns: int, setting: str, rounds: int) -> dict[str, Any]:
    """Run both solvers in turn on one Linear."""
    weight, hessian = problem(rows, columns)
    solvers = {"upstream": upstream(setting), "ours": ours(setting)}
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    found = {}
    for _ in range(rounds):
        for name, solver in solvers.items():
            own = hessian.clone()
            begin = time.process_time()
            found[name] = solver(weight, own)
            seconds[name].append(time.process_time() - begin)
    errors = {n: float((((w - weight) @ hessian) * (w - weight)).sum()) for n, w in found.items()}
    different = (found["ours"] == 0) != (found["upstream"] == 0)
    best = {name: min(times) for name, times in seconds.items()}
    return {
        "rows": rows,
        "columns": columns,
        "setting": setting,
        "seconds": best,
        "faster": best["upstream"] / best["ours"],
        "mask_differs": float(different.float().mean()),
        "error_ratio": errors["ours"] / errors["upstream"],
    }


def table(results: list[dict[str, Any]]) -> str:
    """All results in Markdown."""
    lines = [
        "| out x in | setting | upstream, s | ours, s | faster | masks differ "
        "| error, to upstream's |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        lines.append(
            f"| {r['rows']} x {r['columns']} | {r['setting']} | {r['seconds']['upstream']:.2f} "
            f"| {r['seconds']['ours']:.2f} | {r['faster']:.1f}x | {100 * r['mask_differs']:.3f} % "
            f"| {r['error_ratio']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments, measure, print and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="OUTxIN")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS, metavar="S")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file with all numbers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for shape in args.shapes:
        rows, columns = (int(size) for size in shape.split("x"))
        for setting in args.settings:
            results.append(measure(rows, columns, setting, args.rounds))
    print(table(results))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "torch": torch.__version__, "results": results}
        args.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
