"""Sparse weights: a bitmask format with an exact round trip, and multiplication with it.

Needs torch and nothing else of this package.
"""

from __future__ import annotations

from tamp_modifier.sparse.format import PackedWeight
from tamp_modifier.sparse.grouped import linear_grouped, pack_groups, unpack_groups
from tamp_modifier.sparse.int4 import (
    PackedInt4,
    col_slice_int4,
    dequantize_int4,
    linear_int4,
    pack_int4,
    row_slice_int4,
    unpack_int4,
    validate_int4,
)
from tamp_modifier.sparse.int8 import linear_int8, row_sums
from tamp_modifier.sparse.native import backend
from tamp_modifier.sparse.ops import linear
from tamp_modifier.sparse.packing import col_slice, concatenate, pack, row_slice, unpack
from tamp_modifier.sparse.serialization import (
    FORMAT_VERSION,
    PACKED_SUFFIXES,
    from_tensors,
    moved,
    to_tensors,
)
from tamp_modifier.sparse.validation import checksum, validate

__all__ = [
    "FORMAT_VERSION",
    "PACKED_SUFFIXES",
    "PackedInt4",
    "PackedWeight",
    "backend",
    "checksum",
    "col_slice",
    "col_slice_int4",
    "concatenate",
    "dequantize_int4",
    "from_tensors",
    "linear",
    "linear_grouped",
    "linear_int4",
    "linear_int8",
    "pack",
    "pack_groups",
    "pack_int4",
    "row_slice",
    "row_slice_int4",
    "row_sums",
    "to_tensors",
    "unpack",
    "unpack_groups",
    "unpack_int4",
    "validate",
    "validate_int4",
]


def __getattr__(name: str) -> object:
    return moved(__name__, name)
