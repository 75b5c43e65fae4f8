"""Triton kernels on the packed format, for GPUs: multiplication with few rows of x, and expansion.

One program handles one block (4 rows) and walks its tiles. The place of a value in the stream is
the block's offset, plus the kept values of the mask words before its word (a cumulative sum), plus
the set bits below its own bit. Expanded weights exist in registers only.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from tamp_modifier.sparse.format import BLOCK_ROWS, padding_length
from tamp_modifier.sparse.gpu_table import Choice

# Tiles that a program expands at once.
TILES = 8
# Numbers that differ from weight to weight; compiling a kernel for each kind of them gains nothing.
UNSPECIALIZED = ["kept", "x_rows", "rows", "tiles"]
# Triton's interpreter runs on the CPU and does not know the hardware's population count.
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

if _INTERPRETED:

    @triton.jit
    def _popcount(words):
        words = words - ((words >> 1) & 0x55555555)
        words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
        words = (words + (words >> 4)) & 0x0F0F0F0F
        words = words + (words >> 8)
        return (words + (words >> 16)) & 0x3F

else:
    from triton.language.extra import libdevice

    @triton.jit
    def _popcount(words):
        return libdevice.popc(words)


@triton.jit
def read_words(mask_ptr, block, first_tile, tiles, TILES: tl.constexpr):
    """Return the mask words [TILES * 4] of some tiles of a block, and their numbers of set bits."""
    word = tl.arange(0, TILES * 4)
    inside = first_tile * 4 + word < tiles * 4
    words = tl.load(mask_ptr + (block * tiles + first_tile) * 4 + word, mask=inside, other=0)
    return words, _popcount(words)


@triton.jit
def places(words, starts, left):
    """Return which columns [words, 32] are kept, and the place of each in the stream.

    Kept columns lie at `starts` of their word plus the set bits below. `left` is what the stream
    holds: every place of a validated weight is below it, and a damaged one is kept inside its
    memory.
    """
    column = tl.arange(0, 32)
    bits = (words[:, None] >> column[None, :]) & 1
    place = starts[:, None] + _popcount(words[:, None] & ((1 << column) - 1)[None, :])
    return (bits != 0) & (place < left), place


@triton.jit
def left_of(base, end, most):
    """Return how much of a stream follows `base`, at most `most`, as int32; 0 outside of it."""
    return tl.where(base < 0, 0, tl.maximum(tl.minimum(end - base, most), 0)).to(tl.int32)


@triton.jit
def read_tiles(mask_ptr, values_ptr, block, first_tile, base, kept, tiles, TILES: tl.constexpr):
    """Return the expanded weights [TILES * 4, 32] of some tiles, and where the next ones begin."""
    words, counts = read_words(mask_ptr, block, first_tile, tiles, TILES)
    # Places count from `base`, so that they are int32.
    starts = tl.cumsum(counts, 0) - counts
    present, place = places(words, starts, left_of(base, kept, TILES * 128))
    weights = tl.load(values_ptr + base + place, mask=present, other=0)
    return weights, base + tl.sum(counts, 0)


@triton.jit
def read_x(x_ptr, m, first_tile, x_rows, columns, TILES: tl.constexpr):
    """Return the columns of some tiles of x, [m, TILES * 4, 32]: each tile's once for a row."""
    tile = first_tile + tl.arange(0, TILES * 4) // 4
    column = tile[:, None] * 32 + tl.arange(0, 32)[None, :]
    inside = (m[:, None, None] < x_rows) & (column[None, :, :] < columns)
    return tl.load(x_ptr + m[:, None, None] * columns + column[None, :, :], mask=inside, other=0)


@triton.jit
def row_totals(sums, M: tl.constexpr, TILES: tl.constexpr):
    """Sum [M, TILES * 4, 32] to [M, 4]; the rows of a tile follow each other."""
    return tl.sum(tl.reshape(tl.sum(sums, 2), (M, TILES, 4)), 1)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def multiply_kernel(
    x_ptr,
    mask_ptr,
    values_ptr,
    offsets_ptr,
    bias_ptr,
    y_ptr,
    kept,
    x_rows,
    rows,
    columns,
    tiles,
    HAS_BIAS: tl.constexpr,
    M: tl.constexpr,
    TILES: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    base = tl.load(offsets_ptr + block)
    m = tl.arange(0, M)
    sums = tl.zeros((M, TILES * 4, 32), dtype=tl.float32)
    for first_tile in range(0, tiles, TILES):
        weights, base = read_tiles(
            mask_ptr, values_ptr, block, first_tile, base, kept, tiles, TILES
        )
        x = read_x(x_ptr, m, first_tile, x_rows, columns, TILES)
        sums += weights[None, :, :].to(tl.float32) * x.to(tl.float32)
    result = row_totals(sums, M, TILES)
    row = block * 4 + tl.arange(0, 4)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + row, mask=row < rows, other=0.0)
        result += bias[None, :].to(tl.float32)
    inside = (m[:, None] < x_rows) & (row[None, :] < rows)
    tl.store(y_ptr + m[:, None] * rows + row[None, :], result.to(y_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def expand_kernel(
    mask_ptr,
    values_ptr,
    offsets_ptr,
    dense_ptr,
    kept,
    rows,
    columns,
    tiles,
    TILES: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    base = tl.load(offsets_ptr + block)
    for first_tile in range(0, tiles, TILES):
        weights, base = read_tiles(
            mask_ptr, values_ptr, block, first_tile, base, kept, tiles, TILES
        )
        word = tl.arange(0, TILES * 4)
        row = block * 4 + word % 4
        column = (first_tile + word // 4)[:, None] * 32 + tl.arange(0, 32)[None, :]
        inside = (row[:, None] < rows) & (column < columns)
        tl.store(dense_ptr + row[:, None] * columns + column, weights, inside)


def multiply(
    x: Tensor,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    out: Tensor,
    bias: Tensor | None,
    choice: Choice,
) -> None:
    """Write ``x @ weight.T + bias`` to `out`; x ``[m, in]`` and out ``[m, out]`` contiguous."""
    columns, rows = x.shape[1], out.shape[1]
    kept = values.numel() - padding_length(values.dtype)
    step, tiles, warps = choice.launch(x.shape[0])
    for first in range(0, x.shape[0], step):
        part = x[first : first + step]
        multiply_kernel[(mask.shape[0],)](
            part,
            mask,
            values,
            offsets,
            bias,
            out[first : first + step],
            kept,
            part.shape[0],
            rows,
            columns,
            mask.shape[1],
            HAS_BIAS=bias is not None,
            M=step,
            TILES=tiles,
            num_warps=warps,
        )


def expand(mask: Tensor, values: Tensor, offsets: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the dense weight, of bf16, fp16, fp32 or int8, without a wait for the device."""
    dense = torch.empty(shape, dtype=values.dtype, device=values.device)
    kept = values.numel() - padding_length(values.dtype)
    expand_kernel[(-(-shape[0] // BLOCK_ROWS),)](
        mask, values, offsets, dense, kept, *shape, mask.shape[1], TILES=TILES
    )
    return dense
