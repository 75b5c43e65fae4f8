"""How fast one Linear is: dense kernels against the sparse one, beside the physical limit.

One thread (or one GPU). All kernels of a shape take turns, so that none finds its weight in the
cache, and the fastest of the rounds counts. The limit is the ratio of bytes: what a kernel bound by
memory traffic could gain over a dense one that is bound by it too.

    python benchmarks/kernels.py --output output/bench-kernels.json [--markdown]

Dense kernels: torch's linear; oneDNN with a prepacked weight, through torch and, where vLLM is
installed, through vLLM as it calls it; zentorch where it is installed.

They allocate their weights themselves, on pages of 4 KB as a rule, while packed weights lie on huge
ones. One row of x waits for memory alone, and pages of 2 MB speed that up by themselves. So M = 1
has a second rival: torch's linear with a weight from `tamp_modifier.sparse.memory`. The copies that
oneDNN and zentorch make cannot be placed so; ``THP_MEM_ALLOC_ENABLE=1`` makes torch ask for huge
pages for all that it allocates. The last line printed says on which pages the weights lay.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import re
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_PLUGINS", "")  # zentorch would replace vLLM's platform by its own

import torch
from torch import Tensor

from tamp_modifier import sparse
from tamp_modifier.sparse import memory

SHAPES = ("4096x4096", "14336x4096", "4096x14336")
SPARSITIES = (0.5, 0.6, 0.7)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
HUGE = "torch on huge pages"
"""Name of the rival whose weight lies on the same pages as ours; measured for one row of x."""
Kernel = Callable[[Tensor], Tensor]


def multiply(packed: sparse.PackedWeight, x: Tensor) -> Tensor:
    """Return the kernel that is measured."""
    return sparse.linear(x, packed)


def dense_kernels(weight: Tensor) -> dict[str, Kernel]:
    """Every dense kernel that this machine can run, by name."""
    kernels: dict[str, Kernel] = {"torch": lambda x: torch.nn.functional.linear(x, weight)}
    if weight.device.type != "cpu":
        return kernels
    if torch.backends.mkldnn.is_available():
        prepacked: dict[int, Tensor] = {}

        def onednn(x: Tensor) -> Tensor:
            rows = x.shape[0]
            if rows not in prepacked:
                prepacked.clear()  # the layout depends on the number of rows
                prepacked[rows] = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            packed = prepacked[rows]
            return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")

        try:
            onednn(weight.new_zeros(1, weight.shape[1]))
            kernels["oneDNN"] = onednn
        except RuntimeError as error:  # a type of number that the processor has no units for
            print(f"torch's oneDNN is left out: {error}")
    try:
        from vllm import _custom_ops
        from vllm.platforms import current_platform

        current_platform.import_kernels()
        handler = _custom_ops.create_onednn_mm(weight.t(), 32)
        kernels["vLLM"] = lambda x: _custom_ops.onednn_mm(handler, x, None)
    except (ImportError, AttributeError, RuntimeError) as error:
        print(f"vLLM's oneDNN is left out: {error}")
    try:
        import zentorch  # noqa: F401

        ops = torch.ops.zentorch
        zen = ops.zentorch_weight_prepack_for_linear(weight)
        kernels["zentorch"] = lambda x: ops.zentorch_linear_unary(
            x, zen, None, is_weight_prepacked=True
        )
    except (ImportError, AttributeError, RuntimeError) as error:
        print(f"zentorch is left out: {error}")
    return kernels


def page_bytes(tensor: Tensor) -> int:
    """Size of the pages that most of a tensor on the CPU lies on, as Linux tells it.

    Where it tells nothing: the size that pages have without asking.
    """
    maps, inside, resident = Path("/proc/self/smaps"), False, 0
    for line in maps.read_text().splitlines() if maps.exists() else ():
        if area := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            begin, end = (int(part, 16) for part in area.groups())
            inside = begin <= tensor.data_ptr() < end
        elif inside and line.startswith("Rss:"):
            resident = int(line.split()[1])
        elif inside and line.startswith("AnonHugePages:"):
            return memory.huge_page() if 2 * int(line.split()[1]) > resident else mmap.PAGESIZE
    return mmap.PAGESIZE


def on_huge_pages(weight: Tensor) -> Tensor:
    """Return a copy of a weight on the CPU where packed weights lie too."""
    return memory.empty(tuple(weight.shape), weight.dtype).copy_(weight)


def seconds_of(kernel: Kernel, x: Tensor, scratch: Tensor | None) -> float:
    """Time of one call; on a GPU between events, after `scratch` has emptied the cache."""
    if scratch is None:
        start = time.perf_counter()
        kernel(x)
        return time.perf_counter() - start
    scratch.zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    kernel(x)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def fastest(
    kernels: dict[str, Kernel], x: Tensor, rounds: int, scratch: Tensor | None
) -> dict[str, float]:
    """Least time of each kernel over `rounds`, in which all take turns."""
    best = dict.fromkeys(kernels, float("inf"))
    for kernel in kernels.values():
        kernel(x)
    for _ in range(rounds):
        for name, kernel in kernels.items():
            best[name] = min(best[name], seconds_of(kernel, x, scratch))
    return best


def check(kernel: Kernel, x: Tensor, weight: Tensor, name: str) -> None:
    """Raise RuntimeError where a kernel does not give the product with `weight`."""
    exact = x.float().cpu() @ weight.float().t()
    error = float((kernel(x).float().cpu() - exact).abs().max() / exact.abs().max())
    if not error < 2e-2:
        raise RuntimeError(f"{tuple(weight.shape)} {name}: wrong result, error {error}")


def comparison(
    shape: tuple[int, int],
    rows: int,
    sparsity: float,
    best: dict[str, float],
    dense_names: list[str],
    dense_bytes: float,
    sparse_bytes: float,
) -> dict[str, Any]:
    """Compare the sparse kernel with the fastest dense one, from the seconds of all in `best`.

    The bytes are those of the weight, dense and packed.
    """
    dense = {name: best[name] for name in dense_names}
    name = min(dense, key=lambda key: dense[key])
    ours = best[f"sparse {sparsity}"]
    return {
        "shape": list(shape),
        "rows": rows,
        "sparsity": sparsity,
        "dense_seconds": dense,
        "best_dense": name,
        "sparse_seconds": ours,
        "ratio": dense[name] / ours,
        "limit": dense_bytes / sparse_bytes,
        "gigabytes_per_second": sparse_bytes / ours / 1e9,
    }


def measure_shape(shape: tuple[int, int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of the table for one shape."""
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    weight = torch.randn(shape).to(dtype)
    on_cpu = args.device == "cpu"
    scratch = None if on_cpu else torch.empty(1 << 28, device=args.device)
    kernels = dense_kernels(weight.to(args.device))
    dense_names = list(kernels)
    packed, pruned, pages = {}, {}, {}
    for sparsity in args.sparsities:
        pruned[sparsity] = weight * (torch.rand(shape) >= sparsity)
        packed[sparsity] = sparse.pack(pruned[sparsity]).to(args.device)
        kernels[f"sparse {sparsity}"] = partial(multiply, packed[sparsity])
    if on_cpu:
        huge = on_huge_pages(weight)
        kernels[HUGE] = lambda x: torch.nn.functional.linear(x, huge)
        pages = {"torch": page_bytes(weight), HUGE: page_bytes(huge)}
        pages["sparse"] = page_bytes(packed[args.sparsities[0]].values)
    results = []
    for rows in args.rows:
        x = torch.randn(rows, shape[1]).to(dtype).to(args.device)
        for sparsity in args.sparsities:
            check(kernels[f"sparse {sparsity}"], x, pruned[sparsity], f"at {sparsity}")
        rounds = max(3, args.rounds if rows <= 8 else args.rounds * 8 // rows)
        taking_part = {name: kernels[name] for name in kernels if rows == 1 or name != HUGE}
        best = fastest(taking_part, x, rounds, scratch)
        for sparsity in args.sparsities:
            found = comparison(
                shape, rows, sparsity, best, dense_names, weight.nbytes, packed[sparsity].nbytes
            )
            on_huge = best.get(HUGE)
            found |= {
                "huge_seconds": on_huge,
                "huge_ratio": None if on_huge is None else on_huge / found["sparse_seconds"],
                "page_bytes": pages,
            }
            results.append(found)
    return results


def cells(results: list[dict[str, Any]]) -> list[list[str]]:
    """Return the head and a line per shape and number of rows; times in microseconds."""
    names = list(results[0]["dense_seconds"])
    huge = any(result.get("huge_seconds") is not None for result in results)  # of bf16 alone
    head = ["out x in", "M", *names, *([HUGE] if huge else [])]
    for sparsity in sorted({result["sparsity"] for result in results}):
        limit = max(r["limit"] for r in results if r["sparsity"] == sparsity)
        head += [f"sparse {sparsity:.0%}", f"ratio (limit {limit:.2f})"]
        head += ["on huge pages"] if huge else []
    lines = [head]
    for shape, rows in dict.fromkeys((tuple(r["shape"]), r["rows"]) for r in results):
        group = [r for r in results if tuple(r["shape"]) == shape and r["rows"] == rows]
        seconds = [group[0]["dense_seconds"][name] for name in names]
        seconds += [group[0]["huge_seconds"]] if huge else []
        line = ["x".join(map(str, shape)), str(rows)]
        line += ["" if value is None else f"{value * 1e6:.0f}" for value in seconds]
        for result in sorted(group, key=lambda result: result["sparsity"]):
            line += [f"{result['sparse_seconds'] * 1e6:.0f}", f"{result['ratio']:.2f}"]
            if huge:
                ratio = result["huge_ratio"]
                line.append("" if ratio is None else f"{ratio:.2f}")
        lines.append(line)
    return lines


def table(results: list[dict[str, Any]], markdown: bool) -> str:
    """Format times, ratios to the fastest dense kernel, and the pages of the weights."""
    head, *lines = cells(results)
    if markdown:
        rule = ["---"] + ["---:"] * (len(head) - 1)
        text = "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])
    else:
        widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
        text = "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in [head, *lines]
        )
    pages = results[0].get("page_bytes", {})
    told = "; ".join(f"{name} {size >> 10} KB" for name, size in pages.items())
    return text + (f"\n\nPages of the weights: {told}." if told else "")


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), model)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "path": sparse.backend(),
        "date": date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="OUTxIN")
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="rows of x (M)")
    parser.add_argument("--rounds", type=int, default=40, help="rounds for up to 8 rows of x")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file with all numbers")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    with torch.inference_mode():
        for text in args.shapes:
            out_features, in_features = (int(size) for size in text.split("x"))
            results += measure_shape((out_features, in_features), args)
    print(table(results, args.markdown))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "dtype": args.dtype, "results": results}
        args.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
