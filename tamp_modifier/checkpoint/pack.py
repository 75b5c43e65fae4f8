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
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tamp_modifier.checkpoint.entries import files_to_copy
from tamp_modifier.checkpoint.files import (
    CONFIG_FILE,
    INDEX_FILE,
    Look,
    looking,
    open_shard,
    read_config,
    shards,
)
from tamp_modifier.checkpoint.int4 import WEIGHT as INT4_WEIGHT
from tamp_modifier.checkpoint.int4 import group_sizes, pack_words, unpack_words
from tamp_modifier.checkpoint.integrity import integrity_of, linear_name, stored_checksum
from tamp_modifier.checkpoint.legacy import read_24_bitmask, read_bitmask
from tamp_modifier.checkpoint.marker import Marker, mark_dense, mark_packed, read_marker
from tamp_modifier.checkpoint.served import MIN_SPARSITY, OUTPUT_HEAD, packs
from tamp_modifier.checkpoint.writer import ShardWriter
from tamp_modifier.files import check_output, check_room, new_folder
from tamp_modifier.report.card import CARD_FILE, renew_card
from tamp_modifier.report.model import REPORT_FILE, PruningReport, ReportError
from tamp_modifier.sparse.format import STORAGE_DTYPES
from tamp_modifier.sparse.int4_serialization import from_tensors_int4, to_tensors_int4
from tamp_modifier.sparse.packing import pack, unpack
from tamp_modifier.sparse.serialization import PACKED_SUFFIXES, from_tensors, to_tensors

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
        tensors: number of tensors, packed weights counted as one.
    """

    linears: dict[str, int] = dataclasses.field(default_factory=dict)
    dense_bytes: int = 0
    packed_bytes: int = 0
    total_bytes: int = 0
    files: list[str] = dataclasses.field(default_factory=list)
    tensors: int = 0

    def count(self, dense: Tensor, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add a packed weight to the bytes, and return what is stored of it."""
        self.dense_bytes += dense.nbytes
        self.packed_bytes += sum(tensor.nbytes for tensor in stored.values())
        return stored

    @property
    def ratio(self) -> float:
        """Packed bytes over dense bytes of the packed weights; 1.0 if there are none."""
        return self.packed_bytes / self.dense_bytes if self.dense_bytes else 1.0


