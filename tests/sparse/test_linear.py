"""`linear` against fp64, on every path that this machine can take."""

from __future__ import annotations

import math
import threading

import pytest
import torch

from tamp_modifier import sparse
from tests.sparse.processes import run_python

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Rounding of the result, and of sums in fp32, relative to sum |x * w|.
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-22}
SHAPES = [(1, 1), (3, 5), (4, 32), (7, 33), (64, 128), (129, 515), (256, 1024)]


def sparse_weight(shape, dtype, sparsity, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).to(dtype)
    return weight * (torch.rand(shape, generator=generator) >= sparsity)


def assert_close(y, x, weight, bias=None):
    exact = x.double() @ weight.double().t()
    bound = x.double().abs() @ weight.double().abs().t()
    if bias is not None:
        exact += bias.double()
        bound += bias.double().abs()
    error = (y.double() - exact).abs()
    rounding = ROUNDING[x.dtype]
    allowed = exact.abs() * rounding + bound * 2**-20 + 2**-24
    assert y.dtype == x.dtype and y.shape == exact.shape
    assert bool((error <= allowed).all()), (error - allowed).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_fp64(path, shape, dtype):
    for sparsity in (0.0, 0.5, 0.7, 0.95, 1.0):
        weight = sparse_weight(shape, dtype, sparsity)
        packed = sparse.pack(weight)
        bias = torch.randn(shape[0]).to(dtype)
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 33):
            x = torch.randn(rows, shape[1]).to(dtype)
            assert_close(sparse.linear(x, packed), x, weight)
            assert_close(sparse.linear(x, packed, bias), x, weight, bias)


