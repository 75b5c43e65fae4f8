"""Sparse 4-bit weights in groups: the format in memory, and the check that a weight is whole.

Blocks, tiles and mask are those of `tamp_modifier.sparse.format`; a mask bit says that the code of
a weight is not its group's zero code. The codes of kept weights lie two a byte, the lower half
first, in the order block, tile, pair of rows, row, column; each pair of rows of a tile begins at a
whole byte. At 50 % a weight takes 3.03 bits, and 3.16 with bf16 scales for groups of 128.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from tamp_modifier.sparse.format import (
    BLOCK_ROWS,
    COMPUTE_DTYPES,
    PADDING_BYTES,
    TILE_COLUMNS,
    mask_shape,
)
from tamp_modifier.sparse.validation import check_tensor, kept_outside, popcount

SYMMETRIC_ZERO = 8
LARGEST_CODE = 15


@dataclasses.dataclass(frozen=True, eq=False)
class PackedInt4:
    """A sparse 4-bit weight, ``(code - zero) * scale``, as plain tensors.

    Attributes:
        mask: int32 ``[blocks, tiles, 4]``, one bit a weight, 1 = its code is not the zero code.
        values: uint8 ``[bytes + 64]``, the codes of kept weights; the padding is zeros.
        offsets: int64 ``[blocks + 1]``, the byte where each block's codes begin.
        scale: ``[blocks, groups, 4]``, bf16, fp16 or fp32: that of row ``4 * block + r`` is at
            ``[block, group, r]``.
        zeros: zero codes, uint8 in the shape of `scale`; None: 8 everywhere (symmetric).
        order: int64 ``[in]``: stored column ``c`` is column ``order[c]`` of the weight, so that
            groups are contiguous; None: as they are.
        shape: ``(out, in)`` of the dense weight.
        group_size: columns of a group, a multiple of 32; the last group may be shorter.
    """

    mask: Tensor
    values: Tensor
    offsets: Tensor
    scale: Tensor
    zeros: Tensor | None
    order: Tensor | None
    shape: tuple[int, int]
    group_size: int

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.values.device

    @property
    def kept(self) -> int:
        """Number of stored codes."""
        return int(popcount(self.mask).sum(dtype=torch.int64))

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are zero."""
        return 1.0 - self.kept / max(1, self.shape[0] * self.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        names = ("mask", "values", "offsets", "scale", "zeros", "order")
        tensors = {name: getattr(self, name) for name in names}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def to(self, device: torch.device | str) -> PackedInt4:
        """Return the same weight on another device."""
        moved: dict[str, Any] = {
            name: tensor.to(device) for name, tensor in self._tensors().items()
        }
        return dataclasses.replace(self, **moved)


def group_count(in_features: int, group_size: int) -> int:
    """Return the groups of a row."""
    return math.ceil(in_features / group_size)


def checked_group_size(group_size: int, in_features: int) -> int:
    """Return the columns of a group; -1, or as many as there are, means one group a row.

    Raises:
        ValueError: neither that nor a multiple of 32.
    """
    if not isinstance(group_size, int) or isinstance(group_size, bool):
        raise ValueError(f"group_size must be an integer, got {group_size!r}")
    if group_size == -1 or group_size >= max(1, in_features):
        return max(1, math.ceil(in_features / TILE_COLUMNS)) * TILE_COLUMNS
    if group_size < 1 or group_size % TILE_COLUMNS:
        raise ValueError(
            f"group_size is {group_size}, allowed are multiples of {TILE_COLUMNS}, and -1 for one "
            "group a row"
        )
    return group_size


def blocked(rows: Tensor) -> Tensor:
    """Bring ``[out, groups]`` to the order of the kernels, ``[blocks, groups, 4]``."""
    missing = -rows.shape[0] % BLOCK_ROWS
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
    blocks = rows.shape[0] // BLOCK_ROWS
    return rows.view(blocks, BLOCK_ROWS, rows.shape[1]).transpose(1, 2).contiguous()


def unblocked(blocks: Tensor, out_features: int) -> Tensor:
    """Bring ``[blocks, groups, 4]`` back to ``[out, groups]``."""
    rows = blocks.transpose(1, 2).reshape(blocks.shape[0] * BLOCK_ROWS, blocks.shape[1])
    return rows[:out_features].contiguous()


def pair_bytes(mask: Tensor) -> Tensor:
    """Bytes of each pair of rows of a tile, int32 ``[blocks, tiles, 2]``."""
    counts = popcount(mask)
    return (counts[..., 0::2] + counts[..., 1::2] + 1) >> 1


def offsets_of(mask: Tensor) -> Tensor:
    """Return the offsets int64 ``[blocks + 1]`` that belong to a mask."""
    counts = pair_bytes(mask).sum((1, 2), dtype=torch.int64)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def check_tensors(
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    scale: Tensor,
    zeros: Tensor | None,
    order: Tensor | None,
    shape: tuple[int, int],
    group_size: int,
) -> None:
    """Check all that can be checked without reading the tensors.

    Raises:
        ValueError: the first thing that is wrong.
    """
    expected = mask_shape(shape)
    groups = (expected[0], group_count(shape[1], group_size), BLOCK_ROWS)
    shapes = {"mask": expected, "offsets": (expected[0] + 1,), "scale": groups}
    tensors = {"mask": mask, "offsets": offsets, "scale": scale, "values": values}
    dtypes = {"mask": torch.int32, "offsets": torch.int64, "values": torch.uint8}
    if zeros is not None:
        tensors["zeros"], shapes["zeros"], dtypes["zeros"] = zeros, groups, torch.uint8
    if order is not None:
        tensors["order"], shapes["order"], dtypes["order"] = order, (shape[1],), torch.int64
    for name, tensor in tensors.items():
        wanted = shapes.get(name, tuple(tensor.shape[:1]))
        check_tensor(name, tensor, dtypes.get(name), len(wanted))
        if tuple(tensor.shape) != wanted:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, a weight of {shape} in groups of "
                f"{group_size} needs {wanted}"
            )
        if tensor.device != mask.device:
            raise ValueError(f"{name} is on {tensor.device}, the mask on {mask.device}")
    if scale.dtype not in COMPUTE_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in COMPUTE_DTYPES)
        raise ValueError(f"scale has dtype {scale.dtype}, allowed are {allowed}")
    if values.numel() < PADDING_BYTES:
        raise ValueError(f"values has {values.numel()} bytes, fewer than its {PADDING_BYTES} last")


