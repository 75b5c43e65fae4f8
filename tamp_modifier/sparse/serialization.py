"""Packed weights as named tensors, as in safetensors files; and readers for older formats.

A weight ``name`` becomes three tensors::

    name.tamp_mask     int32 [blocks, tiles, 4]
    name.tamp_values   dtype [kept], without the padding
    name.tamp_header   int64 [6]: version, out, in, kept, CRC-32 of shape, dtype, mask and values,
                       CRC-32 of the five numbers before

The offsets follow from the mask. config.json carries ``compression_config`` (`CONFIG_KEY`), a key
that neither transformers nor vLLM takes for a quantisation: without this package both load a dense
checkpoint as it is. A packed one they cannot read, so its config.json has ``quantization_config``
with ``quant_method`` `QUANT_METHOD` as well, by which transformers finds our quantizer and stock
vLLM refuses it. A ``quantization_config`` that was there before stands below `INNER_KEY`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tamp_modifier.sparse.format import (
    STORAGE_DTYPES,
    PackedWeight,
    mask_shape,
    padding_length,
)
from tamp_modifier.sparse.validation import checksum, offsets_from_mask, validate

CONFIG_KEY = "compression_config"
CONFIG_FORMAT = "tamp-sparse"
QUANT_METHOD = "tamp_sparse"
INNER_KEY = "packed_over"
FORMAT_VERSION = 1
LAYOUTS = ("dense", "packed")
MASK_SUFFIX, VALUES_SUFFIX, HEADER_SUFFIX = ".tamp_mask", ".tamp_values", ".tamp_header"
PACKED_SUFFIXES = (MASK_SUFFIX, VALUES_SUFFIX, HEADER_SUFFIX)
_HEADER_LENGTH = 6


def config_marker(
    layout: str, linears: Mapping[str, int] | None = None, tensors: int | None = None
) -> dict[str, Any]:
    """What stands in config.json under `CONFIG_KEY`.

    Args:
        layout: "dense" (safetensors with zeros) or "packed".
        linears: name of each pruned weight on disk, without ".weight", and its number of non-zeros;
            may be absent in layout "dense".
        tensors: number of tensors of the dense checkpoint; may be absent.

    Raises:
        ValueError: the layout is unknown, or `linears` is missing in layout "packed".
    """
    marker: dict[str, Any] = {"format": CONFIG_FORMAT, "version": FORMAT_VERSION, "layout": layout}
    if linears is not None:
        marker["linears"] = dict(linears)
    if tensors is not None:
        marker["tensors"] = tensors
    _check_marker(marker)
    return marker


def _check_marker(marker: Mapping[str, Any]) -> None:
    where = f"config.json, {CONFIG_KEY}"
    if marker.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{where}: version is {marker.get('version')!r}, this package reads {FORMAT_VERSION}"
        )
    if marker.get("layout") not in LAYOUTS:
        raise ValueError(
            f"{where}: layout is {marker.get('layout')!r}, allowed are {', '.join(LAYOUTS)}"
        )
    linears = marker.get("linears")
    if linears is None and marker["layout"] == "packed":
        raise ValueError(f"{where}: layout packed needs linears")
    if linears is not None and not (
        isinstance(linears, Mapping)
        and all(type(kept) is int and kept >= 0 for kept in linears.values())
    ):
        raise ValueError(f"{where}: linears must map names to numbers of non-zeros")
    tensors = marker.get("tensors")
    if tensors is not None and (type(tensors) is not int or tensors < 0):
        raise ValueError(f"{where}: tensors must be a number, got {tensors!r}")


def read_marker(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The marker in the contents of a config.json, checked; None if there is none of ours.

    Raises:
        ValueError: the marker is ours, but a field is wrong.
    """
    marker = config.get(CONFIG_KEY)
    if not isinstance(marker, Mapping) or marker.get("format") != CONFIG_FORMAT:
        return None
    _check_marker(marker)
    return dict(marker)


