"""The operator that expands a packed weight."""

from __future__ import annotations

import pytest
import torch

from tamp_modifier import sparse
from tamp_modifier.sparse.ops import expand


def packed_weight(dtype: torch.dtype) -> tuple[torch.Tensor, sparse.PackedWeight]:
    torch.manual_seed(0)
    weight = (8 * torch.randn(14, 70) * (torch.rand(14, 70) > 0.5)).to(dtype)
    weight.view(torch.int8)[weight.view(torch.int8) == -128] = 0  # -0 comes back as 0
    return weight, sparse.pack(weight)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_it_gives_the_dense_weight(path, dtype):
    weight, packed = packed_weight(dtype)
    dense = expand(packed.mask, packed.values, packed.offsets, *packed.shape)
    assert dense.dtype == dtype
    assert torch.equal(dense.view(torch.int8), weight.view(torch.int8))


def test_it_is_a_torch_operator_that_compile_keeps_whole():
    _, packed = packed_weight(torch.int8)
    arguments = (packed.mask, packed.values, packed.offsets, *packed.shape)
    torch.library.opcheck(torch.ops.tamp_modifier.expand.default, arguments)
    compiled = torch.compile(lambda *a: expand(*a) + 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*arguments), expand(*arguments) + 1)


def test_it_refuses_a_damaged_weight():
    _, packed = packed_weight(torch.int8)
    with pytest.raises(ValueError, match="offsets"):
        expand(packed.mask, packed.values, packed.offsets + 1, *packed.shape)
    with pytest.raises(ValueError, match="mask"):
        expand(packed.mask, packed.values, packed.offsets, 99, 70)
