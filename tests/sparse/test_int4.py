"""Sparse 4-bit weights: the round trip, slices, and products against fp64 on every path."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamp_modifier import sparse
from tamp_modifier.sparse import native
from tests.sparse.test_linear import ROUNDING

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# out, in, group size: whole and cut blocks, tiles and groups.
SHAPES = [
    (1, 1, -1),
    (3, 33, 32),
    (8, 64, 32),
    (21, 200, 64),
    (36, 515, 128),
    (33, 1100, -1),
    (16, 640, 256),
]


def random_weight(shape, group_size, *, zeros=False, order=False, sparsity=0.5, seed=0, **dtypes):
    """Codes, scale, zeros and order, arguments of `pack_int4`."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    size = group_size if 0 < group_size < columns else max(1, columns)
    groups = -(-columns // size)

    def draw(*sizes):
        return torch.randint(0, 16, sizes, generator=generator, dtype=torch.uint8)

    zero = draw(rows, groups) if zeros else None
    filling = torch.full((rows, groups), 8, dtype=torch.uint8) if zero is None else zero
    pruned = torch.rand(shape, generator=generator) < sparsity
    codes = torch.where(pruned, filling.repeat_interleave(size, 1)[:, :columns], draw(*shape))
    scale = torch.rand(rows, groups, generator=generator) + 0.1
    permutation = torch.randperm(columns, generator=generator) if order else None
    if permutation is not None:  # the codes above are in stored order
        codes = torch.empty_like(codes).index_copy_(1, permutation, codes)
    return codes, scale.to(dtypes.get("dtype", torch.bfloat16)), zero, group_size, permutation


def exact_weight(codes, scale, zeros, group_size, order):
    """``(code - zero) * scale`` in fp64, computed from the arguments of `pack_int4` alone."""
    columns = codes.shape[1]
    size = group_size if 0 < group_size < columns else max(1, columns)
    group = torch.arange(columns) // size
    if order is not None:
        group = torch.empty_like(group).index_copy_(0, order, group)
    zero = 8 if zeros is None else zeros[:, group].double()
    return (codes.double() - zero) * scale[:, group].double()


def assert_close(y, x, weight, bias=None, x_scale=None):
    exact, bound = x.double() @ weight.t(), x.double().abs() @ weight.abs().t()
    if x_scale is not None:
        exact, bound = exact * x_scale.double(), bound * x_scale.double()
    if bias is not None:
        exact, bound = exact + bias.double(), bound + bias.double().abs()
    allowed = exact.abs() * ROUNDING[y.dtype] + bound * 2**-19 + 2**-24
    error = (y.double() - exact).abs()
    assert y.shape == exact.shape and bool((error <= allowed).all()), (error - allowed).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_fp64(path, shape, zeros, dtype):
    arguments = random_weight(shape[:2], shape[2], zeros=zeros, dtype=dtype, order=shape[1] > 100)
    packed, weight = sparse.pack_int4(*arguments), exact_weight(*arguments)
    bias = torch.randn(shape[0]).to(dtype)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 49):
        x = torch.randn(rows, shape[1]).to(dtype)
        with_bias = bias if rows % 2 else None
        y = sparse.linear_int4(x, packed, with_bias)
        assert y.dtype == dtype
        assert_close(y, x, weight, with_bias)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("rows", [64, 65, 300])
def test_many_rows_of_x(path, rows, zeros):
    arguments = random_weight((37, 700), 128, zeros=zeros)
    x = torch.randn(rows, 700).bfloat16()
    y = sparse.linear_int4(x, sparse.pack_int4(*arguments))
    assert_close(y, x, exact_weight(*arguments))


@pytest.mark.parametrize("sparsity", [0.0, 0.7, 0.95, 1.0])
def test_every_share_of_zeros(path, sparsity):
    arguments = random_weight((20, 320), 32, sparsity=sparsity, seed=3)
    x = torch.randn(3, 320).bfloat16()
    y = sparse.linear_int4(x, sparse.pack_int4(*arguments))
    assert_close(y, x, exact_weight(*arguments))


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_rounded_to_int8(path, dtype, zeros):
    arguments = random_weight((21, 1100), 128, zeros=zeros, order=True)
    packed, weight = sparse.pack_int4(*arguments), exact_weight(*arguments)
    bias = torch.randn(21).to(dtype)
    for rows in (1, 2, 8, 9, 70):
        x = torch.randn(rows, 1100).to(dtype)
        x[0, 3] = 40  # a scale of its own for each row
        levels, scale = sparse.int4.quantize_rows(x.float())
        assert levels.abs().max() == 127 and bool((levels == levels.round()).all())
        y = sparse.linear_int4(x, packed, bias, int8_activations=True)
        assert y.dtype == dtype
        assert_close(y, levels, weight, bias, scale)


def test_int8_activations_of_rows_of_zeros_and_with_inf(path):
    arguments = random_weight((8, 64), 32)
    x = torch.zeros(3, 64)
    x[1, 5], x[2] = torch.inf, torch.randn(64)
    y = sparse.linear_int4(x, sparse.pack_int4(*arguments), int8_activations=True)
    assert bool((y[0] == 0).all()) and bool(y[1].isnan().all()) and bool(y[2].isfinite().all())


