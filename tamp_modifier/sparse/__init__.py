"""Sparse weights: a bitmask format with an exact round trip, and multiplication with it.

Needs torch and nothing else of this package.
"""

from __future__ import annotations

from tamp_modifier.sparse.format import PackedWeight
from tamp_modifier.sparse.native import backend
from tamp_modifier.sparse.ops import linear
from tamp_modifier.sparse.packing import col_slice, pack, row_slice, unpack
from tamp_modifier.sparse.serialization import (
    CONFIG_FORMAT,
    CONFIG_KEY,
    FORMAT_VERSION,
    PACKED_SUFFIXES,
    config_marker,
    from_tensors,
    read_24_bitmask,
    read_bitmask,
    read_marker,
    to_tensors,
)
from tamp_modifier.sparse.validation import checksum, validate

__all__ = [
    "CONFIG_FORMAT",
    "CONFIG_KEY",
    "FORMAT_VERSION",
    "PACKED_SUFFIXES",
    "PackedWeight",
    "backend",
    "checksum",
    "col_slice",
    "config_marker",
    "from_tensors",
    "linear",
    "pack",
    "read_24_bitmask",
    "read_bitmask",
    "read_marker",
    "row_slice",
    "to_tensors",
    "unpack",
    "validate",
]
