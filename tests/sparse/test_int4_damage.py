"""What does not fit a sparse 4-bit weight is refused, and a damaged one does no harm."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tamp_modifier import sparse
from tests.sparse.test_int4 import random_weight


@pytest.mark.parametrize(
    "change, message",
    [
        ({"codes": torch.zeros(8, 64)}, r"codes must be uint8 \[out, in\], got torch.float32"),
        ({"codes": torch.full((8, 64), 16, dtype=torch.uint8)}, "codes go up to 16"),
        ({"scale": torch.ones(8, 3)}, r"scale must be .* \(8, 2\), got torch.float32 \(8, 3\)"),
        ({"scale": torch.ones(8, 2, dtype=torch.int32)}, "scale must be .* got torch.int32"),
        ({"zeros": torch.ones(8, 2)}, r"zeros must be uint8 \(8, 2\), got torch.float32"),
        ({"zeros": torch.full((8, 2), 17, dtype=torch.uint8)}, "zeros go up to 17"),
        ({"group_size": 48}, "group_size is 48, allowed are multiples of 32, and -1"),
        ({"group_size": 0}, "group_size is 0, allowed"),
        ({"group_size": 32.0}, "group_size must be an integer, got 32.0"),
        ({"order": torch.zeros(64, dtype=torch.int64)}, "order must name each column once"),
        ({"order": torch.arange(63)}, r"order must be int64 \[64\]"),
    ],
)
def test_what_cannot_be_packed_is_refused(change, message):
    names = ("codes", "scale", "zeros", "group_size", "order")
    arguments = dict(zip(names, random_weight((8, 64), 32), strict=True))
    with pytest.raises(ValueError, match=message):
        sparse.pack_int4(**(arguments | change))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(1, 64, dtype=torch.int8)}, "x has dtype torch.int8, allowed"),
        ({"x": torch.zeros(1, 65)}, "x has 65 features, the weight 64"),
        ({"x": torch.tensor(1.0)}, "dimension"),
        ({"bias": torch.zeros(9)}, "bias must be"),
        ({"bias": torch.zeros(8).half()}, "bias must be"),
    ],
)
def test_what_cannot_be_multiplied_is_refused(change, message):
    packed = sparse.pack_int4(*random_weight((8, 64), 32))
    arguments = {"x": torch.zeros(1, 64), "packed": packed, **change}
    with pytest.raises(ValueError, match=message):
        sparse.linear_int4(**arguments)


def damaged(packed, **changes):
    copies = {
        name: getattr(packed, name).clone()
        for name in ("mask", "values", "offsets", "scale", "zeros", "order")
    }
    return dataclasses.replace(packed, **(copies | changes))


def test_validate_names_what_is_wrong():
    packed = sparse.pack_int4(*random_weight((7, 60), 32, zeros=True, order=True))
    sparse.validate_int4(packed)
    short = packed.values[:-70]
    for changes, message in (
        ({"values": short}, "bytes are stored|fewer"),
        ({"mask": packed.mask.long()}, "mask has dtype torch.int64"),
        ({"offsets": packed.offsets + 1}, "the offsets are not those of the mask"),
        ({"scale": packed.scale[:, :1].contiguous()}, "scale has shape"),
        ({"zeros": packed.zeros + 16}, "zeros go up to"),
        ({"order": packed.order.clamp(max=50)}, "order is not a permutation"),
        ({"shape": (7, 61)}, "order has shape"),
        ({"group_size": 48}, "group_size is 48"),
    ):
        with pytest.raises(ValueError, match=f"q_proj: .*({message})"):
            sparse.validate_int4(damaged(packed, **changes), "q_proj")


@pytest.mark.parametrize("rows", [1, 5, 20])
def test_a_damaged_weight_raises_or_computes_and_stays_inside_memory(path, rows):
    packed = sparse.pack_int4(*random_weight((24, 256), 64, zeros=True, order=True))
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 256).bfloat16()
    for _ in range(40):
        bad = damaged(packed)
        name = ("mask", "offsets", "values", "zeros", "order")[
            int(torch.randint(0, 5, (), generator=generator))
        ]
        raw = getattr(bad, name).view(torch.uint8).view(-1)
        place = torch.randint(0, raw.numel(), (8,), generator=generator)
        raw[place] = torch.randint(0, 256, (8,), generator=generator, dtype=torch.uint8)
        for int8_activations in (False, True):
            try:
                y = sparse.linear_int4(x, bad, int8_activations=int8_activations)
            except (RuntimeError, IndexError):
                continue
            assert y.shape == (rows, 24)


def test_masks_and_offsets_that_disagree_are_found(path):
    packed = sparse.pack_int4(*random_weight((64, 128), 32, zeros=True, order=True))
    x = torch.randn(2, 128).bfloat16()
    for word in (0, 100, -1):
        bad = damaged(packed)
        bad.mask.view(-1)[word] = 0 if bad.mask.view(-1)[word] else -1
        with pytest.raises(RuntimeError, match="corrupt"):
            sparse.linear_int4(x, bad)
    bad = damaged(packed)
    bad.offsets[3] = 2**40
    with pytest.raises(RuntimeError, match="corrupt"):
        sparse.linear_int4(x, bad)
