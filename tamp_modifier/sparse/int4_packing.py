"""Packing, unpacking and slicing of sparse 4-bit weights: native on CPU where built, else torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tamp_modifier.sparse import memory, native, native_int4
from tamp_modifier.sparse.format import (
    BLOCK_ROWS,
    COMPUTE_DTYPES,
    PADDING_BYTES,
    TILE_COLUMNS,
    mask_shape,
)
from tamp_modifier.sparse.int4_format import (
    LARGEST_CODE,
    SYMMETRIC_ZERO,
    PackedInt4,
    blocked,
    checked_group_size,
    group_count,
    is_permutation,
    offsets_of,
    pair_bytes,
    unblocked,
    validate_int4,
)
from tamp_modifier.sparse.packing import mask_bits, mask_words

# Blocks that torch packs or unpacks at once: its index tensors take 8 bytes a weight.
_BLOCKS_AT_ONCE = 256


def _check(
    codes: Tensor, scale: Tensor, zeros: Tensor | None, group_size: int, order: Tensor | None
) -> None:
    if not isinstance(codes, Tensor) or codes.dim() != 2 or codes.dtype != torch.uint8:
        got = f"{codes.dtype} {tuple(codes.shape)}" if isinstance(codes, Tensor) else repr(codes)
        raise ValueError(f"codes must be uint8 [out, in], got {got}")
    expected = (codes.shape[0], group_count(codes.shape[1], group_size))
    if tuple(scale.shape) != expected or scale.dtype not in COMPUTE_DTYPES:
        raise ValueError(
            f"scale must be bfloat16, float16 or float32 {expected}, got {scale.dtype} "
            f"{tuple(scale.shape)}"
        )
    if zeros is not None and (tuple(zeros.shape) != expected or zeros.dtype != torch.uint8):
        raise ValueError(f"zeros must be uint8 {expected}, got {zeros.dtype} {tuple(zeros.shape)}")
    for name, tensor in (("codes", codes), ("zeros", zeros)):
        if tensor is not None and tensor.numel() and tensor.max() > LARGEST_CODE:
            raise ValueError(f"{name} go up to {int(tensor.max())}, allowed are 0 to 15")
    if order is None:
        return
    if order.dtype != torch.int64 or tuple(order.shape) != (codes.shape[1],):
        raise ValueError(
            f"order must be int64 [{codes.shape[1]}], got {order.dtype} {tuple(order.shape)}"
        )
    if not is_permutation(order):
        raise ValueError("order must name each column once")


def pack_int4(
    codes: Tensor,
    scale: Tensor,
    zeros: Tensor | None,
    group_size: int,
    order: Tensor | None = None,
) -> PackedInt4:
    """Pack 4-bit codes; `unpack_int4` gives the same codes back.

    Args:
        codes: uint8 ``[out, in]``, 0 to 15, in the order of the checkpoint.
        scale: ``[out, groups]``, bf16, fp16 or fp32.
        zeros: uint8 ``[out, groups]``, 0 to 15; None: 8 everywhere.
        group_size: columns of a group, a multiple of 32; -1: one group a row.
        order: int64 ``[in]``, a permutation: group ``g`` is made of columns
            ``order[g * group_size : (g + 1) * group_size]`` (activation order); None: as they are.

    Raises:
        ValueError: a dtype, shape, code, zero, group size or order that does not fit.
    """
    group_size = checked_group_size(group_size, codes.shape[-1] if codes.dim() else 0)
    _check(codes, scale, zeros, group_size, order)
    codes = codes.detach() if order is None else codes.detach().index_select(1, order)
    on_cpu = codes.device.type == "cpu"
    packed = PackedInt4(
        mask=_empty(codes, mask_shape((codes.shape[0], codes.shape[1])), torch.int32),
        values=codes.new_empty(0),
        offsets=codes.new_empty(math.ceil(codes.shape[0] / BLOCK_ROWS) + 1, dtype=torch.int64),
        scale=_placed(blocked(scale.detach())),
        zeros=None if zeros is None else _placed(blocked(zeros)),
        order=None if order is None else order.contiguous(),
        shape=(codes.shape[0], codes.shape[1]),
        group_size=group_size,
    )
    if native.available() and on_cpu:
        return _native_pack(codes.contiguous(), packed)
    return _torch_pack(codes, packed)


def _empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if like.device.type == "cpu":
        return memory.empty(shape, dtype)
    return torch.empty(shape, dtype=dtype, device=like.device)


def _placed(tensor: Tensor) -> Tensor:
    """Return the tensor on huge pages, as the kernels read it with the weight."""
    return _empty(tensor, tuple(tensor.shape), tensor.dtype).copy_(tensor)


def _with_values(packed: PackedInt4) -> PackedInt4:
    values = _empty(packed.mask, (int(packed.offsets[-1]) + PADDING_BYTES,), torch.uint8)
    values[-PADDING_BYTES:] = 0
    return dataclasses.replace(packed, values=values)


def _native_pack(codes: Tensor, packed: PackedInt4) -> PackedInt4:
    native_int4.pack_mask(codes, packed)
    packed = _with_values(packed)
    native_int4.pack_values(codes, packed)
    return packed


def _tiled(columns: Tensor, shape: tuple[int, int]) -> Tensor:
    """``[rows, in]`` of whole blocks in the order of the format, ``[blocks, tiles, 4, 32]``."""
    blocks, tiles, _ = mask_shape(shape)
    padded = columns.new_zeros(blocks * BLOCK_ROWS, tiles * TILE_COLUMNS)
    padded[: shape[0], : shape[1]] = columns
    return padded.view(blocks, BLOCK_ROWS, tiles, TILE_COLUMNS).transpose(1, 2)


def _zero_codes(packed: PackedInt4, begin: int, end: int) -> Tensor:
    """Zero codes of blocks begin .. end - 1, uint8, broadcast to ``[blocks, tiles, 4, 1]``."""
    tiles = packed.mask.shape[1]
    if packed.zeros is None:
        return packed.mask.new_full((1, 1, 1, 1), SYMMETRIC_ZERO, dtype=torch.uint8)
    per_tile = packed.zeros[begin:end].repeat_interleave(packed.group_size // TILE_COLUMNS, 1)
    return per_tile[:, :tiles].unsqueeze(-1)


def _code_places(mask: Tensor) -> Tensor:
    """Where in the stream of codes of these blocks each kept one is: int64 ``[kept]``."""
    starts = 2 * pair_bytes(mask).view(-1).cumsum(0) - 2 * pair_bytes(mask).view(-1)
    kept = mask_bits(mask).view(-1, 2 * TILE_COLUMNS)
    places = kept.cumsum(1, dtype=torch.int64) - 1 + starts.unsqueeze(1)
    return places[kept]


def _torch_pack(codes: Tensor, packed: PackedInt4) -> PackedInt4:
    blocks = packed.mask.shape[0]
    inside = _tiled(torch.ones_like(codes), packed.shape).bool()
    tiled = _tiled(codes, packed.shape)
    for begin in range(0, blocks, _BLOCKS_AT_ONCE):
        end = min(begin + _BLOCKS_AT_ONCE, blocks)
        kept = (tiled[begin:end] != _zero_codes(packed, begin, end)) & inside[begin:end]
        packed.mask[begin:end] = mask_words(kept)
    packed.offsets.copy_(offsets_of(packed.mask))
    packed = _with_values(packed)
    for begin in range(0, blocks, _BLOCKS_AT_ONCE):
        end = min(begin + _BLOCKS_AT_ONCE, blocks)
        first, last = int(packed.offsets[begin]), int(packed.offsets[end])
        halves = packed.values.new_zeros(2 * (last - first))
        mask = packed.mask[begin:end]
        halves[_code_places(mask)] = tiled[begin:end][mask_bits(mask)]
        packed.values[first:last] = halves[0::2] | halves[1::2] << 4
    return packed


def unpack_int4(packed: PackedInt4) -> Tensor:
    """Return the codes uint8 ``[out, in]``, in the order of the checkpoint.

    Raises:
        ValueError: the tensors of `packed` do not fit each other.
    """
    validate_int4(packed)
    if native.available() and packed.device.type == "cpu":
        codes = packed.values.new_empty(packed.shape)
        native_int4.unpack(packed, codes)
    else:
        codes = torch_codes(packed, 0, packed.mask.shape[0])
    if packed.order is None:
        return codes
    return torch.empty_like(codes).index_copy_(1, packed.order, codes)


def torch_codes(packed: PackedInt4, begin: int, end: int) -> Tensor:
    """Codes of blocks begin .. end - 1 in stored order, uint8 ``[rows, in]``, through torch.

    Raises:
        RuntimeError: mask and offsets disagree.
    """
    tiles = packed.mask.shape[1]
    parts = []
    for first in range(begin, end, _BLOCKS_AT_ONCE):
        stop = min(first + _BLOCKS_AT_ONCE, end)
        mask = packed.mask[first:stop]
        counts = packed.offsets[first + 1 : stop + 1] - packed.offsets[first:stop]
        values = packed.values[int(packed.offsets[first]) : int(packed.offsets[stop])]
        expected = pair_bytes(mask).sum((1, 2), dtype=torch.int64)
        if not torch.equal(counts, expected) or values.numel() != int(expected.sum()):
            raise RuntimeError("the sparse weight is corrupt: its mask and offsets disagree")
        halves = torch.stack([values & LARGEST_CODE, values >> 4], 1).view(-1)
        tiled = _zero_codes(packed, first, stop).expand(stop - first, tiles, 4, TILE_COLUMNS)
        tiled = tiled.contiguous()
        tiled[mask_bits(mask)] = halves[_code_places(mask)]
        rows = (stop - first) * BLOCK_ROWS
        parts.append(tiled.transpose(1, 2).reshape(rows, tiles * TILE_COLUMNS))
    rows = max(0, min(packed.shape[0], end * BLOCK_ROWS) - begin * BLOCK_ROWS)
    codes = torch.cat(parts) if parts else packed.values.new_empty(0, tiles * TILE_COLUMNS)
    return codes[:rows, : packed.shape[1]].contiguous()


def row_slice_int4(packed: PackedInt4, start: int, stop: int) -> PackedInt4:
    """Rows ``start:stop`` of a packed weight (column-parallel shards of a Linear's outputs).

    Raises:
        ValueError: not ``0 <= start <= stop <= out``.
    """
    out_features = packed.shape[0]
    if not 0 <= start <= stop <= out_features:
        raise ValueError(f"rows {start}:{stop} are outside of the {out_features} rows")
    if start % BLOCK_ROWS or (stop % BLOCK_ROWS and stop != out_features):
        zeros = None if packed.zeros is None else unblocked(packed.zeros, out_features)[start:stop]
        scale = unblocked(packed.scale, out_features)[start:stop]
        codes = unpack_int4(packed)[start:stop]
        return pack_int4(codes, scale, zeros, packed.group_size, packed.order)
    first, last = start // BLOCK_ROWS, math.ceil(stop / BLOCK_ROWS)
    begin, end = int(packed.offsets[first]), int(packed.offsets[last])
    return dataclasses.replace(
        packed,
        mask=packed.mask[first:last].contiguous(),
        values=torch.cat([packed.values[begin:end], packed.values.new_zeros(PADDING_BYTES)]),
        offsets=packed.offsets[first : last + 1] - begin,
        scale=packed.scale[first:last].contiguous(),
        zeros=None if packed.zeros is None else packed.zeros[first:last].contiguous(),
        shape=(stop - start, packed.shape[1]),
    )


def join_rows_int4(parts: Sequence[PackedInt4]) -> PackedInt4:
    """Return the weight whose rows are those of several, one below the other.

    Args:
        parts: one or more of equal columns, groups and dtypes; all but the last of whole blocks.

    Raises:
        ValueError: they do not fit each other.
    """
    first = parts[0]
    for part in parts:
        same = part.shape[1] == first.shape[1] and part.group_size == first.group_size
        whole = part is parts[-1] or part.shape[0] % BLOCK_ROWS == 0
        if not same or not whole or (part.zeros is None) != (first.zeros is None):
            raise ValueError(f"rows of {part.shape} cannot be put below those of {first.shape}")
    counts = [part.offsets[1:] - part.offsets[:-1] for part in parts]
    ends = torch.cat([first.offsets[:1], torch.cat(counts).cumsum(0)])
    values = [part.values[:-PADDING_BYTES] for part in parts]
    padding = first.values.new_zeros(PADDING_BYTES)
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return dataclasses.replace(
        first,
        mask=torch.cat([part.mask for part in parts]),
        values=torch.cat([*values, padding]),
        offsets=ends,
        scale=torch.cat([part.scale for part in parts]),
        zeros=torch.cat(zeros) if zeros else None,
        shape=(sum(part.shape[0] for part in parts), first.shape[1]),
    )


def col_slice_int4(packed: PackedInt4, start: int, stop: int) -> PackedInt4:
    """Columns ``start:stop`` of a packed weight (row-parallel shards of a Linear's inputs).

    Raises:
        ValueError: not ``0 <= start <= stop <= in``, a slice that cuts a group in two, or a weight
            in activation order, whose groups are spread over all columns.
    """
    out_features, in_features = packed.shape
    size = packed.group_size
    if not 0 <= start <= stop <= in_features:
        raise ValueError(f"columns {start}:{stop} are outside of the {in_features} columns")
    if packed.order is not None:
        raise ValueError("columns of a weight in activation order cannot be sliced")
    if size < in_features and (start % size or (stop % size and stop != in_features)):
        raise ValueError(f"columns {start}:{stop} cut a group of {size} columns in two")
    groups = slice(start // size, max(start // size, math.ceil(stop / size)))
    scale = unblocked(packed.scale, out_features)[:, groups]
    zeros = None if packed.zeros is None else unblocked(packed.zeros, out_features)[:, groups]
    codes = unpack_int4(packed)[:, start:stop]
    if start == stop:
        scale, zeros = scale[:, :0], None if zeros is None else zeros[:, :0]
    return pack_int4(codes, scale, zeros, size if size < in_features else -1)
