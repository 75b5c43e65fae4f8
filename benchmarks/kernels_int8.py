"""How fast one INT8 Linear is: dense kernels against the sparse one, beside the physical limit.

As in `benchmarks.kernels`: one thread, all kernels of a shape take turns, the fastest of the rounds
counts. Seconds are processor time of the thread, which leaves out the waiting on a busy machine.
Activations are quantized beforehand, for all kernels; results are bfloat16, or what a kernel has.

    python -m benchmarks.kernels_int8 --output output/bench-kernels-int8.json [--markdown]

Dense kernels: oneDNN as vLLM calls it, where vLLM is installed; torch's quantized linear through
oneDNN and FBGEMM; torch._int_mm, whose result still has to be scaled. FBGEMM and oneDNN's kernel
for unsigned activations saturate on processors without VNNI: what they compute there is not exact.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_PLUGINS", "")

import torch
from torch import Tensor

from benchmarks.kernels import ROWS, SHAPES, SPARSITIES, comparison, machine, page_bytes, table
from tamp_modifier import sparse

SCALE = 1 / 64
HOPELESS = 4
"""A kernel this much slower than the fastest is called once and no more."""
INT_MM_ROWS = 17
"""torch._int_mm refuses fewer."""
Kernel = Callable[[Tensor], Callable[[], Tensor]]
"""Takes x, int8, and returns the call that is measured."""


def vllm_kernel(weight: Tensor, scale: Tensor) -> Kernel:
    """Return oneDNN as vLLM calls it for W8A8 with dynamic activations."""
    from vllm import _custom_ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    handler = _custom_ops.create_onednn_scaled_mm(weight.t(), scale, torch.bfloat16, True, False)

    def prepare(x: Tensor) -> Callable[[], Tensor]:
        x_scale = torch.full((x.shape[0], 1), SCALE)
        out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.bfloat16)
        return lambda: _custom_ops.onednn_scaled_mm(handler, x, out, x_scale, None, None, None)

    return prepare


def onednn_kernel(weight: Tensor, scale: Tensor) -> Kernel:
    """Return torch's quantized linear with oneDNN, in the form in which it is fastest.

    That is activations of 7 bits without a zero point, and a result in fp32.
    """
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    zeros = torch.zeros(weight.shape[0], dtype=torch.int32)
    rest: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")

    def prepare(x: Tensor) -> Callable[[], Tensor]:
        unsigned = x.clamp(min=0).to(torch.uint8)
        op = torch.ops.onednn.qlinear_pointwise
        return lambda: op(unsigned, SCALE, 0, packed, scale, zeros, *rest)

    return prepare


def fbgemm_kernel(weight: Tensor, scale: Tensor) -> Kernel:
    """Return torch's quantized linear with FBGEMM; its result is quantized again."""
    torch.backends.quantized.engine = "fbgemm"
    zeros = torch.zeros(weight.shape[0], dtype=torch.long)
    quantized = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
    packed = torch.ops.quantized.linear_prepack(quantized, None)

    def prepare(x: Tensor) -> Callable[[], Tensor]:
        unsigned = (x.short() + 128).to(torch.uint8)
        inputs = torch._make_per_tensor_quantized_tensor(unsigned, SCALE, 128)
        return lambda: torch.ops.quantized.linear(inputs, packed, 1.0, 128)

    return prepare


def int_mm_kernel(weight: Tensor, scale: Tensor) -> Kernel:
    """Return torch's product of two int8 matrices, which gives int32."""

    def prepare(x: Tensor) -> Callable[[], Tensor]:
        missing = max(0, INT_MM_ROWS - x.shape[0])
        padded = torch.nn.functional.pad(x, (0, 0, 0, missing))
        return lambda: torch._int_mm(padded, weight.t())

    return prepare


DENSE: dict[str, Callable[[Tensor, Tensor], Kernel]] = {
    "vLLM": vllm_kernel,
    "oneDNN": onednn_kernel,
    "FBGEMM": fbgemm_kernel,
    "_int_mm": int_mm_kernel,
}


