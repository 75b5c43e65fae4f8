"""The torch operators on packed weights, `linear` and `expand`, and the kernel that each uses.

They are ``torch.ops.tamp_modifier.sparse_linear(x, mask, values, offsets, out_features, bias)`` and
``torch.ops.tamp_modifier.expand(mask, values, offsets, out_features, in_features)``, registered
through `torch.library.Library`, which costs less per call than `torch.library.custom_op`. They work
under `torch.compile` and have no gradient.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from tamp_modifier.sparse import gpu_table, native
from tamp_modifier.sparse.format import (
    BLOCK_ROWS,
    COMPUTE_DTYPES,
    PackedWeight,
    mask_shape,
    padding_length,
)
from tamp_modifier.sparse.packing import unpack, unpack_blocks

# Bytes of one expanded part: fits the level-2 cache together with its share of x.
EXPANDED_BYTES = 2 << 20


def check_operands(
    x: Tensor, mask: Tensor, values: Tensor, offsets: Tensor, out_features: int, bias: Tensor | None
) -> None:
    """All that can be checked without reading the tensors; called for every product."""
    if x.dtype != values.dtype or x.dtype not in COMPUTE_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in COMPUTE_DTYPES)
        raise ValueError(
            f"x has dtype {x.dtype} and the weight {values.dtype}; both must be one of {allowed}"
        )
    check_fit(x, mask, values, offsets, out_features)
    if bias is not None and (bias.shape != (out_features,) or bias.dtype != x.dtype):
        raise ValueError(
            f"bias must be {x.dtype} [{out_features}], got {bias.dtype} {tuple(bias.shape)}"
        )


def check_fit(x: Tensor, mask: Tensor, values: Tensor, offsets: Tensor, out_features: int) -> None:
    """Check shapes and devices of `x` and the tensors of a packed weight, whatever their dtypes.

    Raises:
        ValueError: they do not fit each other.
    """
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension")
    expected = mask_shape((out_features, x.shape[-1]))
    if mask.shape != expected or mask.dtype != torch.int32:
        raise ValueError(
            f"x with {x.shape[-1]} features and a weight with {out_features} rows need a mask of "
            f"shape {expected} in int32, got {tuple(mask.shape)} in {mask.dtype}"
        )
    if offsets.shape != (expected[0] + 1,) or offsets.dtype != torch.int64:
        raise ValueError(f"offsets must be int64 [{expected[0] + 1}], got {tuple(offsets.shape)}")
    if values.dim() != 1 or values.shape[0] < padding_length(values.dtype):
        raise ValueError(f"values must be 1-D and end with the padding, got {tuple(values.shape)}")
    if not (mask.is_contiguous() and values.is_contiguous() and offsets.is_contiguous()):
        raise ValueError("mask, values and offsets must be contiguous")
    device = x.device
    if not (mask.device == values.device == offsets.device == device):
        raise ValueError(f"x is on {device}, the weight on {values.device}; both must be on one")


@functools.cache
def _slow_16_bit() -> bool:
    """Whether torch multiplies 16-bit numbers on this CPU more slowly than fp32 ones."""
    return torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


def _expanded_linear(
    x: Tensor, mask: Tensor, values: Tensor, offsets: Tensor, out: Tensor, bias: Tensor | None
) -> None:
    """Compute the dense product ``x [m, in]`` -> `out` ``[m, out]``, in parts."""
    features, rows = x.shape[1], out.shape[1]
    step = max(1, EXPANDED_BYTES // max(1, BLOCK_ROWS * features * x.itemsize))
    wide = x.itemsize == 2 and x.device.type == "cpu" and _slow_16_bit()
    x, bias = (x.float(), None if bias is None else bias.float()) if wide else (x, bias)
    for block in range(0, mask.shape[0], step):
        stop = min(block + step, mask.shape[0])
        part = unpack_blocks(mask, values, offsets, (rows, features), (block, stop))
        first = block * BLOCK_ROWS
        last = first + part.shape[0]
        part_bias = None if bias is None else bias[first:last]
        out[:, first:last] = torch.nn.functional.linear(x, part.to(x.dtype), part_bias)


def cpu_linear(
    x: Tensor,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    out_features: int,
    bias: Tensor | None = None,
) -> Tensor:
    """`linear` on the CPU: the native kernel where it beats a dense product, else torch.

    Arguments, result and errors as in `linear`; `mask`, `values` and `offsets` are the weight.
    """
    check_operands(x, mask, values, offsets, out_features, bias)
    in_features = x.shape[-1]
    out = x.new_empty(*x.shape[:-1], out_features)
    if out.numel() == 0:
        return out
    if in_features == 0:
        return out.zero_() if bias is None else out.copy_(bias.expand_as(out))
    rows = x.numel() // in_features
    if native.available() and rows <= native.most_rows(x.dtype):
        kept = values.shape[0] - padding_length(values.dtype)
        bias = None if bias is None else bias.contiguous()
        native.linear(x.contiguous(), rows, mask, values, offsets, kept, out, bias)
    else:
        flat, target = x.reshape(rows, in_features), out.view(rows, out_features)
        _expanded_linear(flat, mask, values, offsets, target, bias)
    return out


def gpu_linear(
    x: Tensor,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    out_features: int,
    bias: Tensor | None = None,
) -> Tensor:
    """`linear` on a GPU: the Triton kernel for few rows of `x`, else a dense product.

    Arguments, result and errors as in `linear`; without Triton the weight is expanded by torch.
    """
    check_operands(x, mask, values, offsets, out_features, bias)
    flat = x.reshape(x.numel() // max(1, x.shape[-1]), x.shape[-1]).contiguous()
    if flat.numel() == 0 or out_features == 0:
        out = x.new_zeros(*x.shape[:-1], out_features)
        return out if bias is None else out + bias
    try:
        from tamp_modifier.sparse import triton_kernels
    except ImportError:
        shape = (out_features, x.shape[-1])
        dense = unpack_blocks(mask, values, offsets, shape, (0, mask.shape[0]))
        return torch.nn.functional.linear(x, dense, bias)
    choice = gpu_table.choice("float", x.device)
    if flat.shape[0] > choice.sparse_rows:
        dense = triton_kernels.expand(mask, values, offsets, (out_features, x.shape[-1]))
        return torch.nn.functional.linear(x, dense, bias)
    out = x.new_empty(*x.shape[:-1], out_features)
    bias = None if bias is None else bias.contiguous()
    triton_kernels.multiply(flat, mask, values, offsets, out.view(-1, out_features), bias, choice)
    return out


def _fake_linear(
    x: Tensor,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    out_features: int,
    bias: Tensor | None = None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


def _expand(
    mask: Tensor, values: Tensor, offsets: Tensor, out_features: int, in_features: int
) -> Tensor:
    return unpack(PackedWeight(mask, values, offsets, (out_features, in_features)))


def _fake_expand(
    mask: Tensor, values: Tensor, offsets: Tensor, out_features: int, in_features: int
) -> Tensor:
    return values.new_empty(out_features, in_features)


_library = torch.library.Library("tamp_modifier", "DEF")
_library.define(
    "sparse_linear(Tensor x, Tensor mask, Tensor values, Tensor offsets, int out_features, "
    "Tensor? bias=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("sparse_linear", cpu_linear, "CPU")
_library.impl("sparse_linear", gpu_linear, "CUDA")
torch.library.register_fake("tamp_modifier::sparse_linear", _fake_linear, lib=_library)
_library.define(
    "expand(Tensor mask, Tensor values, Tensor offsets, SymInt out_features, SymInt in_features) "
    "-> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("expand", _expand, "CompositeExplicitAutograd")
torch.library.register_fake("tamp_modifier::expand", _fake_expand, lib=_library)


def linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ unpack(packed).T + bias`` without expanding the weight where `x` has few rows.

    Sums are fp32. As in the dense product a zero of the weight times Inf or NaN in `x` is NaN.

    Args:
        x: ``[..., in]``, bf16, fp16 or fp32, of the dtype of the weight.
        packed: the weight; `validate` it first if it does not come from `pack`.
        bias: ``[out]`` of the same dtype.

    Returns:
        ``[..., out]`` in the dtype of `x`.

    Raises:
        ValueError: dtypes or shapes do not fit.
        RuntimeError: mask and offsets of the weight disagree.
    """
    if x.dim() and x.shape[-1] != packed.shape[1]:
        raise ValueError(f"x has {x.shape[-1]} features, the weight {packed.shape[1]}")
    return torch.ops.tamp_modifier.sparse_linear(
        x, packed.mask, packed.values, packed.offsets, packed.shape[0], bias
    )


def expand(
    mask: Tensor, values: Tensor, offsets: Tensor, out_features: int, in_features: int
) -> Tensor:
    """`unpack` as an operator, which `torch.compile` keeps whole.

    Args:
        mask, values, offsets: of the packed weight.
        out_features: rows of the dense weight.
        in_features: columns of the dense weight.

    Returns:
        The dense weight ``[out, in]``.

    Raises:
        ValueError: the tensors do not fit each other.
    """
    return torch.ops.tamp_modifier.expand(mask, values, offsets, out_features, in_features)
