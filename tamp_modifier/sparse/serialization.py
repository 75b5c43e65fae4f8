"""Packed weights as named tensors, as in safetensors files.

A weight ``name`` becomes three tensors::

    name.tamp_mask     int32 [blocks, tiles, 4]
    name.tamp_values   dtype [kept], without the padding
    name.tamp_header   int64 [6]: version, out, in, kept, CRC-32 of shape, dtype, mask and values,
                       CRC-32 of the five numbers before

The offsets follow from the mask. `tensor_checksum` is for the tensors that stay as they are.
"""

from __future__ import annotations

import importlib
import warnings
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from tamp_modifier.sparse.format import (
    STORAGE_DTYPES,
    PackedWeight,
    mask_shape,
    padding_length,
)
from tamp_modifier.sparse.validation import checksum, crc32, offsets_from_mask, validate

FORMAT_VERSION = 1
MASK_SUFFIX, VALUES_SUFFIX, HEADER_SUFFIX = ".tamp_mask", ".tamp_values", ".tamp_header"
PACKED_SUFFIXES = (MASK_SUFFIX, VALUES_SUFFIX, HEADER_SUFFIX)
_HEADER_LENGTH = 6
INT4_VERSION, INT4_HEADER_LENGTH = 2, 7
"""Of packed 4-bit codes, see `int4_serialization`."""
MAX_SIDE, MAX_WEIGHTS = 2**24, 2**32
"""Most rows and most columns of a packed weight, and most weights.

A few bytes on disk can claim any size, so there is a limit; the largest matrices of known models
are below it.
"""


def numbers_checksum(numbers: list[int]) -> int:
    """Return the CRC-32 of the numbers of a header, in decimal with one space between them."""
    return zlib.crc32(" ".join(map(str, numbers)).encode())


def storable(rows: int, columns: int) -> bool:
    """Whether a weight ``[rows, columns]`` is within the limits of the format."""
    return (
        min(rows, columns) >= 0 and max(rows, columns) <= MAX_SIDE and rows * columns <= MAX_WEIGHTS
    )


def check_storable(name: str, shape: tuple[int, int]) -> None:
    """Refuse a weight that is not `storable`.

    Raises:
        ValueError: names it.
    """
    if not storable(*shape):
        raise ValueError(
            f"{name}: a packed weight has at most {MAX_SIDE:,} rows, as many columns and "
            f"{MAX_WEIGHTS:,} weights, got {shape[0]:,} x {shape[1]:,}"
        )


def tensor_checksum(tensor: Tensor) -> int:
    """CRC-32 of dtype, shape and bytes of a tensor that is stored as it is (about 3 GB/s).

    The text before the bytes is ``"DTYPE SIZE SIZE ..."``, with the name that the dtype has in
    torch.
    """
    text = " ".join([str(tensor.dtype), *map(str, tensor.shape)])
    return crc32(tensor.detach().cpu().contiguous(), zlib.crc32(text.encode()))


def packed_checksum(header: Tensor) -> int:
    """Return the checksum that a ``.tamp_header`` gives for its weight; the header is not checked.

    Raises:
        ValueError: it is no header.
    """
    lengths = (_HEADER_LENGTH, INT4_HEADER_LENGTH)
    if header.dtype != torch.int64 or header.dim() != 1 or len(header) not in lengths:
        raise ValueError(f"header must be int64 [{_HEADER_LENGTH}] or [{INT4_HEADER_LENGTH}]")
    return int(header[-2])


def to_tensors(packed: PackedWeight, name: str) -> dict[str, Tensor]:
    """Return the three tensors that store the weight `name`.

    Args:
        packed: the weight.
        name: its full name in the checkpoint, such as "model.layers.0.mlp.up_proj.weight".

    Returns:
        Mask int32 ``[blocks, tiles, 4]``, values ``[kept]`` and header int64 ``[6]``, by `name`
        with the suffixes of `PACKED_SUFFIXES`.

    Raises:
        ValueError: the weight is larger than `storable` allows.
    """
    check_storable(name, packed.shape)
    numbers = [FORMAT_VERSION, *packed.shape, packed.kept, checksum(packed)]
    return {
        name + MASK_SUFFIX: packed.mask,
        name + VALUES_SUFFIX: packed.values[: packed.kept],
        name + HEADER_SUFFIX: torch.tensor(
            [*numbers, numbers_checksum(numbers)], device=packed.device
        ),
    }


