"""Packing and unpacking of whole checkpoint folders (safetensors shards), tensor by tensor.

`pack_checkpoint` stores each pruned 2-D weight as the three tensors of `serialization`, all else
as it is, and marks it in config.json. `unpack_checkpoint` goes back to the same tensors, bit by bit
(-0 comes back as +0). `iter_dense` and `write_dense` read packed, dense and legacy files alike.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tamp_modifier.sparse.format import STORAGE_DTYPES, nonzero, pack, unpack
from tamp_modifier.sparse.safetensors_writer import ShardWriter
from tamp_modifier.sparse.serialization import (
    PACKED_SUFFIXES,
    from_tensors,
    mark_dense,
    mark_packed,
    read_24_bitmask,
    read_bitmask,
    read_marker,
    to_tensors,
)

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
# Below this sparsity a 16-bit weight would hardly shrink: the mask costs 1 bit a weight.
MIN_SPARSITY = 0.2
NEVER_PACKED = ("embed_tokens", "lm_head", "wte", "wpe", "word_embeddings")

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass
class PackStats:
    """What `pack_checkpoint` or `unpack_checkpoint` did.

    Attributes:
        linears: number of packed weights, by name (without ".weight") their kept values.
        dense_bytes: bytes of these weights when dense.
        packed_bytes: bytes of these weights when packed.
        total_bytes: bytes of all tensors in the written folder.
        files: names of the written shards.
    """

    linears: dict[str, int] = dataclasses.field(default_factory=dict)
    dense_bytes: int = 0
    packed_bytes: int = 0
    total_bytes: int = 0
    files: list[str] = dataclasses.field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Packed bytes over dense bytes of the packed weights; 1.0 if there are none."""
        return self.packed_bytes / self.dense_bytes if self.dense_bytes else 1.0


def shards(folder: str | os.PathLike[str]) -> list[Path]:
    """The safetensors files of a checkpoint folder, those of the index if there is one.

    Raises:
        FileNotFoundError: the folder or one of the files of the index is missing.
        ValueError: there are no safetensors files, or the index is no index.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    index = folder / INDEX_FILE
    if index.exists():
        names = sorted(set(_weight_map(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder}: the index names missing files: {missing}")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no safetensors files")
    return files


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not a safetensors index: {error}") from error
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index}: {name!r} is not a file name")
    return weight_map


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of config.json.

    Raises:
        ValueError: config.json is missing or no JSON object.
    """
    file = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no {CONFIG_FILE}") from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return config


