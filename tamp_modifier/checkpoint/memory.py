"""How much memory a checkpoint takes while it is read, and how much there is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from tamp_modifier.sparse.format import BLOCK_ROWS, TILE_COLUMNS
from tamp_modifier.sparse.serialization import MASK_SUFFIX, VALUES_SUFFIX

if TYPE_CHECKING:  # it needs safetensors, which `tamp env` does without
    from tamp_modifier.checkpoint.files import Header

_LEGACY_MASK, _LEGACY_VALUES = ".bitmask", ".compressed"


def dense_sizes(header: Header) -> dict[str, int]:
    """Bytes of every weight when it is dense, from the shapes of its mask; at most a tile too many.

    Args:
        header: of `files.read_header`.

    Returns:
        Bytes by the name of the weight; of tensors that are stored as they are, their own.
    """
    sizes: dict[str, int] = {}
    for name, (shape, dtype) in header.items():
        if name.endswith(MASK_SUFFIX):
            base, weights = name.removesuffix(MASK_SUFFIX), BLOCK_ROWS * TILE_COLUMNS
            values = header.get(base + VALUES_SUFFIX)
            blocks = prod(shape[:2])
        elif name.endswith(_LEGACY_MASK):
            base, weights = name.removesuffix(_LEGACY_MASK), 8
            values = header.get(base + _LEGACY_VALUES)
            blocks = prod(shape)
        else:
            sizes[name] = sizes.get(name, 0) + prod(shape) * dtype.itemsize
            continue
        itemsize = values[1].itemsize if values is not None else 1
        sizes[base] = sizes.get(base, 0) + blocks * weights * itemsize
    return sizes


def require_memory(header: Header, where: object) -> dict[str, int]:
    """Refuse a checkpoint with a weight that does not fit into memory when it is dense.

    Returns:
        See `dense_sizes`.

    Raises:
        ValueError: names the weight.
    """
    sizes = dense_sizes(header)
    free = free_memory()
    name, largest = _largest(sizes)
    if free is not None and largest > free:
        raise ValueError(
            f"{where}: {name} takes {largest / 1e9:.1f} GB when it is dense, and "
            f"{free / 1e9:.1f} GB of memory are free"
        )
    return sizes


def _largest(sizes: Mapping[str, int]) -> tuple[str, int]:
    return max(sizes.items(), key=lambda item: item[1], default=("", 0))


CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Where a container sees its limit, what it uses, and what of that is cache: version 2 and 1."""


def free_of_container() -> int | None:
    """Bytes that the container may still take; None where there is no limit."""
    for place, limit, used, cache in CGROUPS:
        try:
            most, taken = (
                (Path(place) / name).read_text(encoding="ascii") for name in (limit, used)
            )
            lines = (Path(place) / "memory.stat").read_text(encoding="ascii").splitlines()
            cached = int(dict(line.split() for line in lines)[cache])
            return max(0, int(most) - int(taken) + cached)
        except (OSError, ValueError, KeyError):  # "max" is no number: no limit
            continue
    return None


def free_memory() -> int | None:
    """Bytes that this process can still take; None where the system does not tell.

    The least of what the machine has free and what a container and the limit of the process leave.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":") for line in lines)
        found = [int(fields["MemAvailable"].split()[0]) * 1024]
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, KeyError):
        return None
    container = free_of_container()
    if container is not None:
        found.append(container)
    import resource  # not on every system, but on those with /proc

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(max(0, limit - pages * os.sysconf("SC_PAGE_SIZE")))
    return min(found)
