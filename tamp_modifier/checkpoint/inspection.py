"""What a checkpoint folder holds, Linear by Linear, and what vLLM with the plugin makes of it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tamp_modifier.checkpoint.completeness import require_complete_folder
from tamp_modifier.checkpoint.files import looking, read_config, shards
from tamp_modifier.checkpoint.int4 import WEIGHT as INT4_WEIGHT
from tamp_modifier.checkpoint.int4 import Codes, group_sizes, read_codes
from tamp_modifier.checkpoint.integrity import integrity_of
from tamp_modifier.checkpoint.marker import INNER_KEY, QUANT_METHOD, Marker, read_marker
from tamp_modifier.checkpoint.pack import Progress, iter_stored
from tamp_modifier.checkpoint.served import (
    OUTPUT_HEAD,
    fused,
    is_linear,
    packs,
    serve,
    sparse_enough,
)
from tamp_modifier.sparse.choice import DEFAULT_SIZES, Sizes
from tamp_modifier.sparse.format import STORAGE_DTYPES, mask_shape, nonzero
from tamp_modifier.sparse.machine import gpus, kernels

HEADER_BYTES = 48
GROUP_SIZES = (4, 8, 16, 32)
"""M of the N:M patterns that are looked for."""


@dataclasses.dataclass
class LinearInfo:
    """One Linear of a checkpoint.

    Attributes:
        name: name on disk, without ".weight".
        shape: (out, in).
        dtype: dtype of the weight, such as "bfloat16"; "int4" where a word holds eight.
        stored: "dense", "packed", "sparse-bitmask" or "sparse-24-bitmask".
        zeros: number of zeros, None where they are unknown.
        sparsity: share of zeros, None where `zeros` is.
        pattern: "N:M" if N of M consecutive weights are zero everywhere and that is all of the
            sparsity; "unstructured"; "" without zeros.
        dense_bytes: size of the dense weight.
        packed_bytes: size of the packed weight, on disk.
        packs: whether ``tamp pack`` packs it.
        served: what vLLM with the plugin keeps in memory: "packed" or "dense".
        why: the reason, for people.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: str
    zeros: int | None
    sparsity: float | None
    pattern: str
    dense_bytes: int
    packed_bytes: int
    packs: bool = False
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
        kernels: which kernels this machine runs on its processor, and why; see `machine.kernels`.
        gpus: the GPUs of this machine; see `machine.gpus`.
    """

    layout: str | None
    quantization: str | None
    linears: list[LinearInfo]
    other_bytes: int
    stored_bytes: int
    kernels: dict[str, Any] = dataclasses.field(default_factory=kernels)
    gpus: list[dict[str, Any]] = dataclasses.field(default_factory=gpus)


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
    folder: str | os.PathLike[str],
    progress: Progress | None = None,
    sizes: Sizes | None = DEFAULT_SIZES,
) -> CheckpointInfo:
    """Read a checkpoint folder, dense, packed or legacy, one tensor in memory at a time.

    Args:
        folder: folder with config.json and safetensors files.
        progress: called with (tensor name, shard number from 0, number of shards).
        sizes: numbers of rows that vLLM will multiply, by default those of its server on a CPU;
            None on a GPU.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: unreadable or damaged files, they do not fit config.json, or parameters of the
            model are missing; names the file, the tensor or the parameters. An environment variable
            that forces the choice of a kernel is wrong.
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
    check = integrity_of(folder, files, Marker.of(marker))
    look, named = looking(files), group_sizes(quantization)
    header: dict[str, Any] = {}
    for number, file in enumerate(files):
        for name, kind, dense, stored in iter_stored(file):
            if progress is not None:
                progress(name, number, len(files))
            check.see(name, dense, stored)
            header[name] = tuple(dense.shape), dense.dtype
            info.stored_bytes += sum(tensor.nbytes for tensor in stored.values())
            if is_linear(name, dense):
                info.linears.append(_describe(name, kind, dense))
                codes = None
                if name.endswith(INT4_WEIGHT):
                    codes = read_codes(name, dense, look, named)
                if codes is not None:
                    _describe_int4(info.linears[-1], codes)
            else:
                info.other_bytes += dense.nbytes
    check.finish()
    require_complete_folder(folder, header)
    _decide(info, marker, quantization, sizes)
    return info


def _describe(name: str, kind: str, weight: Tensor) -> LinearInfo:
    info = LinearInfo(
        name=name.rpartition(".")[0],
        shape=tuple(weight.shape),
        dtype=str(weight.dtype).removeprefix("torch."),
        stored=kind,
        zeros=None,
        sparsity=None,
        pattern="",
        dense_bytes=weight.nbytes,
        packed_bytes=weight.nbytes,
    )
    if name.endswith(".weight") and weight.dtype in STORAGE_DTYPES and weight.numel():
        kept = int(nonzero(weight).sum())
        info.zeros = weight.numel() - kept
        info.sparsity = info.zeros / weight.numel()
        info.packs = packs(name, weight)
        info.pattern = find_pattern(weight)
        shape = (weight.shape[0], weight.shape[1])
        info.packed_bytes = packed_size(shape, kept, weight.itemsize)
    return info


def _describe_int4(linear: LinearInfo, codes: Codes) -> None:
    numel, kept = math.prod(codes.shape), codes.kept()
    linear.shape = codes.shape
    linear.dtype, linear.zeros = "int4", numel - kept
    linear.sparsity = linear.zeros / numel if numel else None
    # Without scales and zero points, which stay as they are.
    linear.packed_bytes = packed_size(linear.shape, math.ceil(kept / 2), 1)
    head = OUTPUT_HEAD in linear.name.split(".")
    fits = not (codes.ordered and codes.zeros is not None) and linear.packed_bytes * 2 < numel
    linear.packs = not head and fits and sparse_enough(linear.zeros, numel)


def _decide(
    info: CheckpointInfo,
    marker: Mapping[str, Any] | None,
    quantization: Mapping[str, Any],
    sizes: Sizes | None,
) -> None:
    """Fill in what the plugin does with each Linear."""
    by_name = {linear.name: linear for linear in info.linears}
    listed, configured = (marker or {}).get("linears"), (marker or {}).get("activations")
    for names in fused(list(by_name)):
        members = [by_name[name] for name in names]
        known = all(linear.zeros is not None for linear in members)
        zeros = sum(linear.zeros or 0 for linear in members)
        share = (zeros, sum(math.prod(linear.shape) for linear in members)) if known else None
        for linear in members:
            if marker is None:
                linear.why = (
                    "no marker in config.json (--quantization tamp_sparse serves it packed)"
                )
                continue
            choice = serve(
                linear.name, linear.dtype, share, listed, quantization, sizes, configured
            )
            linear.served, linear.why = "packed" if choice.sparse else "dense", choice.why
