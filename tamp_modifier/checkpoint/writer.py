"""Writing a safetensors file tensor by tensor; `safetensors.torch.save_file` wants all at once.

The header, which comes first in the file, is known only at the end. The data therefore goes to a
temporary file first and is copied behind the header when the shard is closed; there the tensors are
sorted by the size of their elements, so that each of them is aligned.
"""

from __future__ import annotations

import ctypes
import json
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from tamp_modifier.files import whole_file

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.complex64: "C64",
}


class ShardWriter:
    """Context manager that writes one safetensors file; the file appears when the block ends well.

    Args:
        file: path of the shard.
        metadata: the string metadata of the header.
    """

    def __init__(self, file: Path, metadata: Mapping[str, str] | None = None) -> None:
        self._file = file
        self._metadata = dict(metadata or {})
        # name -> (element size, dtype name, shape, place in the temporary file, bytes)
        self._tensors: dict[str, tuple[int, str, list[int], int, int]] = {}
        self._size = 0
        self._data = tempfile.TemporaryFile(dir=file.parent)

    def __enter__(self) -> ShardWriter:
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor.

        Raises:
            ValueError: the name is taken, or safetensors has no such dtype.
        """
        if name in self._tensors:
            raise ValueError(f"{name} is in {self._file.name} twice")
        if tensor.dtype not in DTYPE_NAMES:
            raise ValueError(f"{name}: safetensors files cannot hold {tensor.dtype}")
        tensor = tensor.detach().cpu().contiguous()
        self._tensors[name] = (
            tensor.itemsize,
            DTYPE_NAMES[tensor.dtype],
            list(tensor.shape),
            self._size,
            tensor.nbytes,
        )
        if tensor.nbytes:
            self._data.write((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))
        self._size += tensor.nbytes

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._data:
            if kind is not None:
                return
            order = sorted(self._tensors, key=lambda name: (-self._tensors[name][0], name))
            header = self._header(order)
            with whole_file(self._file) as partial, open(partial, "wb") as out:
                out.write(struct.pack("<Q", len(header)) + header)
                for name in order:
                    *_, place, left = self._tensors[name]
                    self._data.seek(place)
                    while left:
                        chunk = self._data.read(min(left, 1 << 20))
                        out.write(chunk)
                        left -= len(chunk)

    def _header(self, order: list[str]) -> bytes:
        content: dict[str, object] = {"__metadata__": self._metadata} if self._metadata else {}
        end = 0
        for name in order:
            _, dtype, shape, _, size = self._tensors[name]
            offsets = [end, end + size]
            content[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            end += size
        header = json.dumps(content, separators=(",", ":")).encode()
        return header + b" " * (-len(header) % 8)
