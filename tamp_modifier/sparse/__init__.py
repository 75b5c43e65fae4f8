"""Sparse weights: a bitmask format with an exact round trip, and multiplication with it.

Needs torch and nothing else of this package.
"""

from __future__ import annotations

import importlib
import warnings

from tamp_modifier.sparse.format import PackedWeight
from tamp_modifier.sparse.native import backend
from tamp_modifier.sparse.ops import linear
from tamp_modifier.sparse.packing import col_slice, pack, row_slice, unpack
from tamp_modifier.sparse.serialization import (
    FORMAT_VERSION,
    PACKED_SUFFIXES,
    from_tensors,
    to_tensors,
)
from tamp_modifier.sparse.validation import checksum, validate

__all__ = [
    "FORMAT_VERSION",
    "PACKED_SUFFIXES",
    "PackedWeight",
    "backend",
    "checksum",
    "col_slice",
    "from_tensors",
    "linear",
    "pack",
    "row_slice",
    "to_tensors",
    "unpack",
    "validate",
]

# Names that stood here in 0.1 and their rooms now. Looked up by name: this package needs torch and
# nothing else of ours.
_MOVED = {
    "CONFIG_FORMAT": "marker",
    "CONFIG_KEY": "marker",
    "config_marker": "marker",
    "read_marker": "marker",
    "read_24_bitmask": "legacy",
    "read_bitmask": "legacy",
}


def __getattr__(name: str) -> object:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = f"tamp_modifier.checkpoint.{_MOVED[name]}"
    warnings.warn(
        f"{__name__}.{name} is now in {room} and leaves {__name__} in 0.3",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(importlib.import_module(room), name)
