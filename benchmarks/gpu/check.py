"""The Triton kernels against products in fp64, over a grid of shapes, sparsities and dtypes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.weights import Case, float_case, int4_case, int8_case
from tamp_modifier import sparse
from tamp_modifier.sparse import int4
from tamp_modifier.sparse.gpu_table import Choice

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
GRID = (((5, 48), 0.5), ((9, 112), 0.7), ((4, 32), 1.0), ((2, 64), 0.0))
LARGE = ((512, 2048), 0.6)
"""Only on a card: the interpreter would take minutes."""
ODD = ((1000, 1111), 0.5)
"""Likewise; no other has columns that are no multiple of 16, for which Triton compiles anew."""
ROWS = (1, 9)
"""Of x: what the operator multiplies sparse, and what it expands the weight for."""
CHOICES = (Choice(32, {1: (2, 2), 4: (2, 2)}), Choice(32, {16: (8, 4)}))
"""Three launches of nine rows in steps of two tiles; one launch with rows that are not there."""
ROUNDING = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11, torch.float32: 2.0**-22}
"""Of the result. The interpreter cuts fp32 off to bf16 where a GPU rounds: one bit more."""
SUMS = {"float": 2.0**-20, "int4": 2.0**-20, "int8": 2.0**-21}
"""Error of fp32 sums over the sum of magnitudes; of the scales where sums are exact."""

Make = Callable[[tuple[int, int], float, torch.device], Case]


ALSO_ODD = ("float bfloat16", "int8", "int4, groups of 32")
"""One of each kind: a card's ten minutes go by with compiling."""


def makers() -> dict[str, Make]:
    """Return every kind of weight of the grid, by name."""
    found: dict[str, Make] = {}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        found[f"float {name}"] = partial(float_case, dtype=dtype)
    found["int8"] = partial(int8_case, dtype=torch.bfloat16)
    found["int8 with zero points, to float32"] = partial(
        int8_case, dtype=torch.float32, asymmetric=True
    )
    found["int8, one scale a tensor"] = partial(
        int8_case, dtype=torch.float16, asymmetric=True, whole=True
    )
    found["int4, groups of 32"] = partial(int4_case, dtype=torch.bfloat16, group_size=32)
    found["int4 with zero codes, groups of 64"] = partial(
        int4_case, dtype=torch.float16, group_size=64, asymmetric=True
    )
    found["int4, a group a row, columns reordered"] = partial(
        int4_case, dtype=torch.float32, group_size=-1, reordered=True
    )
    return found


def worst(case: Case, x: Any, y: Tensor, bias: Tensor | None, rounded: bool = False) -> float:
    """Largest error of y over what is allowed; NaN never passes.

    Args:
        case: the weight.
        x: what it was multiplied with.
        y: the result.
        bias: that was added.
        rounded: the weights themselves may have been rounded to the dtype of the result.
    """
    values = case.values(x)
    product = values @ case.exact.t()
    exact = product if bias is None else product + bias.double()
    # Sums of integers are exact, so that only their scales err.
    size = product.abs() if case.kind == "int8" else values.abs() @ case.exact.abs().t()
    size = size if bias is None else size + bias.double().abs()
    allowed = exact.abs() * ROUNDING[case.dtype] + size * SUMS[case.kind] + 1e-30
    if rounded:
        allowed += size * ROUNDING[case.dtype]
    return float(((y.double() - exact).abs() / allowed).nan_to_num(nan=torch.inf).max())


def expansion_error(case: Case) -> float:
    """Largest error of the expanded weight over its rounding, which only INT4 has."""
    dense, expected = case.expand().double(), case.expanded.double()
    rounding = ROUNDING[case.dtype] if case.kind == "int4" else 0.0
    allowed = expected.abs() * rounding + 1e-30
    return float(((dense - expected).abs() / allowed).nan_to_num(nan=torch.inf).max())


def run(device: torch.device, small: bool) -> Iterator[dict[str, Any]]:
    """Compare every kernel, and yield a result for each kind, shape and sparsity.

    Args:
        device: a GPU, or the CPU where Triton's interpreter runs.
        small: leave out what takes the interpreter long.

    Yields:
        kind, shape, sparsity, products compared, error (1 is what is allowed), `passed`.
    """
    # cuBLAS may else add parts of a sum in 16 bits.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    for name, make in makers().items():
        large = [LARGE, ODD] if name in ALSO_ODD else [LARGE]
        for shape, sparsity in [*GRID, *([] if small else large)]:
            torch.manual_seed(0)
            case = make(shape, sparsity, device)
            errors = [expansion_error(case)]
            for rows in ROWS:
                x = case.x(rows)
                bias = torch.randn(shape[0], device=device).to(case.dtype) if rows > 1 else None
                for choice in CHOICES if rows > 1 else ():
                    errors.append(worst(case, x, case.multiply(x, bias, choice), bias))
                # The operator may expand the weight, which rounds INT4.
                rounded = case.kind == "int4"
                errors.append(worst(case, x, case.linear(x, bias), bias, rounded))
            error = max(errors)
            yield {
                "kind": name,
                "shape": list(shape),
                "sparsity": sparsity,
                "compared": len(errors),
                "error": error,
                "passed": error <= 1,
            }
    yield damaged(device)


def damaged(device: torch.device) -> dict[str, Any]:
    """Multiply weights whose mask and offsets lie: they must stay inside their memory."""
    from tamp_modifier.sparse import triton_int4, triton_int8, triton_kernels

    packed = sparse.pack(torch.zeros(8, 256, dtype=torch.int8, device=device))
    mask, choice = torch.full_like(packed.mask, -1), CHOICES[0]
    ones, x, out = (torch.ones(size, device=device) for size in ((8,), (1, 256), (1, 8)))
    sums = torch.zeros(8, dtype=torch.int32, device=device)
    codes = torch.full((8, 256), 8, dtype=torch.uint8, device=device)
    nibbles = int4.pack_int4(codes, ones.view(8, 1), None, -1)
    offsets = [torch.full_like(packed.offsets, start) for start in (0, -(2**40), 2**40)]
    for start in offsets:
        whole = (mask, packed.values, start)
        triton_kernels.multiply(x, mask, packed.values.float(), start, out, None, choice)
        triton_kernels.expand(*whole, packed.shape)
        triton_int8.multiply(x.to(torch.int8), ones[:1], None, whole, ones, sums, out, None, choice)
        wrong = dataclasses.replace(nibbles, mask=mask, offsets=start)
        triton_int4.multiply(x, wrong, None, out, choice)
        triton_int4.expand(wrong, torch.float32)
    if device.type == "cuda":
        torch.cuda.synchronize()
    runs = 5 * len(offsets)
    return {"kind": "damaged weights", "compared": runs, "error": 0.0, "passed": True}
