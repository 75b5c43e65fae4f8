"""`linear_grouped` against fp64 and against `linear`, on every path that this machine can take."""

from __future__ import annotations

import pytest
import torch

from tamp_modifier import sparse
from tests.sparse.test_linear import DTYPES, assert_close, sparse_weight

BOUNDS = {
    "even": [0, 2, 4, 6],
    "empty groups": [0, 0, 7, 7],
    "rows of no group": [1, 3, 4, 9],
    "one large group": [0, 1, 70, 72],
    "none at all": [0, 0, 0, 0],
}


def random_bounds(seed: int, groups: int, rows: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randint(0, rows + 1, (groups + 1,), generator=generator)
    return cuts.sort().values.tolist()


def assert_groups(y, x, limits, weights, bias=None):
    outside = torch.ones(x.shape[0], dtype=torch.bool)
    for group, (begin, end) in enumerate(zip(limits, limits[1:], strict=False)):
        outside[begin:end] = False
        row = None if bias is None else bias[group]
        assert_close(y[begin:end], x[begin:end], weights[group], row)
    assert not y[outside].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_each_group_has_its_weight(path, bounds, dtype):
    for shape in ((3, 12, 64), (3, 7, 33), (3, 130, 200)):
        weights = sparse_weight(shape, dtype, 0.5)
        packed = sparse.pack_groups(weights)
        x = torch.randn(max(bounds[-1], 1) + 2, shape[2]).to(dtype)
        bias = torch.randn(shape[:2]).to(dtype)
        limits = torch.tensor(bounds)
        y = sparse.linear_grouped(x, limits, packed, shape[1])
        assert_groups(y, x, bounds, weights)
        y = sparse.linear_grouped(x, limits, packed, shape[1], bias)
        assert_groups(y, x, bounds, weights, bias)


@pytest.mark.parametrize("seed", range(8))
def test_random_groups(path, seed):
    groups, rows = 1 + seed * 3, 1 + seed * 9
    weights = sparse_weight((groups, 24, 96), torch.bfloat16, seed / 8, seed)
    limits = random_bounds(seed, groups, rows)
    x = torch.randn(rows, 96).bfloat16()
    y = sparse.linear_grouped(x, torch.tensor(limits), sparse.pack_groups(weights), 24)
    assert_groups(y, x, limits, weights)


@pytest.mark.parametrize("rows", [5, 8])
def test_unpack_groups_gives_the_weights_back(path, rows):
    weights = sparse_weight((3, rows, 40), torch.float16, 0.5)
    packed = sparse.pack_groups(weights)
    sparse.validate(packed)
    assert packed.shape == (24, 40)
    assert torch.equal(sparse.unpack_groups(packed, 3, rows), weights)


def test_x_need_not_be_contiguous(path):
    weights = sparse_weight((2, 8, 32), torch.float32, 0.5)
    x = torch.randn(32, 6).t()
    y = sparse.linear_grouped(x, torch.tensor([0, 3, 6]), sparse.pack_groups(weights), 8)
    assert_groups(y, x, [0, 3, 6], weights)


def test_compiled(path):
    weights = sparse_weight((2, 8, 32), torch.float32, 0.5)
    packed = sparse.pack_groups(weights)
    compiled = torch.compile(
        lambda x, limits: sparse.linear_grouped(x, limits, packed, 8) + 1, backend="aot_eager"
    )
    x, limits = torch.randn(6, 32), torch.tensor([0, 3, 6])
    assert torch.equal(compiled(x, limits), sparse.linear_grouped(x, limits, packed, 8) + 1)


@pytest.mark.parametrize("bounds", [[-1, 2, 6], [0, 4, 3], [0, 3, 7], [7, 7, 7]])
def test_bounds_outside_of_x_are_refused(path, bounds):
    packed = sparse.pack_groups(sparse_weight((2, 8, 32), torch.bfloat16, 0.5))
    with pytest.raises(ValueError, match="bounds must ascend"):
        sparse.linear_grouped(torch.ones(6, 32).bfloat16(), torch.tensor(bounds), packed, 8)


def test_other_arguments_that_do_not_fit_are_refused():
    packed = sparse.pack_groups(sparse_weight((2, 8, 32), torch.bfloat16, 0.5))
    x, bounds = torch.ones(6, 32).bfloat16(), torch.tensor([0, 3, 6])
    with pytest.raises(ValueError, match=r"x must be \[rows, in\], got shape \(1, 6, 32\)"):
        sparse.linear_grouped(x[None], bounds, packed, 8)
    with pytest.raises(ValueError, match=r"bounds must be int64 \[groups \+ 1\], got torch.int32"):
        sparse.linear_grouped(x, bounds.int(), packed, 8)
    with pytest.raises(ValueError, match="1 groups of 8 rows need 2 blocks, the mask has 4"):
        sparse.linear_grouped(x, bounds[:2], packed, 8)
    with pytest.raises(ValueError, match=r"bias must be torch.bfloat16 \[2, 8\]"):
        sparse.linear_grouped(x, bounds, packed, 8, torch.ones(8).bfloat16())
    with pytest.raises(ValueError, match="x has 16 features, the weight 32"):
        sparse.linear_grouped(x[:, :16], bounds, packed, 8)
    with pytest.raises(ValueError, match=r"weights must be \[groups, out, in\]"):
        sparse.pack_groups(torch.ones(8, 32))


def test_a_corrupt_weight_is_an_error_and_no_crash(path):
    packed = sparse.pack_groups(sparse_weight((2, 8, 32), torch.bfloat16, 0.5))
    packed.offsets[2] = 10**6
    with pytest.raises(RuntimeError, match="corrupt"):
        sparse.linear_grouped(torch.ones(6, 32).bfloat16(), torch.tensor([0, 3, 6]), packed, 8)
