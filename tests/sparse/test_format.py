"""The packed format: exact round trips, slices, and one layout whoever packs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamp_modifier import sparse
from tamp_modifier.sparse import native
from tamp_modifier.sparse.format import STORAGE_DTYPES

DTYPES = list(STORAGE_DTYPES)
SHAPES = [(1, 1), (3, 31), (4, 32), (5, 33), (64, 96), (130, 257), (0, 8), (8, 0)]


def random_weight(
    shape: tuple[int, int], dtype: torch.dtype, sparsity: float, seed: int = 0
) -> torch.Tensor:
    """A weight of random bits, so that NaN, Inf and subnormals occur, with zeros; no -0."""
    generator = torch.Generator().manual_seed(seed)
    storage = STORAGE_DTYPES[dtype]
    info = torch.iinfo(storage)
    bits = torch.randint(info.min, info.max + 1, shape, dtype=torch.int64, generator=generator)
    if dtype != torch.int8:
        bits[bits == info.min] = 0
    bits[torch.rand(shape, generator=generator) < sparsity] = 0
    return bits.to(storage).view(dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    storage = STORAGE_DTYPES[a.dtype]
    return a.dtype == b.dtype and torch.equal(a.view(storage), b.view(storage))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 1.0])
def test_unpack_gives_back_the_same_bits(shape, dtype, sparsity):
    weight = random_weight(shape, dtype, sparsity)
    packed = sparse.pack(weight)
    sparse.validate(packed)
    assert same_bits(sparse.unpack(packed), weight)
    assert packed.kept == int((weight.view(STORAGE_DTYPES[dtype]) != 0).sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_path_packs_alike(use_path, shape, dtype):
    weight = random_weight(shape, dtype, 0.6)
    use_path("torch")
    expected = sparse.pack(weight)
    assert same_bits(sparse.unpack(expected), weight)
    for path in native.paths():
        use_path(path)
        packed = sparse.pack(weight)
        assert torch.equal(packed.mask, expected.mask), path
        assert torch.equal(packed.offsets, expected.offsets), path
        assert same_bits(packed.values, expected.values), path
        assert same_bits(sparse.unpack(expected), weight), path


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(0, 70),
    columns=st.integers(0, 140),
    sparsity=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_round_trip_of_any_weight(rows, columns, sparsity, dtype, seed):
    weight = random_weight((rows, columns), dtype, sparsity, seed)
    assert same_bits(sparse.unpack(sparse.pack(weight)), weight)


def test_negative_zero_comes_back_as_zero_and_nan_and_inf_survive():
    weight = torch.tensor([[-0.0, math.nan, math.inf, -math.inf, 1e-45, 0.0]])
    back = sparse.unpack(sparse.pack(weight))
    assert sparse.pack(weight).kept == 4
    assert torch.signbit(back).tolist() == [[False, False, False, True, False, False]]
    assert torch.equal(back[0, 2:], weight[0, 2:]) and back[0, 1].isnan()


def test_strided_weights_pack_like_contiguous_ones():
    weight = random_weight((64, 96), torch.bfloat16, 0.5)
    for view in (weight.t(), weight[::2], weight[:, 3:70], weight[5:37, ::3]):
        assert same_bits(sparse.unpack(sparse.pack(view)), view.contiguous())


@pytest.mark.parametrize("start, stop", [(0, 37), (4, 12), (0, 4), (3, 9), (36, 37), (8, 8)])
def test_row_slices(start, stop):
    weight = random_weight((37, 75), torch.bfloat16, 0.5)
    part = sparse.row_slice(sparse.pack(weight), start, stop)
    sparse.validate(part)
    assert same_bits(sparse.unpack(part), weight[start:stop].contiguous())


@pytest.mark.parametrize("start, stop", [(0, 75), (32, 64), (1, 40), (74, 75), (9, 9)])
def test_col_slices(start, stop):
    weight = random_weight((37, 75), torch.float16, 0.5)
    part = sparse.col_slice(sparse.pack(weight), start, stop)
    assert same_bits(sparse.unpack(part), weight[:, start:stop].contiguous())


def test_half_of_a_bf16_weight_takes_nine_bits_a_weight():
    weight = torch.ones(512, 1024, dtype=torch.bfloat16)
    weight[:, ::2] = 0
    packed = sparse.pack(weight)
    assert packed.sparsity == 0.5
    assert packed.nbytes <= 0.57 * weight.nbytes


@pytest.mark.parametrize(
    "weight, message",
    [
        (torch.zeros(3), r"\[out, in\]"),
        (torch.zeros(2, 2, 2), r"\[out, in\]"),
        (torch.zeros(2, 2, dtype=torch.float64), "float64"),
    ],
)
def test_pack_refuses_other_tensors(weight, message):
    with pytest.raises(ValueError, match=message):
        sparse.pack(weight)


def test_pack_refuses_what_is_no_tensor():
    with pytest.raises(TypeError, match="list"):
        sparse.pack([[1.0]])


@pytest.mark.parametrize("slicer", [sparse.row_slice, sparse.col_slice])
@pytest.mark.parametrize("start, stop", [(-1, 2), (2, 1), (0, 9)])
def test_slices_outside_are_refused(slicer, start, stop):
    with pytest.raises(ValueError, match="outside"):
        slicer(sparse.pack(torch.ones(8, 8)), start, stop)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_device_context_changes_nothing(dtype):
    """Libraries build models under ``torch.device("meta")``."""
    weight = random_weight((130, 257), dtype, 0.5)
    with torch.device("meta"):
        packed = sparse.pack(weight)
        stored = sparse.to_tensors(packed, "w")
        found = sparse.unpack(sparse.from_tensors(stored, "w"))
    assert same_bits(found, weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [(8,), (4, 8, 5), (4, 0, 3), (0,)])
def test_concatenated_parts_are_what_the_whole_packs_to(rows, dtype):
    weights = [random_weight((n, 70), dtype, 0.5, seed) for seed, n in enumerate(rows)]
    joined = sparse.concatenate([sparse.pack(weight) for weight in weights])
    whole = sparse.pack(torch.cat([w.view(STORAGE_DTYPES[dtype]) for w in weights]).view(dtype))
    sparse.validate(joined)
    assert joined.shape == whole.shape and same_bits(joined.values, whole.values)
    assert torch.equal(joined.mask, whole.mask) and torch.equal(joined.offsets, whole.offsets)


def test_parts_that_cannot_be_concatenated_are_refused():
    def packed(rows, columns=64, dtype=torch.bfloat16):
        return sparse.pack(random_weight((rows, columns), dtype, 0.5))

    with pytest.raises(ValueError, match="6 rows, no multiple of 4"):
        sparse.concatenate([packed(6), packed(8)])
    with pytest.raises(ValueError, match="with 64 columns and of .* with 32"):
        sparse.concatenate([packed(8), packed(8, 32)])
    with pytest.raises(ValueError, match="torch.bfloat16 .* and of torch.float16"):
        sparse.concatenate([packed(8), packed(8, dtype=torch.float16)])
    with pytest.raises(ValueError, match="no packed weights"):
        sparse.concatenate([])