def validate_int4(packed: PackedInt4, name: str = "weight") -> None:
    """Check that the tensors of a packed 4-bit weight fit each other.

    Args:
        packed: the weight.
        name: the tensor's name in error messages.

    Raises:
        ValueError: the first thing that is wrong, with `name`.
    """
    shape = packed.shape
    if len(shape) != 2 or any(not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"{name}: shape must be two sizes >= 0, got {shape!r}")
    try:
        size = checked_group_size(packed.group_size, shape[1])
        check_tensors(
            packed.mask,
            packed.values,
            packed.offsets,
            packed.scale,
            packed.zeros,
            packed.order,
            shape,
            size,
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    problem = kept_outside(packed.mask, shape)
    bytes_stored = packed.values.numel() - PADDING_BYTES
    if not torch.equal(packed.offsets, offsets_of(packed.mask)):
        problem = "the offsets are not those of the mask"
    elif int(packed.offsets[-1]) != bytes_stored:
        problem = f"the offsets end at {int(packed.offsets[-1])}, {bytes_stored} bytes are stored"
    elif packed.zeros is not None and packed.zeros.numel() and packed.zeros.max() > LARGEST_CODE:
        problem = f"zeros go up to {int(packed.zeros.max())}, a code to {LARGEST_CODE}"
    elif packed.order is not None and not is_permutation(packed.order):
        problem = "order is not a permutation of the columns"
    if problem is not None:
        raise ValueError(f"{name}: {problem}")


def is_permutation(order: Tensor) -> bool:
    """Whether an int64 vector names each place once."""
    return torch.equal(order.sort().values, torch.arange(order.numel(), device=order.device))
