"""Packed weights on huge pages: where tensors lie, and when their memory goes."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from tamp_modifier import sparse
from tamp_modifier.sparse import memory

needs_huge_pages = pytest.mark.skipif(not memory.huge_page(), reason="Linux with huge pages only")


def test_tensors_have_the_shape_and_dtype_and_do_not_overlap():
    shapes = [(3, 5), (7,), (1000, 33), (), (0, 4), (9, 1, 2)]
    dtypes = [torch.bfloat16, torch.int32, torch.int8, torch.float32, torch.int64, torch.float16]
    arena = memory.Arena()
    tensors = [arena.empty(*pair) for pair in zip(shapes, dtypes, strict=True)]
    for i, tensor in enumerate(tensors):
        assert tensor.shape == torch.Size(shapes[i]) and tensor.dtype == dtypes[i]
        assert tensor.numel() == 0 or tensor.data_ptr() % memory.ALIGNMENT == 0
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        tensor.fill_(i)
    assert all(bool((tensor == i).all()) for i, tensor in enumerate(tensors))


@needs_huge_pages
def test_a_large_tensor_begins_at_a_huge_page_and_a_full_region_is_followed_by_another():
    arena = memory.Arena()
    large = arena.empty((memory.REGION_BYTES,), torch.uint8)
    assert large.data_ptr() % memory.huge_page() == 0
    large[-1] = 1
    third = memory.REGION_BYTES // 3 - memory.ALIGNMENT
    first, second, other = (arena.empty((third,), torch.uint8) for _ in range(3))
    assert first.data_ptr() % memory.huge_page() == 0
    assert second.data_ptr() - first.data_ptr() - third in range(memory.ALIGNMENT)
    last = arena.empty((third,), torch.uint8)
    assert last.data_ptr() % memory.huge_page() == 0
    for tensor in (first, second, other, last):
        tensor[-1] = 1


@needs_huge_pages
def test_memory_goes_with_the_last_tensor():
    arena = memory.Arena()
    tensors = [arena.empty((100,), torch.float32) for _ in range(2)]
    assert arena.region is not None
    region = weakref.ref(arena.region.memory)
    arena.region = None
    tensors.pop()
    gc.collect()
    assert region() is not None
    tensors[0][99] = 1
    tensors.clear()
    gc.collect()
    assert region() is None


def test_without_huge_pages_the_same_numbers_come_out(monkeypatch):
    weight = torch.randn(64, 96) * (torch.rand(64, 96) > 0.5)
    expected = sparse.pack(weight)
    monkeypatch.setattr(memory, "huge_page", lambda: 0)
    packed = sparse.pack(weight)
    assert torch.equal(packed.values, expected.values) and torch.equal(packed.mask, expected.mask)
    assert torch.equal(sparse.unpack(packed), weight)


@pytest.mark.parametrize("size", [0, 10, memory.REGION_BYTES])
def test_memory_is_the_cpu_s_in_every_device_context(size):
    with torch.device("meta"):
        assert memory.empty((size,), torch.int8).device.type == "cpu"
