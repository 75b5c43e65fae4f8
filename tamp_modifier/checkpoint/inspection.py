"""What a checkpoint folder holds, Linear by Linear, and what vLLM with the plugin makes of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tamp_modifier.architectures import FUSED, NEVER_PACKED
from tamp_modifier.checkpoint.completeness import require_complete_folder
from tamp_modifier.checkpoint.files import MarkerCheck, shards, stored_names
from tamp_modifier.checkpoint.marker import INNER_KEY, QUANT_METHOD, read_marker
from tamp_modifier.checkpoint.pack import MIN_SPARSITY, Progress, iter_stored, read_config
from tamp_modifier.sparse.format import COMPUTE_DTYPES, STORAGE_DTYPES, mask_shape, nonzero

HEADER_BYTES = 48
GROUP_SIZES = (4, 8, 16, 32)
"""M of the N:M patterns that are looked for."""
COMPRESSED_TENSORS = "compressed-tensors"


@dataclasses.dataclass
class LinearInfo:
    """One Linear of a checkpoint.

    Attributes:
        name: name on disk, without ".weight".
        shape: (out, in).
        dtype: dtype of the weight, such as "bfloat16".
        stored: "dense", "packed", "sparse-bitmask" or "sparse-24-bitmask".
        sparsity: share of zeros, None where the values are not plain numbers (INT4).
        pattern: "N:M" if N of M consecutive weights are zero everywhere and that is all of the
            sparsity; "unstructured"; "" without zeros.
        dense_bytes: size of the dense weight.
        packed_bytes: size of the packed weight, on disk.
        served: what vLLM with the plugin keeps in memory: "packed" or "dense".
        why: the reason, for people.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: str
    sparsity: float | None
    pattern: str
    dense_bytes: int
    packed_bytes: int
    served: str = "dense"
    why: str = ""


@dataclasses.dataclass
class CheckpointInfo:
    """A checkpoint folder.

    Attributes:
        layout: "dense" or "packed" as config.json says, None without a marker.
        quantization: quant_method of config.json beneath the packing, None if there is none.
        linears: all Linears, in the order of the files.
        other_bytes: size of all other tensors: embeddings, norms, convolutions.
        stored_bytes: size of all tensors as they are on disk.
    """

    layout: str | None
    quantization: str | None
    linears: list[LinearInfo]
    other_bytes: int
    stored_bytes: int


