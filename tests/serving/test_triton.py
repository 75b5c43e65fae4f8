"""The Triton kernels in the interpreter: a process of its own, as the mode is read at import."""

from __future__ import annotations

import os
import subprocess
import sys

COMPARE = """
import torch
from tamp_modifier import sparse
from tamp_modifier.sparse import gpu_table, ops, triton_kernels

torch.manual_seed(0)
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    for shape, sparsity in (((5, 40), 0.5), ((9, 300), 0.7), ((4, 32), 1.0), ((6, 64), 0.0)):
        weight = (torch.randn(shape) * (torch.rand(shape) >= sparsity)).to(dtype)
        packed = sparse.pack(weight)
        tensors = (packed.mask, packed.values, packed.offsets)
        assert torch.equal(triton_kernels.expand(*tensors, packed.shape), weight)
        for rows in (1, 3, 9):
            x, bias = torch.randn(rows, shape[1]).to(dtype), torch.randn(shape[0]).to(dtype)
            y = ops.gpu_linear(x, *tensors, shape[0], bias)
            exact = x.double() @ weight.double().t() + bias.double()
            # The interpreter cuts fp32 off to bf16 where a GPU rounds: one more bit of error.
            rounding = {torch.bfloat16: 2**-7, torch.float16: 2**-11}.get(dtype, 2**-22)
            bound = x.double().abs() @ weight.double().abs().t() + bias.double().abs()
            assert ((y - exact).abs() <= exact.abs() * rounding + bound * 2**-20).all()
packed.mask.fill_(-1)
choice = gpu_table.choice("float", torch.device("cpu"))
triton_kernels.multiply(torch.ones(1, 64), *tensors, torch.empty(1, 6), None, choice)
print("equal")
"""


def test_the_triton_kernels_agree_with_fp64():
    result = subprocess.run(
        [sys.executable, "-c", COMPARE],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stdout.strip() == "equal", result.stderr