def test_inf_in_x_stays_in_its_row(path):
    packed = sparse.pack_int4(*random_weight((12, 96), 32, sparsity=0.0))
    x = torch.ones(3, 96).bfloat16()
    x[1, 7] = torch.inf
    y = sparse.linear_int4(x, packed)
    assert bool(y[[0, 2]].isfinite().all()) and not bool(y[1].isfinite().any())


@given(
    st.integers(0, 21),
    st.integers(0, 130),
    st.sampled_from([-1, 32, 64, 128]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_round_trip(rows, columns, group_size, zeros, order, sparsity, seed):
    arguments = random_weight(
        (rows, columns), group_size, zeros=zeros, order=order, sparsity=sparsity, seed=seed
    )
    before = native.backend()
    try:
        packed = []
        for name in native.paths():
            native.use(name)
            packed.append(sparse.pack_int4(*arguments))
            assert torch.equal(sparse.unpack_int4(packed[-1]), arguments[0])
            if rows and columns:
                dense = sparse.dequantize_int4(packed[-1]).double()
                assert torch.allclose(dense, exact_weight(*arguments), rtol=2**-22)
        for other in packed[1:]:
            assert torch.equal(other.mask, packed[0].mask)
            assert torch.equal(other.values, packed[0].values)
            assert torch.equal(other.offsets, packed[0].offsets)
    finally:
        native.use(before)


def test_layout_in_memory():
    codes = torch.full((2, 3), 8, dtype=torch.uint8)
    codes[0, 1], codes[1, 0], codes[1, 2] = 1, 2, 15
    packed = sparse.pack_int4(codes, torch.tensor([[0.5], [2.0]]), None, -1)
    assert packed.mask.tolist() == [[[2, 5, 0, 0]]]
    assert packed.values[:-64].tolist() == [0x21, 0x0F] and packed.offsets.tolist() == [0, 2]
    assert packed.scale.tolist() == [[[0.5, 2.0, 0.0, 0.0]]] and packed.group_size == 32
    assert packed.kept == 3 and packed.sparsity == 0.5


def test_bytes_at_half_are_four_fifths_of_dense():
    codes, scale, *rest = random_weight((256, 4096), 128)
    codes[codes == 8] = 9
    pruned = torch.rand(256, 4096).argsort(1) < 2048
    packed = sparse.pack_int4(codes.masked_fill(pruned, 8), scale, *rest)
    assert packed.sparsity == 0.5
    assert packed.nbytes <= 0.8 * (codes.numel() / 2 + scale.nbytes)


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_row_slices(zeros, order):
    arguments = random_weight((21, 200), 64, zeros=zeros, order=order)
    packed, weight = sparse.pack_int4(*arguments), exact_weight(*arguments)
    x = torch.randn(2, 200)
    for start, stop in ((0, 21), (4, 12), (8, 21), (3, 9), (5, 5), (20, 21)):
        part = sparse.row_slice_int4(packed, start, stop)
        assert part.shape == (stop - start, 200)
        assert torch.equal(sparse.unpack_int4(part), arguments[0][start:stop])
        assert_close(sparse.linear_int4(x, part), x, weight[start:stop])
    with pytest.raises(ValueError, match="rows 3:22 are outside of the 21 rows"):
        sparse.row_slice_int4(packed, 3, 22)


def test_column_slices():
    arguments = random_weight((9, 200), 64, zeros=True)
    packed, weight = sparse.pack_int4(*arguments), exact_weight(*arguments)
    for start, stop in ((0, 200), (64, 128), (128, 200), (64, 64)):
        part = sparse.col_slice_int4(packed, start, stop)
        x = torch.randn(2, stop - start)
        assert_close(sparse.linear_int4(x, part), x, weight[:, start:stop])
    with pytest.raises(ValueError, match="columns 0:100 cut a group of 64 columns in two"):
        sparse.col_slice_int4(packed, 0, 100)
    ordered = sparse.pack_int4(*random_weight((9, 200), 64, order=True))
    with pytest.raises(ValueError, match="activation order"):
        sparse.col_slice_int4(ordered, 0, 64)


def test_op_check():
    packed = sparse.pack_int4(*random_weight((20, 96), 32, zeros=True, order=True))
    arguments = (
        torch.randn(3, 96),
        *(packed.mask, packed.values, packed.offsets, packed.scale, packed.zeros, packed.order),
        20,
        32,
        torch.ones(20),
    )
    torch.library.opcheck(torch.ops.tamp_modifier.sparse_linear_int4.default, arguments)


def test_empty_inputs(path):
    packed = sparse.pack_int4(*random_weight((6, 64), 32))
    assert sparse.linear_int4(torch.zeros(0, 64), packed).shape == (0, 6)
    nothing = sparse.pack_int4(*random_weight((6, 0), -1))
    bias = torch.arange(6.0)
    assert torch.equal(sparse.linear_int4(torch.zeros(2, 0), nothing, bias), bias.expand(2, 6))