def is_packed(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder's config.json says that its weights are packed."""
    marker = read_marker(read_config(folder))
    return marker is not None and marker["layout"] == "packed"


def _groups(names: Iterable[str]) -> dict[str, tuple[str, list[str]]]:
    """Return stored tensor names, grouped: dense name -> (kind, stored names)."""
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


def _to_dense(tensors: Mapping[str, Tensor], name: str, kind: str) -> Tensor:
    if kind == "packed" and name.endswith(INT4_WEIGHT):
        return unpack_words(from_tensors_int4(tensors, name))
    if kind == "packed":
        return unpack(from_tensors(tensors, name))
    if kind == "dense":
        return tensors[name]
    base = next(part for part in tensors if part.endswith(".bitmask")).removesuffix(".bitmask")
    return (read_bitmask if kind == "sparse-bitmask" else read_24_bitmask)(tensors, base)


def iter_stored(
    file: str | os.PathLike[str],
) -> Iterator[tuple[str, str, Tensor, dict[str, Tensor]]]:
    """All weights of a file as ``(name, kind, dense tensor, stored tensors)``, one at a time.

    The kind is "dense", "packed", "sparse-bitmask" or "sparse-24-bitmask".

    Raises:
        ValueError: the file cannot be read, or a packed tensor is damaged; names it.
    """
    with open_shard(Path(file)) as handle:
        for name, (kind, stored) in _groups(handle.keys()).items():
            tensors = {part: handle.get_tensor(part) for part in stored}
            yield name, kind, _to_dense(tensors, name, kind), tensors


def iter_dense(files: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[str, Tensor]]:
    """All weights of safetensors files as ``(name, dense tensor)``, one at a time in memory.

    Raises:
        ValueError: a file cannot be read, or a packed tensor is damaged; names it.
    """
    for file in files:
        for name, _, dense, _ in iter_stored(file):
            yield name, dense


def _pack_int4(
    name: str,
    words: Tensor,
    look: Look,
    named: Collection[int],
    min_sparsity: float,
    stats: PackStats,
) -> dict[str, Tensor]:
    """Return what is stored of 4-bit codes: packed ones where they have zeros enough."""
    linear = name.removesuffix(INT4_WEIGHT)
    packed = None if OUTPUT_HEAD in linear.split(".") else pack_words(name, words, look, named)
    if packed is None or packed.sparsity < min_sparsity:
        return {name: words}
    stored = to_tensors_int4(packed, name)
    if sum(tensor.nbytes for tensor in stored.values()) >= words.nbytes:  # masks and zero codes
        return {name: words}
    stats.linears[linear] = packed.kept
    return stats.count(words, stored)


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    check_stored: Callable[[Collection[str]], None],
    make_config: Callable[[dict[str, Any], PackStats, dict[str, int]], dict[str, Any]],
    convert: Callable[[str, Tensor, Look, PackStats], dict[str, Tensor]],
    progress: Progress | None,
    packed: bool,
) -> PackStats:
    """Write `source` to `out` with each dense tensor replaced by what `convert` makes of it.

    All goes to a folder of its own beside `out` and is renamed: `out` is whole or absent. The
    model card says whether the result is `packed`.
    """
    source, out = Path(source), Path(out)
    files = shards(source)
    config = read_config(source)
    written = {file.name for file in files} | {CONFIG_FILE, INDEX_FILE}
    others = files_to_copy(source, written)
    place = Path(os.path.abspath(out))  # "." has no name
    if place == Path.cwd():
        raise ValueError(f"{place} is the current folder; give a new one")
    if source.resolve() in place.resolve().parents:
        raise ValueError(f"{place} lies inside {source}; give a folder beside it")
    check_output(out)
    out = place
    check = integrity_of(source, files, Marker.of(read_marker(config)))
    check_stored(check.stored)
    # A shard is written twice for a moment: see `ShardWriter`.
    needed = 2 * sum(check.sizes.values()) if len(files) == 1 else sum(check.sizes.values())
    check_room(out.parent, needed + sum(file.stat().st_size for file in others.values()))
    look = looking(files)
    stats = PackStats()
    checksums: dict[str, int] = {}
    weight_map: dict[str, str] = {}
    temporary = out.with_name(f"{out.name}.{uuid.uuid4().hex[:12]}.partial")
    with new_folder(out, temporary=temporary) as partial:
        for number, file in enumerate(files):
            with (
                open_shard(file) as handle,
                ShardWriter(partial / file.name, handle.metadata()) as shard,
            ):
                for name, _, dense, stored in iter_stored(file):
                    if progress is not None:
                        progress(name, number, len(files))
                    check.see(name, dense, stored)
                    tensors = convert(name, dense, look, stats)
                    stats.tensors += 1
                    checksums[name] = stored_checksum(tensors, name)
                    for part, tensor in tensors.items():
                        shard.add(part, tensor)
                        weight_map[part] = file.name
                        stats.total_bytes += tensor.nbytes
            stats.files.append(file.name)
        check.finish()
        _write_json(partial / CONFIG_FILE, make_config(config, stats, checksums))
        if (source / INDEX_FILE).exists():
            index = {"metadata": {"total_size": stats.total_bytes}, "weight_map": weight_map}
            _write_json(partial / INDEX_FILE, index)
        for place, file in others.items():
            (partial / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, partial / place)
        report = None if (partial / CARD_FILE).exists() else _report(partial)
        renew_card(partial, report, packed)
    return stats