def mark_packed(
    config: Mapping[str, Any], linears: Mapping[str, int], tensors: int | None = None
) -> dict[str, Any]:
    """The contents of config.json of a packed checkpoint; arguments as in `config_marker`."""
    inner = _inner_quantization(config)
    quantization = {"quant_method": QUANT_METHOD} | ({} if inner is None else {INNER_KEY: inner})
    marker = config_marker("packed", linears, tensors)
    return {**config, CONFIG_KEY: marker, "quantization_config": quantization}


def mark_dense(config: Mapping[str, Any], linears: Mapping[str, int] | None) -> dict[str, Any]:
    """The contents of config.json of an unpacked checkpoint."""
    inner = _inner_quantization(config)
    config = {**config, CONFIG_KEY: config_marker("dense", linears)}
    config.pop("quantization_config", None)
    return config if inner is None else {**config, "quantization_config": inner}


def _inner_quantization(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """``quantization_config`` without packing, ours or the one that compressed-tensors had."""
    found = config.get("quantization_config")
    if isinstance(found, Mapping) and found.get("quant_method") == QUANT_METHOD:
        found = found.get(INNER_KEY)
    if not isinstance(found, Mapping):
        return None
    if found.get("quant_method") != "compressed-tensors":
        return dict(found)
    # It tells how legacy tensors are stored; vLLM refuses it, and no legacy tensor is left.
    inner = {key: value for key, value in found.items() if key != "sparsity_config"}
    return inner if inner.get("config_groups") or inner.get("kv_cache_scheme") else None


def _header_checksum(numbers: list[int]) -> int:
    return zlib.crc32(" ".join(map(str, numbers)).encode())


def to_tensors(packed: PackedWeight, name: str) -> dict[str, Tensor]:
    """The three tensors that store the weight `name`."""
    numbers = [FORMAT_VERSION, *packed.shape, packed.kept, checksum(packed)]
    return {
        name + MASK_SUFFIX: packed.mask,
        name + VALUES_SUFFIX: packed.values[: packed.kept],
        name + HEADER_SUFFIX: torch.tensor(
            [*numbers, _header_checksum(numbers)], device=packed.device
        ),
    }


def _take(tensors: Mapping[str, Tensor], name: str, suffixes: tuple[str, ...]) -> list[Tensor]:
    missing = [name + suffix for suffix in suffixes if name + suffix not in tensors]
    if missing:
        raise ValueError(f"{name}: the file lacks {', '.join(missing)}")
    return [tensors[name + suffix] for suffix in suffixes]


def from_tensors(tensors: Mapping[str, Tensor], name: str, verify: bool = True) -> PackedWeight:
    """The packed weight `name` from its three tensors, checked.

    Args:
        tensors: holds at least the three tensors of `name`.
        name: name of the weight, without the suffixes.
        verify: compare the checksum of mask and values too (about 1 GB/s).

    Raises:
        ValueError: a tensor is missing, or anything is wrong with one of them; names the weight.
    """
    mask, stored, header = _take(tensors, name, PACKED_SUFFIXES)
    if header.dtype != torch.int64 or header.shape != (_HEADER_LENGTH,):
        raise ValueError(
            f"{name}: header must be int64 [{_HEADER_LENGTH}], "
            f"got {header.dtype} {tuple(header.shape)}"
        )
    numbers = header.tolist()
    if numbers[-1] != _header_checksum(numbers[:-1]):
        raise ValueError(f"{name}: the header is damaged: {numbers}")
    version, rows, columns, kept, expected = numbers[:-1]
    if version != FORMAT_VERSION:
        raise ValueError(f"{name}: format version {version} is not known, only {FORMAT_VERSION} is")
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


def _legacy_shape(name: str, shape: Tensor, bitmask: Tensor) -> tuple[int, int]:
    if shape.dim() != 1 or shape.numel() != 2 or shape.dtype.is_floating_point:
        raise ValueError(f"{name}.shape must hold two sizes, got {shape}")
    rows, columns = (int(size) for size in shape)
    if rows < 0 or columns < 0:
        raise ValueError(f"{name}.shape must hold two sizes >= 0, got {(rows, columns)}")
    expected = (rows, (columns + 7) // 8)
    if bitmask.dtype != torch.uint8 or tuple(bitmask.shape) != expected:
        raise ValueError(
            f"{name}.bitmask must be uint8 {expected}, got {bitmask.dtype} {tuple(bitmask.shape)}"
        )
    return rows, columns


def _legacy_bits(name: str, bitmask: Tensor, columns: int) -> Tensor:
    """bool ``[rows, columns]`` of a row-wise bitmask whose lowest bit comes first."""
    bits = (bitmask.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=bitmask.device)) & 1
    bits = bits.bool().view(bitmask.shape[0], -1)
    if bits[:, columns:].any():
        raise ValueError(f"{name}.bitmask keeps values right of the last column {columns - 1}")
    return bits[:, :columns]


def _legacy_dense(name: str, kept: Tensor, compressed: Tensor) -> Tensor:
    count = int(kept.sum())
    if compressed.numel() != count:
        raise ValueError(
            f"{name}: the bitmask keeps {count} values, {compressed.numel()} are stored"
        )
    if compressed.dtype not in STORAGE_DTYPES:
        raise ValueError(f"{name}.compressed has dtype {compressed.dtype}, which is not known")
    storage = STORAGE_DTYPES[compressed.dtype]
    dense = compressed.new_zeros(kept.shape, dtype=storage)
    dense[kept] = compressed.reshape(-1).view(storage)
    return dense.view(compressed.dtype)


def read_bitmask(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The dense weight of a compressed-tensors ``sparse-bitmask`` tensor.

    Args:
        tensors: holds ``{name}.shape``, ``.compressed`` [kept], ``.bitmask`` uint8
            [out, ceil(in / 8)] and ``.row_offsets`` int64 [out].
        name: what stands before these suffixes.

    Raises:
        ValueError: a tensor is missing or they do not fit each other; names the weight.
    """
    suffixes = (".shape", ".compressed", ".bitmask", ".row_offsets")
    shape, compressed, bitmask, row_offsets = _take(tensors, name, suffixes)
    rows, columns = _legacy_shape(name, shape, bitmask)
    if compressed.dim() != 1:
        raise ValueError(f"{name}.compressed must be 1-D, got {tuple(compressed.shape)}")
    kept = _legacy_bits(name, bitmask, columns)
    counts = kept.sum(-1)
    starts = counts.cumsum(0) - counts
    if row_offsets.shape != (rows,) or not torch.equal(row_offsets.long(), starts):
        raise ValueError(f"{name}.row_offsets do not fit the bitmask")
    return _legacy_dense(name, kept, compressed)


def read_24_bitmask(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The dense weight of a compressed-tensors ``sparse-24-bitmask`` tensor (2 of 4 kept).

    Args:
        tensors: holds ``{name}.shape``, ``.compressed`` [out, in / 2] and ``.bitmask``.
        name: what stands before these suffixes.

    Raises:
        ValueError: a tensor is missing or they do not fit each other; names the weight.
    """
    shape, compressed, bitmask = _take(tensors, name, (".shape", ".compressed", ".bitmask"))
    rows, columns = _legacy_shape(name, shape, bitmask)
    if columns % 4 or tuple(compressed.shape) != (rows, columns // 2):
        raise ValueError(
            f"{name}.compressed must be {(rows, columns // 2)} with a multiple of 4 columns, "
            f"got {tuple(compressed.shape)}"
        )
    kept = _legacy_bits(name, bitmask, columns)
    if not bool((kept.view(rows, columns // 4, 4).sum(-1) == 2).all()):
        raise ValueError(f"{name}.bitmask does not keep 2 of 4 everywhere")
    return _legacy_dense(name, kept, compressed)
