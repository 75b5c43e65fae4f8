"""Damaged weights give an error that names them: no crash, no wrong numbers."""

from __future__ import annotations

import dataclasses
import zlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tamp_modifier import sparse
from tamp_modifier.sparse import native

NAME = "model.layers.0.mlp.up_proj.weight"


def packed_weight(shape=(14, 70), dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator).to(dtype)
    return sparse.pack(weight * (torch.rand(shape, generator=generator) > 0.5))


def stored(shape=(14, 70)):
    tensors = sparse.to_tensors(packed_weight(shape), NAME)
    return {key: tensor.clone() for key, tensor in tensors.items()}


@pytest.fixture(params=["native", "torch"])
def checker(request, use_path):
    """Both implementations of the check."""
    use_path("torch" if request.param == "torch" else native.paths()[0])
    if request.param == "native" and not native.available():
        pytest.fail("the native library is not built")


@pytest.mark.parametrize(
    "field, change, message",
    [
        ("mask", lambda t: t[:-1], "mask has shape"),
        ("mask", lambda t: t.long(), "dtype"),
        ("mask", lambda t: t.transpose(0, 1), "contiguous"),
        ("values", lambda t: t[:-1], "stored"),
        ("values", lambda t: t[:5], "fewer than the padding"),
        ("values", lambda t: t.double(), "unknown to the format"),
        ("values", lambda t: t.view(1, -1), "1 dimension"),
        ("offsets", lambda t: t[:-1], "offsets has"),
        ("offsets", lambda t: t + 1, "begin with 1"),
        ("offsets", lambda t: t * 2, "the offsets say"),
        ("shape", lambda s: (s[0], s[1] + 32), "mask has shape"),
        ("shape", lambda s: (s[0] - 1, s[1]), "below the last row"),
        ("shape", lambda s: (s[0], s[1] - 3), "right of the last column"),
        ("shape", lambda s: (-4, s[1]), ">= 0"),
        ("shape", lambda s: (s[0],), "two sizes"),
    ],
)
def test_each_kind_of_damage_is_named(checker, field, change, message):
    packed = packed_weight()
    damaged = dataclasses.replace(packed, **{field: change(getattr(packed, field))})
    with pytest.raises(ValueError, match=message) as error:
        sparse.validate(damaged, NAME)
    assert str(error.value).startswith(NAME)
    with pytest.raises(ValueError):
        sparse.unpack(damaged)


def test_every_flipped_mask_bit_is_found(checker):
    packed = packed_weight((5, 34))
    for word in range(packed.mask.numel()):
        for bit in range(32):
            mask = packed.mask.clone()
            mask.view(-1)[word] ^= (1 << bit) if bit < 31 else -(1 << 31)
            with pytest.raises(ValueError, match=NAME):
                sparse.validate(dataclasses.replace(packed, mask=mask), NAME)


def test_stored_weights_come_back():
    packed = packed_weight()
    back = sparse.from_tensors(sparse.to_tensors(packed, NAME), NAME)
    assert back.shape == packed.shape
    assert torch.equal(sparse.unpack(back), sparse.unpack(packed))


@pytest.mark.parametrize("suffix", sparse.PACKED_SUFFIXES)
def test_a_missing_tensor_is_named(suffix):
    tensors = stored()
    del tensors[NAME + suffix]
    with pytest.raises(ValueError, match=NAME + suffix):
        sparse.from_tensors(tensors, NAME)


def test_a_changed_value_is_found_by_the_checksum():
    tensors = stored()
    values = tensors[NAME + ".tamp_values"]
    values[7] = values[7] * 2
    sparse.from_tensors(tensors, NAME, verify=False)
    with pytest.raises(ValueError, match=f"{NAME}: the checksum"):
        sparse.from_tensors(tensors, NAME)


def test_two_swapped_masks_are_found_by_the_checksum():
    tensors = stored()
    mask = tensors[NAME + ".tamp_mask"][0, 0]
    mask[0], mask[1] = mask[1].clone(), mask[0].clone()
    with pytest.raises(ValueError, match="checksum"):
        sparse.from_tensors(tensors, NAME)


def test_a_newer_format_is_refused():
    tensors = stored()
    numbers = tensors[NAME + ".tamp_header"].tolist()
    numbers[0] = 2
    numbers[-1] = zlib.crc32(" ".join(map(str, numbers[:-1])).encode())
    tensors[NAME + ".tamp_header"] = torch.tensor(numbers)
    with pytest.raises(ValueError, match="version 2"):
        sparse.from_tensors(tensors, NAME)


PARTS = [NAME + suffix for suffix in sparse.PACKED_SUFFIXES]
# One hypothesis example holds 50 mutations: 200 of them make 10,000.
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(PARTS),
        st.sampled_from(["flip", "cut", "extend", "reshape", "dtype", "random"]),
        st.integers(0, 2**31 - 1),
    ),
    min_size=50,
    max_size=50,
)


def mutate(tensor: torch.Tensor, kind: str, seed: int) -> torch.Tensor:
    tensor = tensor.clone()
    raw = tensor.view(torch.uint8).view(-1)
    if kind == "flip":
        raw[seed // 8 % raw.numel()] ^= 1 << seed % 8
    elif kind == "cut":
        tensor = tensor[: seed % tensor.shape[0]]
    elif kind == "extend":
        tensor = torch.cat([tensor, tensor[: 1 + seed % tensor.shape[0]]])
    elif kind == "reshape":
        tensor = tensor.reshape(-1, 1) if seed % 2 else tensor.reshape(-1)[::2]
    elif kind == "dtype":
        choices = [torch.uint8, torch.int32, torch.float32, torch.float64, torch.bool]
        tensor = tensor.to(choices[seed % len(choices)])
    else:
        generator = torch.Generator().manual_seed(seed)
        raw.copy_(torch.randint(0, 256, raw.shape, dtype=torch.uint8, generator=generator))
    return tensor


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(MUTATIONS)
def test_mutated_files_never_crash_and_never_give_wrong_numbers(mutations):
    original = stored((7, 40))
    expected = sparse.unpack(sparse.from_tensors(original, NAME))
    for part, kind, seed in mutations:
        changed = mutate(original[part], kind, seed)
        try:
            packed = sparse.from_tensors({**original, part: changed}, NAME)
        except ValueError as error:
            assert NAME in str(error)
        else:  # the mutation changed nothing
            assert same(changed, original[part])
            assert torch.equal(sparse.unpack(packed), expected)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    mutations=st.lists(
        st.tuples(
            st.sampled_from(["mask", "offsets"]),
            st.sampled_from(["flip", "random"]),
            st.integers(0, 2**31 - 1),
        ),
        min_size=20,
        max_size=20,
    ),
    rows=st.sampled_from([1, 2, 7, 40, 70]),
)
def test_unchecked_weights_never_crash_the_kernels(path, mutations, rows):
    """`linear` does not validate; whatever it is given, it stays inside its memory."""
    packed = packed_weight((11, 70))
    x = torch.ones(rows, 70, dtype=torch.bfloat16)
    for field, kind, seed in mutations:
        changed = dataclasses.replace(packed, **{field: mutate(getattr(packed, field), kind, seed)})
        try:
            sparse.linear(x, changed)
        except RuntimeError as error:
            assert "corrupt" in str(error)