def dense_kernels(weight: Tensor, scale: Tensor) -> dict[str, Kernel]:
    """Every dense kernel that this machine can run, by name."""
    kernels = {}
    for name, make in DENSE.items():
        try:
            kernel = make(weight, scale)
            kernel(weight.new_zeros(1, weight.shape[1]))()  # it may be refused when called
            kernels[name] = kernel
        except (ImportError, AttributeError, RuntimeError) as error:
            print(f"{name} is left out: {error}")
    return kernels


def sparse_kernel(packed: sparse.PackedWeight, scale: Tensor) -> Kernel:
    """Return the kernel that is measured."""
    sums = sparse.row_sums(packed)

    def prepare(x: Tensor) -> Callable[[], Tensor]:
        x_scale = torch.full((x.shape[0], 1), SCALE)
        call = partial(sparse.linear_int8, x, x_scale, packed, scale, sums)
        return lambda: call(dtype=torch.bfloat16)

    return prepare


def seconds_of(call: Callable[[], Tensor]) -> float:
    """Processor time of one call."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def fastest(calls: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Least time of each call over `rounds`, in which all take turns."""
    best = {name: seconds_of(call) for name, call in calls.items()}
    most = HOPELESS * min(best.values())
    for _ in range(rounds):
        for name, call in calls.items():
            if best[name] <= most:
                best[name] = min(best[name], seconds_of(call))
    return best


def check(y: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> None:
    """Compare a result with the formula.

    Raises:
        RuntimeError: it is further off than the rounding to bfloat16.
    """
    exact = (x.double() @ weight.double().t()) * scale.double() * SCALE
    error = float(((y.double() - exact).abs() / (exact.abs() + 1e-6)).max())
    if not error < 2**-8 + 1e-6:
        raise RuntimeError(f"wrong result, relative error {error}")


def measure_shape(shape: tuple[int, int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of the table for one shape."""
    torch.manual_seed(0)
    weight = torch.randint(-128, 128, shape, dtype=torch.int8)
    scale = torch.rand(shape[0]) / 64
    kernels = dense_kernels(weight, scale)
    dense_names = list(kernels)
    sizes, pruned, pages = {}, {}, {"weight": page_bytes(weight)}
    for sparsity in args.sparsities:
        pruned[sparsity] = weight * (torch.rand(shape) >= sparsity)
        packed = sparse.pack(pruned[sparsity])
        sizes[sparsity] = packed.nbytes
        pages["sparse"] = page_bytes(packed.values)
        kernels[f"sparse {sparsity}"] = sparse_kernel(packed, scale)
    results = []
    for rows in args.rows:
        x = torch.randint(-128, 128, (rows, shape[1]), dtype=torch.int8)
        calls = {name: kernel(x) for name, kernel in kernels.items()}
        for sparsity in args.sparsities:
            some = slice(0, 8)
            check(calls[f"sparse {sparsity}"]()[some], x[some], pruned[sparsity], scale)
        rounds = max(3, args.rounds if rows <= 8 else args.rounds * 8 // rows)
        best = fastest(calls, rounds)
        for sparsity in args.sparsities:
            dense_bytes, sparse_bytes = weight.nbytes, sizes[sparsity]
            found = comparison(shape, rows, sparsity, best, dense_names, dense_bytes, sparse_bytes)
            results.append(found | {"page_bytes": pages})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="OUTxIN")
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="rows of x (M)")
    parser.add_argument("--rounds", type=int, default=40, help="rounds for up to 8 rows of x")
    parser.add_argument("--output", type=Path, help="JSON file with all numbers")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    with torch.inference_mode():
        for text in args.shapes:
            out_features, in_features = (int(size) for size in text.split("x"))
            results += measure_shape((out_features, in_features), args)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "dtype": "int8", "results": results}
        args.output.write_text(json.dumps(content, indent=1) + "\n")
    print(table(results, args.markdown))


if __name__ == "__main__":
    main()
