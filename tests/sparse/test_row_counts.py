"""`linear` on every path where kernels cut their work: rows of x, strips, chunks and threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tamp_modifier import sparse
from tests.sparse.test_linear import assert_close, sparse_weight

HALVES = [torch.bfloat16, torch.float16]


def check(shape, rows, dtype, sparsity, *, step=1):
    """Compare a product with bias; rows of x lie `step` times their length apart."""
    weight = sparse_weight(shape, dtype, sparsity, seed=rows)
    x = torch.randn(rows, step * shape[1]).to(dtype)[:, : shape[1]]
    bias = torch.randn(shape[0]).to(dtype)
    assert_close(sparse.linear(x, sparse.pack(weight), bias), x, weight, bias)


@pytest.mark.parametrize("dtype", HALVES)
def test_every_group_of_rows_is_filled_up(path, dtype):
    for rows in (1, 4, 5, 15, 16, 17, 32, 33, 48, 49, 63, 64, 65, 80, 81, 97, 128, 129, 200):
        check((37, 75), rows, dtype, rows % 11 / 10, step=1 + rows % 2)


@pytest.mark.parametrize("out_features", [1, 4, 15, 16, 17, 31, 32, 33, 48, 65])
def test_every_strip_of_the_weight_is_filled_up(path, out_features):
    for rows in (6, 70):
        check((out_features, 33), rows, torch.bfloat16, 0.5)


def test_more_rows_than_share_one_expansion(path):
    check((37, 75), 520, torch.bfloat16, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
def test_columns_in_chunks_and_sums_in_parts(path, dtype):
    """For 512 rows of x AMX takes 1024 columns and 128 rows of the weight at a time."""
    check((150, 1100), 512, dtype, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("rows, columns", [(7, 33000), (40, 11000)])
def test_few_rows_of_more_columns_than_the_cache_holds(path, rows, columns):
    check((37, columns), rows, torch.bfloat16, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_all_numbers_of_rows(path, sparsity):
    for rows in range(1, 201):
        check((21, 70), rows, torch.bfloat16, sparsity)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads in torch and in the native library, for the duration of a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 40, 80])
def test_a_range_may_begin_at_any_block(path, two_threads, rows):
    check((37 if rows > 1 else 1027, 150), rows, torch.bfloat16, 0.5)


@pytest.mark.parametrize("rows", [5, 64, 65, 200])
def test_damage_is_found_whatever_the_number_of_rows(path, rows):
    weight = sparse_weight((43, 128), torch.bfloat16, 0.5)
    for word in (0, 100, -1):
        packed = sparse.pack(weight)
        packed.mask.view(-1)[word] = -1
        with pytest.raises(RuntimeError, match="corrupt"):
            sparse.linear(torch.randn(rows, 128).bfloat16(), packed)
