"""How fast one 4-bit Linear (W4A16) is: dense kernels against the sparse one, beside the limit.

One thread. All kernels of a shape take turns and the fastest of the rounds counts, as in
`benchmarks.kernels`. The limit is the ratio of bytes: dense codes and scales to the packed weight.

    python -m benchmarks.kernels_int4 --output output/bench-kernels-int4.json [--markdown]

Dense kernels: torch's linear in bf16; torch's kernel for 4-bit weights; vLLM's
(`cpu_gemm_wna16`) where vLLM is installed and the processor has AVX-512.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels import (
    ROWS,
    SHAPES,
    SPARSITIES,
    Kernel,
    comparison,
    fastest,
    machine,
    table,
)
from tamp_modifier import sparse

GROUP_SIZE = 128
ZERO = 8


def random_codes(shape: tuple[int, int], sparsity: float) -> Tensor:
    """Draw 4-bit codes uint8 of which `sparsity` are the zero code, in random places."""
    codes = torch.randint(0, 15, shape, dtype=torch.uint8)
    codes += codes >= ZERO
    return codes.masked_fill_(torch.rand(shape) < sparsity, ZERO)


def torch_kernel(codes: Tensor, scale: Tensor) -> Kernel:
    """Return torch's own kernel for 4-bit weights in groups."""
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    # It computes (code - 8) * scale + zero.
    scale_and_zero = torch.stack([scale, torch.zeros_like(scale)], -1).transpose(0, 1).contiguous()
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return lambda x: multiply(x, packed, GROUP_SIZE, scale_and_zero)


def vllm_kernel(codes: Tensor, scale: Tensor) -> Kernel:
    """Return vLLM's kernel for 4-bit weights, as its class CPUWNA16LinearKernel calls it.

    Raises:
        ImportError, AttributeError, RuntimeError: not here, or not on this processor.
    """
    from vllm import _custom_ops
    from vllm.model_executor.kernels.linear.mixed_precision.cpu import _get_isa_hint
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    out_features, in_features = codes.shape
    places = 4 * torch.arange(8, dtype=torch.int64)
    # Eight output channels in an int32, in blocks of 16 channels.
    words = (codes.t().reshape(in_features, -1, 8).long() << places).sum(-1)
    words = torch.where(words >= 2**31, words - 2**32, words).int()
    blocks = words.view(in_features, -1, 2).permute(1, 0, 2).reshape(-1, in_features * 2)
    weight, scales, hint = blocks.contiguous(), scale.t().contiguous(), _get_isa_hint(scale.dtype)
    return lambda x: _custom_ops.cpu_gemm_wna16(x, weight, scales, None, None, 8, hint)


def dense_kernels(codes: Tensor, scale: Tensor) -> dict[str, Kernel]:
    """Every dense kernel that this machine can run and that gives the right result, by name."""
    weight = (codes.float() - ZERO) * scale.float().repeat_interleave(GROUP_SIZE, 1)
    x = torch.randn(2, codes.shape[1]).bfloat16()
    exact = x.float() @ weight.t()
    weight = weight.bfloat16()
    kernels: dict[str, Kernel] = {"torch bf16": lambda x: torch.nn.functional.linear(x, weight)}
    makers: dict[str, Callable[[Tensor, Tensor], Kernel]] = {
        "torch int4": torch_kernel,
        "vLLM W4A16": vllm_kernel,
    }
    for name, make in makers.items():
        try:
            kernel = make(codes, scale)
            error = float((kernel(x).float() - exact).abs().max() / exact.abs().max())
        except (ImportError, AttributeError, RuntimeError) as reason:
            print(f"{name} is left out: {str(reason).splitlines()[0]}")
            continue
        if error < 2e-2:
            kernels[name] = kernel
        else:
            print(f"{name} is left out: its result is wrong here, error {error:.3f}")
    return kernels


def measure_shape(shape: tuple[int, int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of the table for one shape."""
    torch.manual_seed(0)
    scale = torch.rand(shape[0], shape[1] // GROUP_SIZE).add_(0.5).bfloat16()
    kernels = dense_kernels(random_codes(shape, 0.0), scale)
    dense_names = list(kernels)
    packed = {}
    for sparsity in args.sparsities:
        packed[sparsity] = sparse.pack_int4(random_codes(shape, sparsity), scale, None, GROUP_SIZE)
        kernels[f"sparse {sparsity}"] = partial(
            sparse.linear_int4, packed=packed[sparsity], int8_activations=args.int8_activations
        )
    results = []
    for rows in args.rows:
        x = torch.randn(rows, shape[1]).bfloat16()
        for sparsity in args.sparsities:
            exact = x.float() @ sparse.dequantize_int4(packed[sparsity]).t()
            ours = kernels[f"sparse {sparsity}"](x).float()
            error = float((ours - exact).abs().max() / exact.abs().max())
            if not error < 2e-2:
                raise RuntimeError(f"{shape} at {sparsity}: wrong result, error {error}")
        best = fastest(
            kernels, x, max(3, args.rounds if rows <= 8 else args.rounds * 8 // rows), None
        )
        for sparsity in args.sparsities:
            dense_bytes, sparse_bytes = (
                shape[0] * shape[1] / 2 + scale.nbytes,
                packed[sparsity].nbytes,
            )
            found = comparison(shape, rows, sparsity, best, dense_names, dense_bytes, sparse_bytes)
            results.append(found)
    return results


def main() -> None:
    """Measure, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="OUTxIN")
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="rows of x (M)")
    parser.add_argument("--rounds", type=int, default=40, help="rounds for up to 8 rows of x")
    parser.add_argument("--int8-activations", action="store_true", help="round x to int8")
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
        settings = {"group_size": GROUP_SIZE, "int8_activations": args.int8_activations}
        content = {"machine": machine(), **settings, "results": results}
        args.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
