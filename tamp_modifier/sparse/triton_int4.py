"""Triton kernels for packed INT4 weights (W4A16), for few rows of x, and their expansion.

The walk over a block is that of `triton_kernels`. The stream holds 4-bit codes, the lowest nibble
of a byte first; each pair of rows of a tile (rows 0 and 1, rows 2 and 3) begins at a whole byte.
A weight is ``(code - zero code) * scale`` of its row and group of columns, in fp32; what is not
kept is 0. `int4_format` specifies the tensors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamp_modifier.sparse.format import PADDING_BYTES, TILE_COLUMNS
from tamp_modifier.sparse.gpu_table import Choice
from tamp_modifier.sparse.int4_format import PackedInt4
from tamp_modifier.sparse.triton_kernels import (
    TILES,
    UNSPECIALIZED,
    left_of,
    places,
    read_words,
    read_x,
    row_totals,
)


@triton.jit
def _read_tiles(
    mask_ptr,
    values_ptr,
    scale_ptr,
    zeros_ptr,
    block,
    first_tile,
    base,
    end,
    tiles,
    groups,
    group_tiles,
    HAS_ZEROS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Return the expanded weights [TILES * 4, 32] of some tiles, and the byte after them."""
    words, counts = read_words(mask_ptr, block, first_tile, tiles, TILES)
    pairs = tl.reshape(counts, (TILES * 2, 2))
    in_pair = tl.sum(pairs, 1)
    pair_bytes = (in_pair + 1) // 2
    # In nibbles after `base`: where the pair begins, and for its second row what the first keeps.
    pair_starts = 2 * (tl.cumsum(pair_bytes, 0) - pair_bytes)
    second = tl.arange(0, 2)[None, :]
    starts = pair_starts[:, None] + (in_pair[:, None] - pairs) * second
    left = 2 * left_of(base, end, TILES * 64)
    present, place = places(words, tl.reshape(starts, (TILES * 4,)), left)
    packed = tl.load(values_ptr + base + (place >> 1), mask=present, other=0).to(tl.int32)
    codes = (packed >> ((place & 1) * 4)) & 15
    word = tl.arange(0, TILES * 4)
    tile = first_tile + word // 4
    inside = tile < tiles
    at = (block * groups + tile // group_tiles) * 4 + word % 4
    scale = tl.load(scale_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_ZEROS:
        zero = tl.load(zeros_ptr + at, mask=inside, other=0).to(tl.int32)
        steps = codes - zero[:, None]
    else:
        steps = codes - 8
    weights = tl.where(present, steps, 0).to(tl.float32) * scale[:, None]
    return weights, base + tl.sum(pair_bytes, 0)


@triton.jit(do_not_specialize=[*UNSPECIALIZED, "groups", "group_tiles"])
def multiply_kernel(
    x_ptr,
    mask_ptr,
    values_ptr,
    offsets_ptr,
    scale_ptr,
    zeros_ptr,
    bias_ptr,
    y_ptr,
    kept,
    x_rows,
    rows,
    columns,
    tiles,
    groups,
    group_tiles,
    HAS_ZEROS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    M: tl.constexpr,
    TILES: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    base = tl.load(offsets_ptr + block)
    m = tl.arange(0, M)
    sums = tl.zeros((M, TILES * 4, 32), dtype=tl.float32)
    for first_tile in range(0, tiles, TILES):
        weights, base = _read_tiles(
            mask_ptr,
            values_ptr,
            scale_ptr,
            zeros_ptr,
            block,
            first_tile,
            base,
            kept,
            tiles,
            groups,
            group_tiles,
            HAS_ZEROS,
            TILES,
        )
        x = read_x(x_ptr, m, first_tile, x_rows, columns, TILES)
        sums += weights[None, :, :] * x.to(tl.float32)
    result = row_totals(sums, M, TILES)
    row = block * 4 + tl.arange(0, 4)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + row, mask=row < rows, other=0.0)
        result += bias[None, :].to(tl.float32)
    inside = (m[:, None] < x_rows) & (row[None, :] < rows)
    tl.store(y_ptr + m[:, None] * rows + row[None, :], result.to(y_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=[*UNSPECIALIZED, "groups", "group_tiles"])
def expand_kernel(
    mask_ptr,
    values_ptr,
    offsets_ptr,
    scale_ptr,
    zeros_ptr,
    dense_ptr,
    kept,
    rows,
    columns,
    tiles,
    groups,
    group_tiles,
    HAS_ZEROS: tl.constexpr,
    TILES: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    base = tl.load(offsets_ptr + block)
    for first_tile in range(0, tiles, TILES):
        weights, base = _read_tiles(
            mask_ptr,
            values_ptr,
            scale_ptr,
            zeros_ptr,
            block,
            first_tile,
            base,
            kept,
            tiles,
            groups,
            group_tiles,
            HAS_ZEROS,
            TILES,
        )
        word = tl.arange(0, TILES * 4)
        row = block * 4 + word % 4
        column = (first_tile + word // 4)[:, None] * 32 + tl.arange(0, 32)[None, :]
        inside = (row[:, None] < rows) & (column < columns)
        weights = weights.to(dense_ptr.dtype.element_ty)
        tl.store(dense_ptr + row[:, None] * columns + column, weights, inside)


def _layout(packed: PackedInt4) -> tuple[int, int, int, int]:
    """Return bytes of the stream, tiles and groups of a row, and tiles of a group."""
    groups = packed.scale.shape[1]
    stream = packed.values.numel() - PADDING_BYTES
    return stream, packed.mask.shape[1], groups, packed.group_size // TILE_COLUMNS


def multiply(
    x: Tensor, packed: PackedInt4, bias: Tensor | None, out: Tensor, choice: Choice
) -> None:
    """Write ``x @ weight.T + bias`` to `out`.

    Args:
        x: bf16, fp16 or fp32 ``[m, in]``, contiguous, its columns in the order of the packed
            weight.
        packed: the weight, ``[out, in]``.
        bias: ``[out]`` in the dtype of `x`, contiguous.
        out: ``[m, out]`` in the dtype of `x`, contiguous.
        choice: of the card, for "int4".
    """
    stream, row_tiles, groups, group_tiles = _layout(packed)
    step, tiles, warps = choice.launch(x.shape[0])
    for first in range(0, x.shape[0], step):
        part = x[first : first + step]
        multiply_kernel[(packed.mask.shape[0],)](
            part,
            packed.mask,
            packed.values,
            packed.offsets,
            packed.scale,
            packed.zeros,
            bias,
            out[first : first + step],
            stream,
            part.shape[0],
            out.shape[1],
            x.shape[1],
            row_tiles,
            groups,
            group_tiles,
            HAS_ZEROS=packed.zeros is not None,
            HAS_BIAS=bias is not None,
            M=step,
            TILES=tiles,
            num_warps=warps,
        )


def expand(packed: PackedInt4, dtype: torch.dtype) -> Tensor:
    """Return the dense weight ``[out, in]`` in `dtype`, its columns in the order of the packed one.

    Nothing waits for the device.
    """
    dense = torch.empty(packed.shape, dtype=dtype, device=packed.device)
    stream, row_tiles, groups, group_tiles = _layout(packed)
    expand_kernel[(packed.mask.shape[0],)](
        packed.mask,
        packed.values,
        packed.offsets,
        packed.scale,
        packed.zeros,
        dense,
        stream,
        *packed.shape,
        row_tiles,
        groups,
        group_tiles,
        HAS_ZEROS=packed.zeros is not None,
        TILES=TILES,
    )
    return dense
