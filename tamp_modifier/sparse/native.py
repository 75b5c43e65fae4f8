"""The only door to the native library in csrc/: loading it, choosing a path, and typed calls.

The library is optional. Without it (no compiler at build time) everything works through torch,
slower, and a warning says so once. The environment variable ``TAMP_SPARSE_PATH`` forces one of
"avx512bf16", "avx512", "avx2", "portable" or "torch" (no native code); tests use it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import math
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

PATHS = ("portable", "avx2", "avx512", "avx512bf16")  # as in csrc/tamp_sparse.h
PATH_VARIABLE = "TAMP_SPARSE_PATH"
ABI_VERSION = 1
_DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}

_pointer, _int64, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES = {
    "tamp_abi_version": (_int, []),
    "tamp_best_path": (_int, []),
    "tamp_path": (_int, []),
    "tamp_set_path": (None, [_int]),
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
}


def _library_file() -> Path | None:
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
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


@functools.cache
def _library() -> ctypes.CDLL | None:
    forced = os.environ.get(PATH_VARIABLE, "")
    if forced and forced not in (*PATHS, "torch"):
        allowed = ", ".join((*PATHS, "torch"))
        raise ValueError(f"{PATH_VARIABLE} is {forced!r}, allowed are {allowed}")
    if forced == "torch":
        return None
    file = _library_file()
    if file is None:
        if forced:
            raise ValueError(f"{PATH_VARIABLE} is {forced!r}, but the native library was not built")
        warnings.warn(
            "tamp_modifier.sparse: the native library was not built (no C compiler at install "
            "time); sparse weights are multiplied through torch, which is slower than dense",
            stacklevel=4,
        )
        return None
    library = ctypes.CDLL(str(file))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if library.tamp_abi_version() != ABI_VERSION:
        raise ImportError(f"{file.name} is of another version of tamp-modifier; build it again")
    best = library.tamp_best_path()
    path = PATHS.index(forced) if forced else best
    if path > best:
        raise ValueError(f"{PATH_VARIABLE} is {forced!r}, this CPU can do {PATHS[best]!r} at most")
    library.tamp_set_path(path)
    openmp = _openmp_functions()
    if openmp is not None:
        library.tamp_set_openmp(*openmp)
        os.register_at_fork(after_in_child=library.tamp_after_fork)
    return library


def available() -> bool:
    """Whether native code is used."""
    return _library() is not None


def most_rows(dtype: torch.dtype) -> float:
    """Rows of x up to which the path in use beats a dense GEMM with the expanded weight.

    Measured on Zen 4: the bf16 path has a GEMM of its own, the other AVX-512 one keeps pace with
    torch's up to 64 rows. Only where `available`.
    """
    path = PATHS[_get().tamp_path()]
    if path == "avx512bf16" and dtype == torch.bfloat16:
        return math.inf
    return 64 if path.startswith("avx512") else 8


def backend() -> str:
    """What multiplies on CPU: one of "avx512bf16", "avx512", "avx2", "portable" and "torch"."""
    library = _library()
    return "torch" if library is None else PATHS[library.tamp_path()]


def _get() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise RuntimeError("the native library is not in use")
    return library


def pack_mask(weight: Tensor, mask: Tensor, offsets: Tensor) -> None:
    """Fill `mask` and `offsets` from `weight` [out, in] whose columns are contiguous."""
    rows, columns = weight.shape
    floating = int(weight.dtype.is_floating_point)
    _get().tamp_pack_mask(
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
    _get().tamp_pack_values(
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
    return _get().tamp_check(mask.data_ptr(), offsets.data_ptr(), kept, *shape) == 0


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
    status = _get().tamp_unpack(
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
    status = _get().tamp_linear(
        x.data_ptr(),
        rows,
        x.shape[-1],
        _DTYPES[x.dtype],
        mask.data_ptr(),
        values.data_ptr(),
        offsets.data_ptr(),
        kept,
        out.shape[-1],
        x.shape[-1],
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
    )
    if status == 2:
        raise MemoryError("no memory for the scratch of sparse_linear")
    if status:
        raise RuntimeError("the sparse weight is corrupt: its mask and offsets disagree")
