"""The Triton kernels without a GPU: interpreted against fp64, and compiled for one.

Triton reads at import whether to interpret, so that runs in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tamp_modifier.sparse import triton_int4, triton_int8, triton_kernels

ROOT = Path(__file__).parents[2]
HOPPER = GPUTarget("cuda", 90, 32)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the GPU check writes without a GPU, in a folder of its own."""
    output = tmp_path_factory.mktemp("gpu-check")
    done = subprocess.run(
        ["benchmarks/gpu_check.sh", "--small", "--output", str(output), "--limit", "500"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=550,
    )
    found = json.loads((output / "gpu.json").read_text())
    assert done.returncode == 0, found["steps"]
    assert (output / "gpu.md").read_text() in done.stdout
    return found


def test_the_triton_kernels_agree_with_fp64(report: dict[str, Any]) -> None:
    check = report["steps"]["check"]
    assert check["status"] == "done", check["message"]
    kinds = {result["kind"].split()[0].rstrip(",") for result in check["results"]}
    assert kinds == {"float", "int8", "int4", "damaged"}
    assert all(result["passed"] and result["compared"] > 0 for result in check["results"])


@pytest.mark.parametrize("kind", ["float", "int8", "int4"])
def test_the_gpu_check_measures_each_kind_of_weight(report: dict[str, Any], kind: str) -> None:
    step = report["steps"][kind]
    assert step["status"] == "done", step["message"]
    rows = [r["rows"] for r in step["results"] if r["kind"] == f"kernel {kind}"]
    assert rows == [1, 2]
    assert set(report["suggested"][kind]["tilings"]) == {"1", "2"}


def test_the_gpu_check_says_what_it_leaves_out(report: dict[str, Any]) -> None:
    left_out = {n: s["message"] for n, s in report["steps"].items() if s["status"] == "left out"}
    assert left_out == {"semi": "needs a GPU", "prune": "llmcompressor cannot be imported"}


KERNELS = {
    "float multiply": (triton_kernels.multiply_kernel, "bf16", "bf16"),
    "float expand": (triton_kernels.expand_kernel, "bf16", "bf16"),
    "int8 multiply": (triton_int8.multiply_kernel, "i8", "i8"),
    "int8 expand": (triton_kernels.expand_kernel, "i8", "i8"),
    "int4 multiply": (triton_int4.multiply_kernel, "bf16", "u8"),
    "int4 expand": (triton_int4.expand_kernel, "bf16", "u8"),
}
"""Kernel, dtype of x or of the expanded weight, dtype of the values."""
POINTERS = {
    "mask_ptr": "i32",
    "offsets_ptr": "i64",
    "x_scale_ptr": "fp32",
    "x_zero_ptr": "i32",
    "weight_scale_ptr": "fp32",
    "row_sums_ptr": "i32",
    "zeros_ptr": "u8",
}
"""Of the other tensors, which are bf16 where this does not tell."""
FLAGS = {"HAS_BIAS": True, "HAS_ZERO": True, "HAS_ZEROS": True, "PER_TOKEN": 1, "PER_CHANNEL": 1}


TILINGS = [(1, 8, 4), (8, 2, 1), (32, 4, 4)]
"""Rows of x, tiles and warps."""
COMPILED = [
    (name, *tiling) for name in KERNELS for tiling in TILINGS[: 1 if "expand" in name else None]
]


@pytest.mark.parametrize(("name", "rows", "tiles", "warps"), COMPILED)
def test_the_triton_kernels_compile_for_hopper(
    name: str, rows: int, tiles: int, warps: int
) -> None:
    kernel, x, values = KERNELS[name]
    pointers = {"x_ptr": x, "dense_ptr": x, "values_ptr": values, **POINTERS}
    constants = {**FLAGS, "M": rows, "TILES": tiles}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature = {
        argument: "constexpr"
        if argument in constants
        else f"*{pointers.get(argument, 'bf16')}"
        if argument.endswith("_ptr")
        else "i32"
        for argument in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constants)
    assert triton.compile(source, target=HOPPER, options={"num_warps": warps}).asm["cubin"]
