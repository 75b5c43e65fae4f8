"""The only door to the native library in csrc/: loading it, choosing a path, and typed calls.

A path is how one kind of processor multiplies; csrc/tamp_sparse.h lists them, `paths` returns those
that this machine supports. The best of them is used unless the environment variable
``TAMP_SPARSE_PATH`` or `use` forces another one; "torch" stands for no native code.

The library is optional. Without it (no compiler at build time) everything works through torch,
slower, and a warning says so once.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

PATH_VARIABLE = "TAMP_SPARSE_PATH"
TORCH = "torch"
ABI_VERSION = 3
DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}

_pointer, _int64, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES = {
    "tamp_abi_version": (_int, []),
    "tamp_path_name": (ctypes.c_char_p, [_int]),
    "tamp_use_path": (_int, [ctypes.c_char_p]),
    "tamp_most_rows": (_int64, [_int]),
    "tamp_set_openmp": (None, [_pointer] * 5),
    "tamp_after_fork": (None, []),
    "tamp_pack_mask": (None, [_pointer, _int, _int, _int64, _int64, _int64, _pointer, _pointer]),
    "tamp_pack_values": (None, [_pointer, _int, _int64, _int64, _int64] + [_pointer] * 3),
    "tamp_check": (_int, [_pointer, _pointer, _int64, _int64, _int64]),
    "tamp_unpack": (_int, [_pointer] * 3 + [_int64, _int] + [_int64] * 4 + [_pointer, _int64]),
    "tamp_linear": (
        _int,
        [_pointer, _int64, _int64, _int] + [_pointer] * 3 + [_int64] * 3 + [_pointer] * 2,
    ),
    "tamp_linear_grouped": (
        _int,
        [_pointer, _int64, _int, _pointer, _int64, _int64]
        + [_pointer] * 3
        + [_int64] * 3
        + [_pointer] * 2,
    ),
    "tamp_row_sums": (_int, [_pointer] * 3 + [_int64] * 3 + [_pointer]),
    "tamp_linear_int8": (
        _int,
        [_pointer, _int64, _int64, _pointer, _pointer, _int64]
        + [_pointer] * 3
        + [_int64] * 3
        + [_pointer, _int64, _pointer, _pointer, _int, _pointer],
    ),
    "tamp_int4_most_rows": (_int64, [_int, _int]),
    "tamp_int4_pack_mask": (None, [_pointer, _int64, _pointer]),
    "tamp_int4_pack_values": (None, [_pointer, _int64, _pointer]),
    "tamp_int4_unpack": (_int, [_pointer, _pointer]),
    "tamp_int4_expand": (_int, [_pointer, _int64, _int64, _pointer, _int64]),
    "tamp_int4_linear": (_int, [_pointer, _int64, _int64, _int] + [_pointer] * 4 + [_int]),
}


def _library_file() -> Path | None:
    """Return `_native.so`, or else what an older checkout built for one Python alone."""
    folder = Path(__file__).parent
    for suffix in reversed(importlib.machinery.EXTENSION_SUFFIXES):
        file = folder / f"_native{suffix}"
        if file.exists():
            return file
    return None


def _openmp_functions() -> list[int] | None:
    """Addresses of the OpenMP runtime that torch itself uses; a second runtime would have its own
    threads, outside of the CPU binding of the process (vLLM's, for example)."""
    names = (
        "GOMP_parallel",
        "omp_get_thread_num",
        "omp_get_num_threads",
        "omp_get_max_threads",
        "omp_in_parallel",
    )
    libraries: list[Path | None] = [None, *Path(torch.__file__).parent.glob("lib/libtorch_cpu.*")]
    for library in libraries:
        try:
            loaded = ctypes.CDLL(None if library is None else str(library))
            return [ctypes.cast(getattr(loaded, name), _pointer).value or 0 for name in names]
        except (OSError, AttributeError):
            continue
    return None


def load(file: Path) -> ctypes.CDLL:
    """Return the native library in `file`, its functions typed, with the threads of torch.

    Raises:
        ImportError: the library is of another version of this package.
        OSError: `file` is no library of this machine.
    """
    library = ctypes.CDLL(str(file))
    if library.tamp_abi_version() != ABI_VERSION:
        raise ImportError(f"{file.name} is of another version of tamp-modifier; build it again")
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    openmp = _openmp_functions()
    if openmp is not None:
        library.tamp_set_openmp(*openmp)
        os.register_at_fork(after_in_child=library.tamp_after_fork)
    return library


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Return the library of this installation; None if it was not built."""
    file = _library_file()
    return None if file is None else load(file)


def paths() -> tuple[str, ...]:
    """Names of the paths that this machine supports, best first; the last one is "torch"."""
    names: list[str] = []
    library = _library()
    while library is not None and (name := library.tamp_path_name(len(names))) is not None:
        names.append(name.decode())
    return (*names, TORCH)


_in_use: str | None = None  # None: not chosen yet
_native: ctypes.CDLL | None = None  # of the path in use, None for torch


def use(path: str, *, field: str = "path", library: ctypes.CDLL | None = None) -> None:
    """Force a path for this process; packing and multiplication take it from now on.

    Args:
        path: one of `paths`.
        field: what gave the name, for the error message.
        library: whose path it is, from `load`; by default the one of this installation.

    Raises:
        ValueError: this machine does not support such a path.
    """
    global _in_use, _native
    if library is None and path != TORCH:
        library = _library()
    if path != TORCH and (library is None or library.tamp_use_path(path.encode())):
        reason = " (the native library was not built)" if library is None else ""
        raise ValueError(f"{field} is {path!r}, this machine supports {', '.join(paths())}{reason}")
    _in_use, _native = path, None if path == TORCH else library


def _choose() -> str:
    path = os.environ.get(PATH_VARIABLE)
    if path:
        use(path, field=PATH_VARIABLE)
        return path
    path = paths()[0]
    if path == TORCH:
        warnings.warn(
            "tamp_modifier.sparse: the native library was not built (no C compiler at install "
            "time); sparse weights are multiplied through torch, which is slower than dense",
            stacklevel=5,
        )
    use(path)
    return path


def backend() -> str:
    """Return the name of the path that multiplies on this CPU, one of `paths`.

    ``TAMP_SPARSE_PATH`` forces one; "torch" where no native library was built.

    Raises:
        ValueError: ``TAMP_SPARSE_PATH`` names a path that does not exist or cannot run here.
    """
    return _in_use or _choose()


def available() -> bool:
    """Whether native code is used."""
    return _native is not None or backend() != TORCH


def most_rows(dtype: torch.dtype) -> int:
    """Rows of x up to which the path in use beats a dense GEMM with the expanded weight.

    Only where `available`.
    """
    return library().tamp_most_rows(DTYPES[dtype])


def library() -> ctypes.CDLL:
    """Return the native library, for typed calls.

    Raises:
        RuntimeError: it is not in use.
    """
    if not available() or _native is None:
        raise RuntimeError("the native library is not in use")
    return _native


def pack_mask(weight: Tensor, mask: Tensor, offsets: Tensor) -> None:
    """Fill `mask` and `offsets` from `weight` [out, in] whose columns are contiguous."""
    rows, columns = weight.shape
    floating = int(weight.dtype.is_floating_point)
    library().tamp_pack_mask(
        weight.data_ptr(),
        weight.itemsize,
        floating,
        rows,
        columns,
        weight.stride(0),
        mask.data_ptr(),
        offsets.data_ptr(),
    )


def pack_values(weight: Tensor, mask: Tensor, offsets: Tensor, values: Tensor) -> None:
    """Fill `values` with the weights that `mask` keeps."""
    rows, columns = weight.shape
    library().tamp_pack_values(
        weight.data_ptr(),
        weight.itemsize,
        rows,
        columns,
        weight.stride(0),
        mask.data_ptr(),
        offsets.data_ptr(),
        values.data_ptr(),
    )


def check(mask: Tensor, offsets: Tensor, kept: int, shape: tuple[int, int]) -> bool:
    """Whether mask, offsets and number of values fit each other; the caller checks shapes."""
    return library().tamp_check(mask.data_ptr(), offsets.data_ptr(), kept, *shape) == 0


def unpack(
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    kept: int,
    shape: tuple[int, int],
    blocks: tuple[int, int],
    dense: Tensor,
) -> None:
    """Write the rows of `blocks` (begin, end) to `dense`, whose first row is the first of them.

    Raises:
        RuntimeError: mask and offsets disagree.
    """
    status = library().tamp_unpack(
        mask.data_ptr(),
        values.data_ptr(),
        offsets.data_ptr(),
        kept,
        values.itemsize,
        *shape,
        *blocks,
        dense.data_ptr(),
        dense.stride(0),
    )
    if status:
        raise RuntimeError("the sparse weight is corrupt: its mask and offsets disagree")


def linear(
    x: Tensor,
    rows: int,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    kept: int,
    out: Tensor,
    bias: Tensor | None,
) -> None:
    """Write ``x @ weight.T + bias`` to `out`; x ``[..., in]`` of `rows` rows and `out` contiguous.

    Raises:
        MemoryError: no room for the scratch copy of `x`.
        RuntimeError: mask and offsets disagree.
    """
    status = library().tamp_linear(
        x.data_ptr(),
        rows,
        x.shape[-1],
        DTYPES[x.dtype],
        mask.data_ptr(),
        values.data_ptr(),
        offsets.data_ptr(),
        kept,
        out.shape[-1],
        x.shape[-1],
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
    )
    _raise_for(status)


def row_sums(
    mask: Tensor, values: Tensor, offsets: Tensor, kept: int, columns: int, sums: Tensor
) -> None:
    """Write the sum of each row of a packed int8 weight to `sums`, int32 ``[out]``.

    Raises:
        RuntimeError: mask and offsets disagree.
    """
    _raise_for(
        library().tamp_row_sums(
            mask.data_ptr(),
            values.data_ptr(),
            offsets.data_ptr(),
            kept,
            sums.shape[0],
            columns,
            sums.data_ptr(),
        )
    )


def linear_int8(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    kept: int,
    weight_scale: Tensor,
    sums: Tensor,
    out: Tensor,
    bias: Tensor | None,
) -> None:
    """Write the product of int8 `x` ``[rows, in]`` to `out` ``[rows, out]``; all are contiguous.

    Scales and zero points have one entry, or one a row (of `x`, of the weight).

    Raises:
        MemoryError: no room for the scratch copy of `x`.
        RuntimeError: mask and offsets disagree.
    """
    _raise_for(
        library().tamp_linear_int8(
            x.data_ptr(),
            x.shape[0],
            x.shape[1],
            x_scale.data_ptr(),
            0 if x_zero is None else x_zero.data_ptr(),
            int(x_scale.numel() > 1),
            mask.data_ptr(),
            values.data_ptr(),
            offsets.data_ptr(),
            kept,
            out.shape[1],
            x.shape[1],
            weight_scale.data_ptr(),
            int(weight_scale.numel() > 1),
            sums.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            DTYPES[out.dtype],
            out.data_ptr(),
        )
    )


def _raise_for(status: int) -> None:
    if status == 2:
        raise MemoryError("no memory for the scratch copy of x")
    if status:
        raise RuntimeError("the sparse weight is corrupt: its mask and offsets disagree")


def linear_grouped(
    x: Tensor,
    bounds: Tensor,
    most: int,
    mask: Tensor,
    values: Tensor,
    offsets: Tensor,
    kept: int,
    out: Tensor,
    bias: Tensor | None,
) -> None:
    """Write the product of each group of rows with its weight to `out`, as `sparse.grouped` says.

    Groups of more than `most` rows are left out. x ``[rows, in]``, `out` and `bias` are contiguous.

    Raises:
        ValueError: the bounds do not ascend within the rows of `x`.
        MemoryError: no room for the scratch copy of `x`.
        RuntimeError: mask and offsets disagree.
    """
    status = library().tamp_linear_grouped(
        x.data_ptr(),
        x.shape[0],
        DTYPES[x.dtype],
        bounds.data_ptr(),
        bounds.shape[0] - 1,
        most,
        mask.data_ptr(),
        values.data_ptr(),
        offsets.data_ptr(),
        kept,
        out.shape[1],
        x.shape[1],
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
    )
    if status == 3:
        raise ValueError("bounds must ascend and lie within the rows of x")
    _raise_for(status)