def find_pattern(weight: Tensor) -> str:
    """Return the N:M pattern of a weight ``[out, in]``: "N:M", "unstructured", or "" without zeros.

    N of every M consecutive weights of a row are zero, as in llm-compressor's mask_structure. A
    pattern counts only if it accounts for 95 % of the zeros: unstructured weights have a zero or
    two in any long group by chance.
    """
    zero = ~nonzero(weight)
    total = int(zero.sum())
    if total == 0:
        return ""
    for size in GROUP_SIZES:
        if weight.shape[1] % size:
            continue
        least = int(zero.view(-1, size).sum(-1).min())
        if least and least * (zero.numel() // size) >= 0.95 * total:
            return f"{least}:{size}"
    return "unstructured"


def packed_size(shape: tuple[int, int], kept: int, itemsize: int) -> int:
    """Bytes on disk of a packed weight of `shape` that keeps `kept` values."""
    blocks, tiles, rows = mask_shape(shape)
    return 4 * blocks * tiles * rows + kept * itemsize + HEADER_BYTES


def inspect_checkpoint(
    folder: str | os.PathLike[str], progress: Progress | None = None
) -> CheckpointInfo:
    """Read a checkpoint folder, dense, packed or legacy, one tensor in memory at a time.

    Args:
        folder: folder with config.json and safetensors files.
        progress: called with (tensor name, shard number from 0, number of shards).

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: unreadable or damaged files, they do not fit config.json, or parameters of the
            model are missing; names the file, the tensor or the parameters.
    """
    config = read_config(folder)
    marker = read_marker(config)
    quantization = config.get("quantization_config") or {}
    if quantization.get("quant_method") == QUANT_METHOD:
        quantization = quantization.get(INNER_KEY) or {}
    info = CheckpointInfo(
        layout=marker["layout"] if marker else None,
        quantization=quantization.get("quant_method"),
        linears=[],
        other_bytes=0,
        stored_bytes=0,
    )
    files = shards(folder)
    check = MarkerCheck(folder, marker)
    check.check_names(stored_names(files))
    header: dict[str, Any] = {}
    for number, file in enumerate(files):
        for name, kind, dense, size in iter_stored(Path(file)):
            if progress is not None:
                progress(name, number, len(files))
            check.see(name, dense)
            header[name] = tuple(dense.shape), dense.dtype
            info.stored_bytes += size
            if _is_linear(name, dense):
                info.linears.append(_describe(name, kind, dense))
            else:
                info.other_bytes += dense.nbytes
    check.finish()
    require_complete_folder(folder, header)
    _decide(info, marker, quantization)
    return info


def _is_linear(name: str, weight: Tensor) -> bool:
    module, _, kind = name.rpartition(".")
    last = module.rpartition(".")[2]
    embedding = "embed" in last or (last in NEVER_PACKED and last != "lm_head")
    return weight.dim() == 2 and kind in ("weight", "weight_packed") and not embedding


def _describe(name: str, kind: str, weight: Tensor) -> LinearInfo:
    info = LinearInfo(
        name=name.rpartition(".")[0],
        shape=tuple(weight.shape),
        dtype=str(weight.dtype).removeprefix("torch."),
        stored=kind,
        sparsity=None,
        pattern="",
        dense_bytes=weight.nbytes,
        packed_bytes=weight.nbytes,
    )
    if name.endswith(".weight") and weight.dtype in STORAGE_DTYPES and weight.numel():
        kept = int(nonzero(weight).sum())
        info.sparsity = 1 - kept / weight.numel()
        info.pattern = find_pattern(weight)
        shape = (weight.shape[0], weight.shape[1])
        info.packed_bytes = packed_size(shape, kept, weight.itemsize)
    return info


def _decide(
    info: CheckpointInfo, marker: Mapping[str, Any] | None, quantization: Mapping[str, Any]
) -> None:
    """Fill in what the plugin does with each Linear."""
    together = _fused_sparsity(info.linears)
    listed = (marker or {}).get("linears")
    for linear in info.linears:
        sparsity = together[linear.name]
        if marker is None:
            why = "no marker in config.json (--quantization tamp_sparse serves it packed)"
        elif info.quantization not in (None, COMPRESSED_TENSORS):
            why = f"refused: sparse weights with {info.quantization} are not supported"
        elif linear.name.rpartition(".")[2] == "lm_head":
            why = "the output head is not pruned"
        elif ".experts." in linear.name:
            why = "experts go to vLLM's own kernels"
        elif info.quantization is None and linear.dtype not in _short(COMPUTE_DTYPES):
            why = f"{linear.dtype} without quantization_config is not served packed"
        elif sparsity is None:
            why = "stays with the stock kernel of its quantization"
        elif listed is not None and linear.name not in listed:
            why = "not listed in config.json"
        elif sparsity < MIN_SPARSITY:
            why = f"{sparsity:.0%} zeros, under {MIN_SPARSITY:.0%}"
        elif linear.dtype in _short(COMPUTE_DTYPES):
            linear.served, why = "packed", "sparse kernel"
        elif _keeps_packed(linear.dtype, quantization):
            linear.served, why = "packed", "on CPU: 8-bit, expanded in each call"
        else:
            why = f"{linear.dtype} stays with the stock kernel of its quantization"
        linear.why = why


def _fused_sparsity(linears: list[LinearInfo]) -> dict[str, float | None]:
    """Share of zeros of the weight that vLLM multiplies with, by the name of each part."""
    groups: dict[tuple[str, Any], list[LinearInfo]] = {}
    for linear in linears:
        parent, _, last = linear.name.rpartition(".")
        parts = next((parts for parts in FUSED if last in parts), last)
        groups.setdefault((parent, parts), []).append(linear)
    found: dict[str, float | None] = {}
    for members in groups.values():
        zeros, numel = 0.0, 0
        for linear in members:
            size = linear.shape[0] * linear.shape[1]
            zeros += (linear.sparsity or 0.0) * size
            numel += size
        known = all(linear.sparsity is not None for linear in members) and numel
        found |= {linear.name: zeros / numel if known else None for linear in members}
    return found


def _short(dtypes: tuple[torch.dtype, ...]) -> tuple[str, ...]:
    return tuple(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _keeps_packed(dtype: str, quantization: Mapping[str, Any]) -> bool:
    """Whether the plugin keeps these 8-bit weights packed: FP8 not in blocks, symmetric INT8."""
    if quantization.get("quant_method") != COMPRESSED_TENSORS:
        return False
    for group in (quantization.get("config_groups") or {}).values():
        weights, inputs = group.get("weights") or {}, group.get("input_activations")
        if inputs is None or weights.get("num_bits") != 8:
            return False
        if weights.get("strategy") not in ("channel", "tensor"):
            return False
        if dtype == "int8" and not inputs.get("symmetric", True):
            return False
    return dtype in ("int8", "float8_e4m3fn")
