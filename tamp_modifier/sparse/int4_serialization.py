"""Packed 4-bit codes as named tensors, as in safetensors files: version 2 of the format.

Scales stay in the tensors that the checkpoint has for them, so that what is packed are the codes
alone. A tensor of codes ``name`` becomes three tensors::

    name.tamp_mask     int32 [blocks, tiles, 4]
    name.tamp_values   uint8: with zero codes those, [out, groups], then the codes of kept weights
    name.tamp_header   int64 [7]: version, out, in, kept, columns of a group or 0 where all zero
                       codes are 8, CRC-32 of shape, group, mask and values, CRC-32 of the six
                       numbers before
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from tamp_modifier.sparse.format import PADDING_BYTES, mask_shape
from tamp_modifier.sparse.int4_format import (
    PackedInt4,
    blocked,
    checked_group_size,
    group_count,
    offsets_of,
    unblocked,
    validate_int4,
)
from tamp_modifier.sparse.serialization import (
    HEADER_SUFFIX,
    INT4_HEADER_LENGTH,
    INT4_VERSION,
    MASK_SUFFIX,
    PACKED_SUFFIXES,
    VALUES_SUFFIX,
    check_storable,
    numbers_checksum,
    take,
)
from tamp_modifier.sparse.validation import crc32


def to_tensors_int4(packed: PackedInt4, name: str) -> dict[str, Tensor]:
    """Return the three tensors that store the codes `name`; the scales are not among them.

    Raises:
        ValueError: the weight is larger than `storable` allows, or in activation order.
    """
    check_storable(name, packed.shape)
    if packed.order is not None:
        raise ValueError(f"{name}: codes in activation order cannot be stored")
    codes = packed.values[: packed.values.numel() - PADDING_BYTES]
    group = 0
    if packed.zeros is not None:
        group = packed.group_size
        codes = torch.cat([unblocked(packed.zeros, packed.shape[0]).flatten(), codes])
    numbers = [INT4_VERSION, *packed.shape, packed.kept, group]
    numbers.append(_checksum(packed.shape, group, packed.mask, codes))
    header = torch.tensor([*numbers, numbers_checksum(numbers)], device=packed.device)
    return {
        name + MASK_SUFFIX: packed.mask,
        name + VALUES_SUFFIX: codes,
        name + HEADER_SUFFIX: header,
    }


def _checksum(shape: tuple[int, int], group: int, mask: Tensor, values: Tensor) -> int:
    text = f"{shape[0]} {shape[1]} int4 {group}".encode()
    return crc32(values.cpu().contiguous(), crc32(mask.cpu().contiguous(), zlib.crc32(text)))


def from_tensors_int4(tensors: Mapping[str, Tensor], name: str) -> PackedInt4:
    """Return the packed codes `name` from their three tensors, checked, with scales of 1.

    Args:
        tensors: holds at least the three tensors of `name`.
        name: name of the tensor of codes, without the suffixes.

    Raises:
        ValueError: a tensor is missing, or anything is wrong with one of them; names the weight.
    """
    mask, values, header = take(tensors, name, PACKED_SUFFIXES)
    if header.dtype != torch.int64 or header.shape != (INT4_HEADER_LENGTH,):
        raise ValueError(
            f"{name}: header must be int64 [{INT4_HEADER_LENGTH}], "
            f"got {header.dtype} {tuple(header.shape)}"
        )
    numbers = header.tolist()
    if numbers[-1] != numbers_checksum(numbers[:-1]):
        raise ValueError(f"{name}: the header is damaged: {numbers}")
    version, rows, columns, kept, group, expected = numbers[:-1]
    if version != INT4_VERSION:
        raise ValueError(f"{name}: format version {version} is not known, only {INT4_VERSION} is")
    check_storable(name, (rows, columns))
    if values.dtype != torch.uint8 or values.dim() != 1:
        raise ValueError(f"{name}: values must be uint8 [bytes], got {values.dtype}")
    if mask.dtype != torch.int32 or tuple(mask.shape) != mask_shape((rows, columns)):
        raise ValueError(
            f"{name}: mask must be int32 {mask_shape((rows, columns))}, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    if _checksum((rows, columns), group, mask, values) != expected:
        raise ValueError(f"{name}: the checksum does not match, mask or values are damaged")
    zeros = None
    try:
        size = checked_group_size(group or -1, columns)
        groups = group_count(columns, size)
        if group:
            count = rows * groups
            if values.numel() < count:
                raise ValueError(
                    f"{values.numel()} bytes are stored, fewer than {count} zero codes"
                )
            zeros, values = blocked(values[:count].view(rows, groups)), values[count:]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    mask = mask.contiguous()
    packed = PackedInt4(
        mask=mask,
        values=torch.cat([values, values.new_zeros(PADDING_BYTES)]),
        offsets=offsets_of(mask),
        scale=blocked(torch.ones(rows, groups, dtype=torch.bfloat16, device=mask.device)),
        zeros=zeros,
        order=None,
        shape=(rows, columns),
        group_size=size,
    )
    validate_int4(packed, name)
    if packed.kept != kept:
        raise ValueError(f"{name}: the mask keeps {packed.kept} codes, the header says {kept}")
    return packed