def _report(folder: Path) -> PruningReport | None:
    """Return the report in a folder; None without one that can be read."""
    try:
        return PruningReport.load(folder / REPORT_FILE)
    except (OSError, ReportError):
        return None


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

    Returns:
        What was packed, and how large it was and is.

    Raises:
        FileNotFoundError: `source` or one of its files is missing.
        ValueError: bad arguments, `out` is not empty, unreadable files, a weight does not fit
            config.json, `source` is packed, or no weight is sparse enough.
    """
    if not (0 < min_sparsity <= 1) or math.isnan(min_sparsity):
        raise ValueError(f"min_sparsity must be in (0, 1], got {min_sparsity}")
    unknown: set[str] = set()
    shards(source)  # whether the folder and its files are there comes first
    named = group_sizes(read_config(source).get("quantization_config") or {})

    def check_stored(stored: Collection[str]) -> None:
        if any(name.endswith(PACKED_SUFFIXES) for name in stored):
            raise ValueError(f"{source} is packed already")

    def convert(name: str, dense: Tensor, look: Look, stats: PackStats) -> dict[str, Tensor]:
        if name.endswith(INT4_WEIGHT):
            return _pack_int4(name, dense, look, named, min_sparsity, stats)
        if dense.dim() == 2 and name.endswith(".weight") and dense.dtype not in STORAGE_DTYPES:
            unknown.add(str(dense.dtype).removeprefix("torch."))
        if not packs(name, dense, min_sparsity):
            return {name: dense}
        packed = pack(dense)
        stats.linears[linear_name(name)] = packed.kept
        return stats.count(dense, to_tensors(packed, name))

    def make_config(
        config: dict[str, Any], stats: PackStats, checksums: dict[str, int]
    ) -> dict[str, Any]:
        if not stats.linears and unknown:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in STORAGE_DTYPES)
            raise ValueError(
                f"{source}: {', '.join(sorted(unknown))} weights cannot be packed, allowed are "
                f"{known}, with {min_sparsity:.0%} zeros"
            )
        if not stats.linears:
            raise ValueError(
                f"{source}: no 2-D weight has {min_sparsity:.0%} zeros; prune the model first"
            )
        return mark_packed(config, stats.linears, stats.tensors, checksums)

    return _convert(source, out, check_stored, make_config, convert, progress, packed=True)


def unpack_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    progress: Progress | None = None,
) -> PackStats:
    """Write the packed (or legacy) checkpoint `source` to the new folder `out` with dense tensors.

    config.json then carries the marker of layout "dense", and the plugin still serves it sparse.

    Args:
        source: folder with config.json and safetensors files.
        out: must not exist, or be empty.
        progress: called with (tensor name, shard number from 0, number of shards).

    Returns:
        What was unpacked, and how large the written tensors are.

    Raises:
        FileNotFoundError: `source` or one of its files is missing.
        ValueError: nothing is packed, unreadable or damaged files, or a weight does not fit
            config.json; names it.
    """
    shards(source)  # whether the folder and its files are there comes first
    marker = read_marker(read_config(source)) or {}
    expected = marker.get("linears") or {}

    def check_stored(stored: Collection[str]) -> None:
        packed = any(name.endswith((*PACKED_SUFFIXES, ".bitmask")) for name in stored)
        if not packed and marker.get("layout") != "packed":
            raise ValueError(f"{source}: nothing is packed, the weights are dense already")

    def convert(name: str, dense: Tensor, look: Look, stats: PackStats) -> dict[str, Tensor]:
        linear = linear_name(name)
        if linear in expected and dense.dim() == 2:
            stats.linears[linear] = expected[linear]  # checked before
            stats.dense_bytes += dense.nbytes
        return {name: dense}

    def make_config(
        config: dict[str, Any], stats: PackStats, checksums: dict[str, int]
    ) -> dict[str, Any]:
        return mark_dense(config, stats.linears or None)

    return _convert(source, out, check_stored, make_config, convert, progress, packed=False)


def write_dense(
    files: Sequence[str | os.PathLike[str]], folder: Path, marker: Mapping[str, Any]
) -> list[Path]:
    """Write dense copies of safetensors files, under the same names, into `folder`.

    Args:
        files: packed, dense or legacy files.
        folder: exists and is empty.
        marker: of config.json; all that it names must be there.

    Returns:
        The written files, in the order of `files`.

    Raises:
        ValueError: a file cannot be read, or a weight is damaged, missing or does not fit
            `marker`; names it.
    """
    written = []
    source = Path(files[0]).parent if files else folder
    check = integrity_of(source, map(Path, files), Marker.of(marker))
    check_room(folder, sum(check.sizes.values()))
    for file in map(Path, files):
        with ShardWriter(folder / file.name, {"format": "pt"}) as shard:
            for name, _, dense, stored in iter_stored(file):
                check.see(name, dense, stored)
                shard.add(name, dense)
        written.append(folder / file.name)
    check.finish()
    return written
