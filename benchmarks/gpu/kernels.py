"""Times of the Triton kernels against cuBLAS, of torch's 2:4, and the choices that follow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.weights import Case, float_case, int4_case, int8_case
from benchmarks.kernels import SHAPES, SPARSITIES, fastest, seconds_of
from tamp_modifier.sparse import gpu_table
from tamp_modifier.sparse.gpu_table import Choice

BF16 = torch.bfloat16
FEW_ROWS = (1, 2, 4, 8, 16, 32)
"""Of x; the tilings of these are tuned."""
MORE_ROWS = (64, 128)
"""Where the sparse kernel may still be ahead of expansion and cuBLAS."""
MANY_ROWS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
WARPS = (2, 4, 8)
"""Of a program, which has four rows of the weight: 1024 programs where there are 4096 rows."""
SCRATCH_BYTES = 1 << 30
"""Written before each call: empties the level-2 cache, and gives the host time to launch."""
MAKERS = {
    "float": partial(float_case, dtype=BF16),
    "int8": partial(int8_case, dtype=BF16),
    "int4": partial(int4_case, dtype=BF16),
}


@dataclass(frozen=True)
class Sizes:
    """What is measured: everything, or what the interpreter can do.

    Attributes:
        shapes: ``(out, in)`` of the weights.
        sparsities: shares of zeros.
        rows: rows of x.
        many_rows: rows of x for 2:4.
        rounds: of which the fastest counts.
        scratch: buffer that is written before each call, or None on a CPU.
        device: to measure on.
    """

    shapes: tuple[tuple[int, int], ...]
    sparsities: tuple[float, ...]
    rows: tuple[int, ...]
    many_rows: tuple[int, ...]
    rounds: int
    scratch: Tensor | None
    device: torch.device


def sizes(device: torch.device, small: bool) -> Sizes:
    """Return what to measure on a device."""
    scratch = None
    if device.type == "cuda":
        scratch = torch.empty(SCRATCH_BYTES, dtype=torch.uint8, device=device)
    if small:
        return Sizes(((8, 64),), (0.5,), (1, 2), (16,), 1, scratch, device)
    shapes = tuple((int(a), int(b)) for a, b in (text.split("x") for text in SHAPES))
    return Sizes(shapes, SPARSITIES, FEW_ROWS + MORE_ROWS, MANY_ROWS, 20, scratch, device)


def copy_bandwidth(size: Sizes) -> dict[str, Any]:
    """Bytes a second of a copy on the device, read and written bytes counted."""
    count = (1 << 28) if size.scratch is not None else 1 << 20
    source = torch.ones(count, dtype=torch.float32, device=size.device)
    target = torch.empty_like(source)
    seconds = min(seconds_of(target.copy_, source, size.scratch) for _ in range(size.rounds))
    return {"kind": "copy", "bytes_per_second": 2 * source.nbytes / seconds}


def candidates(rows: int, small: bool) -> list[tuple[int, int]]:
    """Tiles and warps worth a try for `rows` rows of x in one launch.

    A thread expands ``4 * tiles / warps`` weights in one step and holds as many sums for each row
    of x. At most 64 sums leave registers for the rest: twice as many take all 255 on sm_90.
    """
    if small:
        return [(2, 1), (1, 1)]
    weights = [each for each in (16, 8, 4, 2) if rows * each <= 64][: 2 if rows < 8 else 1]
    return [(each * warps // 4, warps) for warps in WARPS for each in weights]


def tune(kind: str, size: Sizes, small: bool) -> Iterator[dict[str, Any]]:
    """Yield the time of each candidate, on the first shape and sparsity."""
    torch.manual_seed(0)
    case = MAKERS[kind](size.shapes[0], size.sparsities[0], size.device)
    for rows in (r for r in size.rows if r in FEW_ROWS):
        x = case.x(rows)
        choices = {t: Choice(rows, {rows: t}) for t in candidates(rows, small)}
        kernels: Any = {
            tiling: partial(_multiply, case, choice) for tiling, choice in choices.items()
        }
        for tiling, seconds in fastest(kernels, x, size.rounds, size.scratch).items():
            yield {"kind": f"tiling {kind}", "rows": rows, "tiling": [*tiling], "seconds": seconds}


def _multiply(case: Case, choice: Choice, x: Any) -> Tensor:
    return case.multiply(x, None, choice)


def best_tilings(results: list[dict[str, Any]], kind: str) -> dict[int, tuple[int, int]]:
    """Fastest tiles and warps by rows of x, of what `tune` measured."""
    best: dict[int, dict[str, Any]] = {}
    for result in results:
        if result["kind"] == f"tiling {kind}":
            before = best.setdefault(result["rows"], result)
            if result["seconds"] < before["seconds"]:
                best[result["rows"]] = result
    return {rows: tuple(result["tiling"]) for rows, result in sorted(best.items())}


def measure(kind: str, size: Sizes, small: bool) -> Iterator[dict[str, Any]]:
    """Yield the tilings, then for each shape, sparsity and rows of x the time of each kernel.

    Args:
        kind: "float" (bf16), "int8" or "int4".
        size: what to measure.
        small: few candidates.

    Yields:
        `dense_seconds` is cuBLAS with a dense bf16 weight, `same_dense_seconds` (int8) with a dense
        int8 one, `expanded_seconds` expansion and the dense product; `bytes` of the packed weight.
    """
    tuned = []
    for result in tune(kind, size, small):
        tuned.append(result)
        yield result
    choice = Choice(1 << 30, best_tilings(tuned, kind))
    for shape in size.shapes:
        torch.manual_seed(0)
        dense = torch.randn(shape, device=size.device).to(BF16)
        for sparsity in size.sparsities:
            case = MAKERS[kind](shape, sparsity, size.device)
            for rows in size.rows:
                yield _measure_rows(case, choice, dense, rows, size) | {
                    "kind": f"kernel {kind}",
                    "shape": [*shape],
                    "sparsity": sparsity,
                }


def _measure_rows(
    case: Case, choice: Choice, dense: Tensor, rows: int, size: Sizes
) -> dict[str, Any]:
    x = case.x(rows)
    dense_x = torch.randn(rows, dense.shape[1], device=size.device).to(BF16)
    expanded = case.expand()
    kernels: Any = {
        "dense_seconds": lambda _: torch.nn.functional.linear(dense_x, dense),
        "sparse_seconds": partial(_multiply, case, choice),
        "expanded_seconds": lambda x: case.dense(x, case.expand()),
    }
    if case.kind == "int8":
        kernels["same_dense_seconds"] = lambda x: case.dense(x, expanded)
    found: dict[str, Any] = dict(fastest(kernels, x, size.rounds, size.scratch))
    ours = case.multiply(x, None, choice).float()
    product = case.dense(x, expanded).float()
    error = float((ours - product).abs().max() / product.abs().max())
    return found | {"rows": rows, "bytes": case.nbytes, "error": error, "passed": error < 2e-2}


def semi_structured(size: Sizes) -> Iterator[dict[str, Any]]:
    """Yield the times of torch's 2:4 and of cuBLAS with the same weight, in bf16."""
    from torch.sparse import to_sparse_semi_structured

    for shape in size.shapes:
        torch.manual_seed(0)
        weight = torch.randn(shape, device=size.device).to(BF16)
        groups = weight.view(-1, 4)
        pruned = groups.scatter(1, groups.abs().topk(2, 1, largest=False).indices, 0).view(shape)
        packed = to_sparse_semi_structured(pruned)
        for rows in size.many_rows:
            x = torch.randn(rows, shape[1], device=size.device).to(BF16)
            kernels: Any = {
                "dense_seconds": lambda x, w=pruned: torch.nn.functional.linear(x, w),
                "sparse_seconds": lambda x, w=packed: torch.nn.functional.linear(x, w),
            }
            exact = torch.nn.functional.linear(x.double(), pruned.double())
            y = torch.nn.functional.linear(x, packed).double()
            error = float((y - exact).abs().max() / exact.abs().max())
            yield dict(fastest(kernels, x, size.rounds, size.scratch)) | {
                "kind": "2:4",
                "shape": [*shape],
                "rows": rows,
                "class": type(packed).__name__,
                "error": error,
                "passed": error < 2e-2,
            }


def sparse_rows(results: list[dict[str, Any]], kind: str) -> int:
    """Most rows of x up to which the sparse kernel beats expansion and the dense product.

    For each number of rows the geometric mean over shapes and sparsities decides; 0 where already
    one row is slower.
    """
    gains: dict[int, list[float]] = {}
    for result in results:
        if result["kind"] == f"kernel {kind}":
            gain = result["expanded_seconds"] / result["sparse_seconds"]
            gains.setdefault(result["rows"], []).append(math.log(gain))
    most = 0
    for rows, logarithms in sorted(gains.items()):
        if sum(logarithms) <= 0:
            break
        most = rows
    return most


def suggested(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Entry of the table of the GPU for every kind that was measured, in the form of its JSON."""
    entry: dict[str, Any] = {}
    for kind in gpu_table.KINDS:
        tilings = best_tilings(results, kind)
        if tilings and any(result["kind"] == f"kernel {kind}" for result in results):
            entry[kind] = {
                "sparse_rows": sparse_rows(results, kind),
                "tilings": {str(rows): [*tiling] for rows, tiling in tilings.items()},
            }
    return entry
