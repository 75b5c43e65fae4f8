"""`linear_int8` against its formula in int64 and fp64, on every path."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tamp_modifier import sparse
from tests.sparse.processes import run_python

# Shapes with parts of blocks, tiles and groups of blocks, and more than one chunk of columns.
SHAPES = [(1, 1), (3, 5), (4, 32), (7, 33), (64, 128), (66, 96), (129, 515), (20, 2100)]
# Of one result, relative to it: rounding to the dtype, and of scales and bias in fp32.
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-22}


def integers(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)


def sparse_weight(shape: tuple[int, int], sparsity: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return integers(shape, generator) * (torch.rand(shape, generator=generator) >= sparsity)


@dataclasses.dataclass
class Case:
    """A product and its arguments."""

    weight: Tensor
    x: Tensor
    x_scale: Tensor
    x_zero: Tensor | None
    weight_scale: Tensor
    bias: Tensor | None
    dtype: torch.dtype

    def product(self, packed: sparse.PackedWeight | None = None) -> Tensor:
        packed = packed or sparse.pack(self.weight)
        return sparse.linear_int8(
            self.x,
            self.x_scale,
            packed,
            self.weight_scale,
            self.weight.sum(1, dtype=torch.int32),
            x_zero=self.x_zero,
            bias=self.bias,
            dtype=self.dtype,
        )

    def exact(self) -> tuple[Tensor, Tensor]:
        """The result in fp64, and by how much scales and bias may have been rounded."""
        x = self.x.long() if self.x_zero is None else self.x.long() - self.x_zero
        product = (x @ self.weight.long().t()).double()
        product = product * self.weight_scale.double() * self.x_scale.double()
        bias = torch.zeros(()) if self.bias is None else self.bias.double()
        return product + bias, (product.abs() + bias.abs()) * 2**-22

    def check(self, y: Tensor) -> None:
        exact, inner = self.exact()
        assert y.dtype == self.dtype and y.shape == exact.shape
        largest = torch.finfo(self.dtype).max
        error = (y.double().clamp(-largest, largest) - exact.clamp(-largest, largest)).abs()
        allowed = exact.abs() * ROUNDING[self.dtype] + inner + 2**-24
        assert bool((error <= allowed).all()), (error - allowed).max()


def case(
    shape: tuple[int, int] = (64, 128),
    rows: int = 3,
    sparsity: float = 0.5,
    *,
    zero: bool = False,
    bias: bool = False,
    per_row: bool = True,
    per_channel: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    scales = (rows, 1) if per_row else (1,)
    return Case(
        weight=sparse_weight(shape, sparsity, seed),
        x=integers((rows, shape[1]), generator),
        x_scale=torch.rand(scales, generator=generator) / 64,
        x_zero=torch.randint(-128, 128, scales, dtype=torch.int32) if zero else None,
        weight_scale=torch.rand(shape[0] if per_channel else 1, generator=generator) / 64,
        bias=torch.randn(shape[0], generator=generator).to(dtype) if bias else None,
        dtype=dtype,
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_formula(path: str, shape: tuple[int, int]) -> None:
    for sparsity in (0.0, 0.5, 0.7, 1.0):
        for rows in (1, 2, 3, 4, 5, 8, 9, 17, 40):
            each = case(shape, rows, sparsity, zero=rows % 2 == 0, bias=rows % 3 == 0)
            each.check(each.product())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_epilogues(path: str, dtype: torch.dtype, zero: bool, bias: bool) -> None:
    for per_row in (False, True):
        for per_channel in (False, True):
            for rows in (1, 20):
                each = case(
                    (39, 100),
                    rows,
                    zero=zero,
                    bias=bias,
                    per_row=per_row,
                    per_channel=per_channel,
                    dtype=dtype,
                )
                each.check(each.product())


@pytest.mark.parametrize("rows", [65, 129, 200])
def test_many_rows_of_x(path: str, rows: int) -> None:
    each = case((70, 1130), rows, zero=True, bias=True)
    each.check(each.product())


@pytest.mark.parametrize("rows", [1, 3, 12, 80])
@pytest.mark.parametrize("x, weight", [(-128, -128), (127, -128), (-128, 127)])
def test_the_largest_sums_are_exact(path: str, rows: int, x: int, weight: int) -> None:
    """2^14 times the columns, which other arithmetic saturates; each fits fp32 here."""
    columns = 8192
    dense = torch.full((5, columns), weight, dtype=torch.int8)
    inputs = torch.full((rows, columns), x, dtype=torch.int8)
    one = torch.ones(1)
    y = sparse.linear_int8(
        inputs, one, sparse.pack(dense), one, dense.sum(1, dtype=torch.int32), dtype=torch.float32
    )
    assert torch.equal(y, torch.full((rows, 5), float(x * weight * columns)))


@pytest.mark.parametrize("rows", [1, 20])
def test_the_widest_weight_is_exact(path: str, rows: int) -> None:
    """Its sums come within 128^2 of the end of int32."""
    dense = torch.full((1, 131071), -128, dtype=torch.int8)
    inputs = torch.full((rows, 131071), -128, dtype=torch.int8)
    packed, one = sparse.pack(dense), torch.ones(1)
    y = sparse.linear_int8(inputs, one, packed, one, sparse.row_sums(packed), dtype=torch.float32)
    assert torch.equal(y, torch.full((rows, 1), 131071.0 * 2**14))


def test_a_large_zero_point_does_not_overflow(path: str) -> None:
    each = case((8, 512), 2, zero=True)
    each.x_zero = torch.tensor([[2**31 - 1], [-(2**31)]], dtype=torch.int32)
    each.check(each.product())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_overflow_to_inf_and_nan_stays(path: str, dtype: torch.dtype) -> None:
    weight = torch.eye(8, dtype=torch.int8)
    scale = torch.tensor([1.0, math.inf, math.nan, 3e38, -3e38, 1e-44, 0.0, 1.0])
    x = torch.full((1, 8), 100, dtype=torch.int8)
    y = sparse.linear_int8(
        x, torch.ones(1), sparse.pack(weight), scale, weight.sum(1, dtype=torch.int32), dtype=dtype
    )
    assert torch.equal(y.float().nan_to_num(7), (100 * scale).to(dtype)[None].float().nan_to_num(7))
    assert bool(y[0, 2].isnan())


@pytest.mark.parametrize("shape", [*SHAPES, (0, 8), (8, 0)])
def test_row_sums(path: str, shape: tuple[int, int]) -> None:
    weight = sparse_weight(shape, 0.5)
    assert torch.equal(sparse.row_sums(sparse.pack(weight)), weight.sum(1, dtype=torch.int32))


def test_leading_dimensions_and_strides(path: str) -> None:
    each = case((40, 64), 6, zero=True)
    expected = each.product()
    wide = torch.zeros(6, 128, dtype=torch.int8)
    wide[:, ::2] = each.x
    each.x = wide.view(2, 3, 128)[..., ::2]
    each.x_scale, each.x_zero = each.x_scale.view(2, 3, 1), each.x_zero.view(2, 3, 1)
    assert torch.equal(each.product(), expected.view(2, 3, 40))
    each.x_scale, each.x_zero = each.x_scale[0, 0], each.x_zero[0, 0]
    each.x = each.x[0, 0]
    assert torch.equal(each.product(), expected[0])


def test_empty_products(path: str) -> None:
    one, bias = torch.ones(1), torch.ones(8)
    none = torch.zeros(8, 0, dtype=torch.int8)
    sums = torch.zeros(8, dtype=torch.int32)
    x = torch.zeros(2, 0, dtype=torch.int8)
    y = sparse.linear_int8(x, one, sparse.pack(none), one, sums, bias=bias, dtype=torch.float32)
    assert torch.equal(y, torch.ones(2, 8))
    each = case((8, 32), 0, per_row=False)
    assert each.product().shape == (0, 8)


def test_corrupt_weights_raise_and_stay_inside_memory(path: str) -> None:
    for rows in (1, 9, 70):
        each = case((64, 128), rows)
        for word in (0, 100, -1):
            packed = sparse.pack(each.weight)
            packed.mask.view(-1)[word] = -1
            with pytest.raises(RuntimeError, match="corrupt"):
                each.product(packed)
            if word == -1:
                with pytest.raises(RuntimeError, match="corrupt"):
                    sparse.row_sums(packed)
        for offset in (2**40, -1, 0):
            packed = sparse.pack(each.weight)
            packed.offsets[3] = offset
            with pytest.raises(RuntimeError, match="corrupt"):
                each.product(packed)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 200)),
    rows=st.integers(1, 40),
    sparsity=st.floats(0, 1),
    zero=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_product_is_exact(
    shape: tuple[int, int], rows: int, sparsity: float, zero: bool, bias: bool, seed: int
) -> None:
    each = case(shape, rows, sparsity, zero=zero, bias=bias, seed=seed)
    each.check(each.product())


@settings(max_examples=60, deadline=None)
@given(
    word=st.integers(0, 4 * 4 * 4 - 1),
    bits=st.integers(-(2**31), 2**31 - 1),
    block=st.integers(0, 4),
    offset=st.integers(-(2**63), 2**63 - 1) | st.integers(-200, 1200),
    rows=st.sampled_from([1, 4, 20]),
)
def test_mutated_weights_never_crash(
    word: int, bits: int, block: int, offset: int, rows: int
) -> None:
    each = case((16, 128), rows)
    for change in ("mask", "offsets"):
        packed = sparse.pack(each.weight)
        if change == "mask":
            packed.mask.view(-1)[word] = bits
        else:
            packed.offsets[block] = offset
        try:
            each.product(packed)
        except RuntimeError as error:
            assert "corrupt" in str(error)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("x", torch.zeros(3, 128), "x has dtype torch.float32, expected torch.int8"),
        ("x", torch.zeros(3, 64, dtype=torch.int8), "x has 64 features, the weight 128"),
        ("x", torch.tensor(1, dtype=torch.int8), "x must have at least one dimension"),
        ("x_scale", torch.zeros(2), r"x_scale must be torch.float32 with 1 or 3 entries, .*\(2,\)"),
        ("x_scale", torch.zeros(3).double(), "x_scale must be torch.float32"),
        ("x_zero", torch.zeros(1, dtype=torch.int32), "x_zero must be torch.int32 with 3 entries"),
        ("x_zero", torch.zeros(3, 1), "x_zero must be torch.int32"),
        ("weight_scale", torch.zeros(63), "weight_scale must be torch.float32 with 1 or 64"),
        ("bias", torch.zeros(64).half(), "bias must be torch.float32 with 64 entries"),
        ("dtype", torch.int32, "dtype is torch.int32, allowed are bfloat16, float16, float32"),
    ],
)
def test_what_does_not_fit_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(case(), **{field: value}).product()


def test_other_weights_and_sums_are_refused() -> None:
    each, one = case(), torch.ones(1)
    with pytest.raises(ValueError, match="the weight has dtype torch.float32, expected torch.int8"):
        each.product(sparse.pack(each.weight.float()))
    with pytest.raises(ValueError, match="sums must be torch.int32 with 64 entries"):
        sparse.linear_int8(
            each.x, one, sparse.pack(each.weight), one, torch.zeros(64), dtype=torch.float32
        )
    wide = sparse.pack(torch.zeros(1, 131072, dtype=torch.int8))
    with pytest.raises(ValueError, match="the weight has 131072 columns; int32 sums hold 131071"):
        sparse.row_sums(wide)


def test_torch_compile_traces_the_op_whole() -> None:
    each = case(zero=True)
    packed, sums = sparse.pack(each.weight), each.weight.sum(1, dtype=torch.int32)

    def model(x: Tensor, x_scale: Tensor, x_zero: Tensor) -> Tensor:
        y = torch.ops.tamp_modifier.sparse_linear_int8(
            x, x_scale, x_zero, packed.mask, packed.values, packed.offsets,
            each.weight_scale, sums, 64, None, torch.bfloat16,
        )  # fmt: skip
        return y * 2

    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for rows in (1, 5, 40):
        other = case(rows=rows, zero=True, dtype=torch.bfloat16)
        y = compiled(other.x, other.x_scale, other.x_zero)
        assert torch.equal(y, model(other.x, other.x_scale, other.x_zero))


def test_op_check() -> None:
    each = case(zero=True, bias=True)
    packed = sparse.pack(each.weight)
    arguments = (
        each.x, each.x_scale, each.x_zero, packed.mask, packed.values, packed.offsets,
        each.weight_scale, sparse.row_sums(packed), 64, each.bias, each.dtype,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.tamp_modifier.sparse_linear_int8.default, arguments)


def test_two_threads_give_the_result_of_one() -> None:
    code = (
        "import torch, zlib\n"
        "torch.manual_seed(0); torch.set_num_threads({})\n"
        "from tamp_modifier import sparse\n"
        "w = torch.randint(-128, 128, (1030, 1024), dtype=torch.int8)\n"
        "p = sparse.pack(w * (torch.rand(1030, 1024) > 0.5))\n"
        "one, sums = torch.ones(1), sparse.row_sums(p)\n"
        "x = torch.randint(-128, 128, (70, 1024), dtype=torch.int8)\n"
        "for rows in (3, 70):\n"
        "    y = sparse.linear_int8(x[:rows], one, p, one, sums, dtype=torch.float32)\n"
        "    print(sparse.backend(), zlib.crc32(y.numpy().tobytes()))\n"
    )
    assert run_python(code.format(1)).stdout == run_python(code.format(2)).stdout != ""