def is_packed(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder's config.json says that its weights are packed."""
    marker = read_marker(read_config(folder))
    return marker is not None and marker["layout"] == "packed"


def _groups(names: Iterable[str]) -> dict[str, tuple[str, list[str]]]:
    """Stored tensor names, grouped: dense name -> (kind, stored names)."""
    names = list(names)
    present = set(names)
    groups: dict[str, tuple[str, list[str]]] = {}
    taken: set[str] = set()
    for name in names:
        for suffix in PACKED_SUFFIXES:
            if name.endswith(suffix):
                base = name.removesuffix(suffix)
                groups.setdefault(base, ("packed", []))[1].append(name)
                taken.add(name)
        if name.endswith(".bitmask"):
            base = name.removesuffix(".bitmask")
            kind = "sparse-bitmask" if base + ".row_offsets" in present else "sparse-24-bitmask"
            parts = [base + part for part in (".shape", ".compressed", ".bitmask", ".row_offsets")]
            members = [part for part in parts if part in present]
            dense = base if base.endswith(".weight") else base + ".weight"
            groups[dense] = (kind, members)
            taken.update(members)
    for name in names:
        if name not in taken:
            groups[name] = ("dense", [name])
    return groups


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from error


def _to_dense(tensors: Mapping[str, Tensor], name: str, kind: str) -> Tensor:
    if kind == "packed":
        return unpack(from_tensors(tensors, name))
    if kind == "dense":
        return tensors[name]
    base = next(part for part in tensors if part.endswith(".bitmask")).removesuffix(".bitmask")
    return (read_bitmask if kind == "sparse-bitmask" else read_24_bitmask)(tensors, base)


def iter_stored(file: str | os.PathLike[str]) -> Iterator[tuple[str, str, Tensor, int]]:
    """All weights of a file as ``(name, kind, dense tensor, bytes on disk)``, one at a time.

    The kind is "dense", "packed", "sparse-bitmask" or "sparse-24-bitmask".

    Raises:
        ValueError: the file cannot be read, or a packed tensor is damaged; names it.
    """
    with _open(Path(file)) as handle:
        for name, (kind, stored) in _groups(handle.keys()).items():
            tensors = {part: handle.get_tensor(part) for part in stored}
            size = sum(tensor.nbytes for tensor in tensors.values())
            yield name, kind, _to_dense(tensors, name, kind), size


def iter_dense(files: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[str, Tensor]]:
    """All weights of safetensors files as ``(name, dense tensor)``, one at a time in memory.

    Raises:
        ValueError: a file cannot be read, or a packed tensor is damaged; names it.
    """
    for file in files:
        for name, _, dense, _ in iter_stored(file):
            yield name, dense


def _is_pruned_linear(name: str, weight: Tensor, min_sparsity: float) -> bool:
    if weight.dim() != 2 or weight.dtype not in STORAGE_DTYPES or not name.endswith(".weight"):
        return False
    if weight.numel() == 0 or any(part in NEVER_PACKED for part in name.split(".")):
        return False
    zeros = weight.numel() - int(nonzero(weight).sum())
    return zeros >= min_sparsity * weight.numel()


def _copy_other_files(source: Path, target: Path, skip: set[str]) -> None:
    for item in sorted(source.iterdir()):
        if item.name in skip or item.name.startswith("."):
            continue
        if item.is_dir():
            shutil.copytree(item, target / item.name)
        else:
            shutil.copy2(item, target / item.name)


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    make_config: Callable[[dict[str, Any], PackStats], dict[str, Any]],
    convert: Callable[[str, Tensor, PackStats], dict[str, Tensor]],
    progress: Progress | None,
) -> PackStats:
    """Write `source` to `out` with each dense tensor replaced by what `convert` makes of it.

    All goes to ``.partial`` beside `out` and is renamed at the end: `out` is whole or absent.
    """
    source, out = Path(source), Path(out)
    files = shards(source)
    config = read_config(source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder")
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)  # left by a run that was stopped
    partial.mkdir(parents=True)
    stats = PackStats()
    weight_map: dict[str, str] = {}
    try:
        for number, file in enumerate(files):
            with _open(file) as handle:
                metadata = handle.metadata()
            with ShardWriter(partial / file.name, metadata) as shard:
                for name, dense in iter_dense([file]):
                    if progress is not None:
                        progress(name, number, len(files))
                    for part, tensor in convert(name, dense, stats).items():
                        shard.add(part, tensor)
                        weight_map[part] = file.name
                        stats.total_bytes += tensor.nbytes
            stats.files.append(file.name)
        _write_json(partial / CONFIG_FILE, make_config(config, stats))
        if (source / INDEX_FILE).exists():
            index = {"metadata": {"total_size": stats.total_bytes}, "weight_map": weight_map}
            _write_json(partial / INDEX_FILE, index)
        written = {file.name for file in files} | {CONFIG_FILE, INDEX_FILE}
        _copy_other_files(source, partial, written)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return stats