def take(tensors: Mapping[str, Tensor], name: str, suffixes: tuple[str, ...]) -> list[Tensor]:
    """Return the tensors `name` + suffix.

    Raises:
        ValueError: one is missing; names it.
    """
    missing = [name + suffix for suffix in suffixes if name + suffix not in tensors]
    if missing:
        raise ValueError(f"{name}: the file lacks {', '.join(missing)}")
    return [tensors[name + suffix] for suffix in suffixes]


def from_tensors(tensors: Mapping[str, Tensor], name: str, verify: bool = True) -> PackedWeight:
    """Return the packed weight `name` from its three tensors, checked.

    Args:
        tensors: holds at least the three tensors of `name`.
        name: name of the weight, without the suffixes.
        verify: compare the checksum of mask and values too (about 3 GB/s).

    Raises:
        ValueError: a tensor is missing, or anything is wrong with one of them; names the weight.
    """
    mask, stored, header = take(tensors, name, PACKED_SUFFIXES)
    if header.dtype != torch.int64 or header.shape != (_HEADER_LENGTH,):
        raise ValueError(
            f"{name}: header must be int64 [{_HEADER_LENGTH}], "
            f"got {header.dtype} {tuple(header.shape)}"
        )
    numbers = header.tolist()
    if numbers[-1] != numbers_checksum(numbers[:-1]):
        raise ValueError(f"{name}: the header is damaged: {numbers}")
    version, rows, columns, kept, expected = numbers[:-1]
    if version != FORMAT_VERSION:
        raise ValueError(f"{name}: format version {version} is not known, only {FORMAT_VERSION} is")
    check_storable(name, (rows, columns))
    if stored.dtype not in STORAGE_DTYPES or stored.shape != (kept,):
        raise ValueError(
            f"{name}: values must be [{kept}] in a known dtype, "
            f"got {tuple(stored.shape)} in {stored.dtype}"
        )
    if mask.dtype != torch.int32 or tuple(mask.shape) != mask_shape((rows, columns)):
        raise ValueError(
            f"{name}: mask must be int32 {mask_shape((rows, columns))}, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    storage = STORAGE_DTYPES[stored.dtype]
    values = torch.empty(kept + padding_length(stored.dtype), dtype=storage, device=stored.device)
    values[:kept] = stored.view(storage)
    values[kept:] = 0
    mask = mask.contiguous()
    packed = PackedWeight(mask, values.view(stored.dtype), offsets_from_mask(mask), (rows, columns))
    validate(packed, name)
    if verify and checksum(packed) != expected:
        raise ValueError(f"{name}: the checksum does not match, mask or values are damaged")
    return packed


# Names that stood here in 0.1 and their rooms now. Looked up by name: this package needs torch and
# nothing else of ours.
_MOVED = dict.fromkeys(("read_24_bitmask", "read_bitmask"), "legacy") | dict.fromkeys(
    (
        "CONFIG_FORMAT",
        "CONFIG_KEY",
        "INNER_KEY",
        "LAYOUTS",
        "QUANT_METHOD",
        "config_marker",
        "mark_dense",
        "mark_packed",
        "read_marker",
    ),
    "marker",
)


def moved(module: str, name: str) -> object:
    """Return what a module of 0.1 had under a name, and warn where it is now; goes in 0.3.

    Raises:
        AttributeError: it never had such a name.
    """
    if name not in _MOVED:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    room = f"tamp_modifier.checkpoint.{_MOVED[name]}"
    warnings.warn(
        f"{module}.{name} is now in {room}; the old name goes in 0.3",
        DeprecationWarning,
        stacklevel=3,
    )
    return getattr(importlib.import_module(room), name)


def __getattr__(name: str) -> object:
    return moved(__name__, name)