@pytest.mark.parametrize("rows", [64, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_of_x(path, rows, dtype):
    weight = sparse_weight((517, 1100), dtype, 0.5)
    x = torch.randn(rows, 1100).to(dtype)
    assert_close(sparse.linear(x, sparse.pack(weight)), x, weight)


def test_rows_of_very_different_sparsity(path):
    weight = sparse_weight((64, 256), torch.bfloat16, 0.0)
    weight[:32] = 0
    weight[40:44, :128] = 0
    x = torch.randn(1, 256).bfloat16()
    assert_close(sparse.linear(x, sparse.pack(weight)), x, weight)


@pytest.mark.parametrize("sparsity", [0.3, 0.8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_inf_and_nan_stay_in_their_row(path, dtype, sparsity):
    weight = sparse_weight((12, 96), dtype, sparsity)
    weight[5, 17], weight[9, 40] = math.inf, math.nan
    for rows in (1, 3, 8):
        x = torch.rand(rows, 96).to(dtype) + 0.5
        y = sparse.linear(x, sparse.pack(weight))
        finite = [row for row in range(12) if row not in (5, 9)]
        assert bool((y[:, 5] == math.inf).all()) and bool(y[:, 9].isnan().all())
        assert_close(y[:, finite], x, weight[finite])


@pytest.mark.parametrize("dtype", DTYPES)
def test_inf_times_a_pruned_weight_is_nan_as_in_dense(path, dtype):
    weight = torch.zeros(4, 64, dtype=dtype)
    weight[0, 3] = 1
    for rows in (1, 8):
        x = torch.ones(rows, 64, dtype=dtype)
        x[:, 3] = math.inf
        y = sparse.linear(x, sparse.pack(weight))
        assert bool((y[:, 0] == math.inf).all()) and bool(y[:, 1:].isnan().all())


def test_fp16_subnormals_count(path):
    weight = torch.full((4, 64), 2.0**-24, dtype=torch.float16)
    x = torch.full((1, 64), 1024.0, dtype=torch.float16)
    assert torch.equal(sparse.linear(x, sparse.pack(weight)), torch.full((1, 4), 2.0**-8).half())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_round_to_nearest_even_and_overflow_to_inf(path, dtype):
    """One product per row, so that the exact value is known before rounding."""
    factors = torch.cat([torch.logspace(-8, 8, 127, base=8.0), torch.tensor([6e4])])
    weight = torch.diag(factors).to(dtype)
    x = (1 + torch.rand(1, 128)).to(dtype)
    exact = (x.float() * weight.diagonal().float()).to(dtype)
    assert torch.equal(sparse.linear(x, sparse.pack(weight)), exact)


def test_leading_dimensions_and_strides(path):
    weight = sparse_weight((40, 64), torch.bfloat16, 0.5)
    packed = sparse.pack(weight)
    x = torch.randn(2, 3, 128).bfloat16()[..., ::2]
    y = sparse.linear(x, packed)
    assert y.shape == (2, 3, 40)
    assert_close(y.view(6, 40), x.reshape(6, 64), weight)
    assert sparse.linear(x[0, 0], packed).shape == (40,)
    assert sparse.linear(x[:0], packed).shape == (0, 3, 40)
    assert_close(sparse.linear(x[0].t().contiguous().t(), packed), x[0], weight)


def test_empty_weights(path):
    bias = torch.ones(8)
    no_inputs = sparse.pack(torch.zeros(8, 0))
    assert torch.equal(sparse.linear(torch.zeros(2, 0), no_inputs, bias), torch.ones(2, 8))
    assert torch.equal(sparse.linear(torch.zeros(2, 0), no_inputs), torch.zeros(2, 8))
    assert sparse.linear(torch.zeros(2, 8), sparse.pack(torch.zeros(0, 8))).shape == (2, 0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(1, 64)}, "dtype"),
        ({"x": torch.zeros(1, 63).bfloat16()}, "63 features"),
        ({"x": torch.zeros(1, 96).bfloat16()}, "96 features"),
        ({"x": torch.tensor(1.0).bfloat16()}, "dimension"),
        ({"bias": torch.zeros(9).bfloat16()}, "bias"),
        ({"bias": torch.zeros(8)}, "bias"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    packed = sparse.pack(torch.ones(8, 64, dtype=torch.bfloat16))
    arguments = {"x": torch.zeros(1, 64).bfloat16(), "packed": packed, **change}
    with pytest.raises(ValueError, match=message):
        sparse.linear(**arguments)


def test_the_op_refuses_tensors_of_other_shapes():
    packed = sparse.pack(torch.ones(8, 64))
    good = [torch.zeros(1, 64), packed.mask, packed.values, packed.offsets, 8, None]
    bad = [
        (0, torch.zeros(1, 65)),
        (1, packed.mask[:1]),
        (1, packed.mask.long()),
        (2, packed.values[:3]),
        (3, packed.offsets[1:]),
        (3, packed.offsets.int()),
        (4, 9),
        (1, torch.zeros(2, 4, 2, dtype=torch.int32).transpose(1, 2)),
    ]
    for place, value in bad:
        with pytest.raises(ValueError, match="must|mask"):
            torch.ops.tamp_modifier.sparse_linear(*good[:place], value, *good[place + 1 :])


def test_inconsistent_masks_raise_and_stay_inside_memory(path):
    weight = sparse_weight((64, 128), torch.bfloat16, 0.5)
    x = torch.randn(2, 128).bfloat16()
    for word in (0, 100, -1):
        packed = sparse.pack(weight)
        packed.mask.view(-1)[word] = -1
        with pytest.raises(RuntimeError, match="corrupt"):
            sparse.linear(x, packed)
    packed = sparse.pack(weight)
    packed.offsets[3] = 2**40
    with pytest.raises(RuntimeError, match="corrupt"):
        sparse.linear(x, packed)


def test_torch_compile_traces_the_op_whole():
    weight = sparse_weight((64, 128), torch.float32, 0.5)
    packed = sparse.pack(weight)

    def model(x, mask, values, offsets):
        y = torch.ops.tamp_modifier.sparse_linear(x * 2, mask, values, offsets, 64, None)
        return y + 1

    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for rows in (1, 5, 40):
        x = torch.randn(rows, 128)
        y = compiled(x, packed.mask, packed.values, packed.offsets)
        assert torch.allclose(y, (x * 2) @ weight.t() + 1, atol=1e-4)


def test_op_check():
    packed = sparse.pack(sparse_weight((64, 128), torch.float32, 0.5))
    x, bias = torch.randn(3, 128), torch.ones(64)
    arguments = (x, packed.mask, packed.values, packed.offsets, 64, bias)
    torch.library.opcheck(torch.ops.tamp_modifier.sparse_linear.default, arguments)


def test_threads_of_the_caller_do_not_disturb_each_other():
    weight = sparse_weight((512, 1024), torch.bfloat16, 0.5)
    packed = sparse.pack(weight)
    inputs = [torch.randn(2, 1024).bfloat16() for _ in range(4)]
    expected = [sparse.linear(x, packed) for x in inputs]
    wrong = []

    def work(i):
        for _ in range(20):
            if not torch.equal(sparse.linear(inputs[i], packed), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_fork_after_threads_were_used_does_not_hang():
    result = run_python(
        "import os, torch\n"
        "torch.set_num_threads(2)\n"
        "from tamp_modifier import sparse\n"
        "w = torch.randn(512, 1024) * (torch.rand(512, 1024) > 0.5)\n"
        "p, x = sparse.pack(w), torch.randn(2, 1024)\n"
        "y = sparse.linear(x, p)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if torch.equal(sparse.linear(x, p), y) else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert result.stdout.strip() == "0", result.stderr


def test_two_threads_give_the_result_of_one():
    code = (
        "import torch, zlib\n"
        "torch.manual_seed(0); torch.set_num_threads({})\n"
        "from tamp_modifier import sparse\n"
        "w = torch.randn(515, 1024) * (torch.rand(515, 1024) > 0.5)\n"
        "y = sparse.linear(torch.randn(3, 1024), sparse.pack(w))\n"
        "print(sparse.backend(), y.double().sum().item(), y[1, 7].item())\n"
    )
    assert run_python(code.format(1)).stdout == run_python(code.format(2)).stdout != ""