def pack_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    min_sparsity: float = MIN_SPARSITY,
    progress: Progress | None = None,
) -> PackStats:
    """Write the checkpoint folder `source` to the new folder `out` with its pruned Linears packed.

    Embeddings, the output head and tensors that are less sparse than `min_sparsity` stay as they
    are; legacy sparse tensors are converted. Memory: one weight, dense and packed.

    Args:
        source: folder with config.json and safetensors files.
        out: must not exist, or be empty.
        min_sparsity: in (0, 1]; the least fraction of zeros of a weight to be packed.
        progress: called with (tensor name, shard number from 0, number of shards).

    Raises:
        FileNotFoundError: `source` or one of its files is missing.
        ValueError: bad arguments, unreadable files, or no weight is sparse enough.
    """
    if not (0 < min_sparsity <= 1) or math.isnan(min_sparsity):
        raise ValueError(f"min_sparsity must be in (0, 1], got {min_sparsity}")

    def convert(name: str, dense: Tensor, stats: PackStats) -> dict[str, Tensor]:
        if not _is_pruned_linear(name, dense, min_sparsity):
            return {name: dense}
        packed = pack(dense)
        tensors = to_tensors(packed, name)
        stats.linears[name.removesuffix(".weight")] = packed.kept
        stats.dense_bytes += dense.nbytes
        stats.packed_bytes += sum(tensor.nbytes for tensor in tensors.values())
        return tensors

    def make_config(config: dict[str, Any], stats: PackStats) -> dict[str, Any]:
        if not stats.linears:
            raise ValueError(
                f"{source}: no 2-D weight has {min_sparsity:.0%} zeros; prune the model first"
            )
        return mark_packed(config, stats.linears)

    return _convert(source, out, make_config, convert, progress)


def unpack_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    progress: Progress | None = None,
) -> PackStats:
    """Write the packed (or legacy) checkpoint `source` to the new folder `out` with dense tensors.

    config.json then carries the marker of layout "dense", and the plugin still serves it sparse.

    Raises:
        FileNotFoundError: `source` or one of its files is missing.
        ValueError: unreadable or damaged files, or a weight does not fit config.json; names it.
    """
    expected = (read_marker(read_config(source)) or {}).get("linears") or {}

    def convert(name: str, dense: Tensor, stats: PackStats) -> dict[str, Tensor]:
        kept = _check_kept(name, dense, expected)
        if kept is not None:
            stats.linears[name.removesuffix(".weight")] = kept
            stats.dense_bytes += dense.nbytes
        return {name: dense}

    def make_config(config: dict[str, Any], stats: PackStats) -> dict[str, Any]:
        _check_all_found(source, expected, stats.linears)
        return mark_dense(config, stats.linears or None)

    return _convert(source, out, make_config, convert, progress)


def _check_kept(name: str, dense: Tensor, expected: Mapping[str, int]) -> int | None:
    """Non-zeros of a weight that `expected` lists, None for all others."""
    linear = name.removesuffix(".weight")
    if linear not in expected or dense.dim() != 2:
        return None
    kept = int(nonzero(dense).sum())
    if kept != expected[linear]:
        raise ValueError(f"{name} keeps {kept} values, config.json says {expected[linear]}")
    return kept


def _check_all_found(source: object, expected: Iterable[str], found: Iterable[str]) -> None:
    missing = sorted(set(expected) - set(found))
    if missing:
        raise ValueError(f"{source}: config.json names weights that are missing: {missing}")


def write_dense(
    files: Sequence[str | os.PathLike[str]], folder: Path, linears: Mapping[str, int]
) -> list[Path]:
    """Write dense copies of safetensors files, under the same names, into `folder`.

    Args:
        files: packed, dense or legacy files.
        folder: exists and is empty.
        linears: pruned weights without ".weight", and their non-zeros; all of them must be there.

    Returns:
        The written files, in the order of `files`.

    Raises:
        ValueError: a file cannot be read, or a weight is damaged, missing or does not fit
            `linears`; names it.
    """
    written, found = [], set()
    for file in map(Path, files):
        with ShardWriter(folder / file.name, {"format": "pt"}) as shard:
            for name, dense in iter_dense([file]):
                if _check_kept(name, dense, linears) is not None:
                    found.add(name.removesuffix(".weight"))
                shard.add(name, dense)
        written.append(folder / file.name)
    _check_all_found(", ".join(map(str, files)), linears, found)
    return written
