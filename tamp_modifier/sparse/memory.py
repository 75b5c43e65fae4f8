"""Memory for packed weights on huge pages.

A product reads its whole weight once. With pages of 4 KB that is one address translation every few
tiles and, inside a virtual machine, a walk through two page tables; measured on Zen 4 the kernels
are 1.3 to 1.5 times faster with pages of 2 MB. Linux gives them to memory that asks for them
(``MADV_HUGEPAGE``); elsewhere, or where they are switched off, everything works with small pages.
"""

from __future__ import annotations

import functools
import math
import mmap
import threading
from pathlib import Path

import torch
from torch import Tensor

# Tensors share regions of this size, as most are no multiple of a huge page; those of half a region
# or more get their own. A region is freed with the last of its tensors.
REGION_BYTES = 32 << 20
ALIGNMENT = 64
_PAGE_SIZE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


@functools.cache
def huge_page() -> int:
    """Bytes of a huge page; 0 where there is none, or one too large for sharing to pay."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return 0
    try:
        size = int(_PAGE_SIZE_FILE.read_text())
    except (OSError, ValueError):
        return 0
    return size if size <= REGION_BYTES // 8 else 0


class Region:
    """Anonymous memory that begins at a huge page; tensors keep it alive."""

    def __init__(self, size: int) -> None:
        page = huge_page()
        size = math.ceil(size / mmap.PAGESIZE) * mmap.PAGESIZE
        self.memory = mmap.mmap(-1, size + page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = torch.frombuffer(self.memory, dtype=torch.uint8, count=1).data_ptr()
        self.used = -address % page
        self.end = self.used + size
        try:
            self.memory.madvise(mmap.MADV_HUGEPAGE, self.used, size)
        except OSError:  # not supported by this kernel: small pages then
            pass

    def take(self, count: int, dtype: torch.dtype) -> Tensor | None:
        """Return a tensor of `count` elements; None if there is no room for it."""
        start = math.ceil(self.used / ALIGNMENT) * ALIGNMENT
        stop = start + count * dtype.itemsize
        if stop > self.end:
            return None
        self.used = stop
        return torch.frombuffer(self.memory, dtype=dtype, count=count, offset=start)


class Arena:
    """Places tensors that live as long as the model.

    A short-lived tensor between long-lived ones would keep its memory until they are gone.

    Attributes:
        region: memory that small tensors share at present; None before the first one.
    """

    def __init__(self) -> None:
        self.region: Region | None = None
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised CPU tensor, as `torch.empty` does."""
        count = math.prod(shape)
        if not count or not huge_page():
            return torch.empty(shape, dtype=dtype, device="cpu")
        size = count * dtype.itemsize
        if size >= REGION_BYTES // 2:
            tensor = Region(size).take(count, dtype)
        else:
            with self._lock:
                tensor = None if self.region is None else self.region.take(count, dtype)
                if tensor is None:
                    self.region = Region(REGION_BYTES)
                    tensor = self.region.take(count, dtype)
        assert tensor is not None  # a new region has room
        return tensor.view(shape)


empty = Arena().empty
"""`Arena.empty` of the one arena that this process packs into."""
