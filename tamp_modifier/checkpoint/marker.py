"""The marker in config.json and what can be checked before any weight is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tamp_modifier.sparse.files import check_parts, read_index
from tamp_modifier.sparse.serialization import CONFIG_KEY, PACKED_SUFFIXES, read_marker

INDEX = "model.safetensors.index.json"


@dataclasses.dataclass
class Marker:
    """What config.json says about a pruned checkpoint; see `tamp_modifier.sparse.serialization`.

    Attributes:
        linears: non-zero weights of each pruned Linear by its name on disk, without ``.weight``;
            None when the marker does not list them.
        tensors: number of tensors of the dense checkpoint; None when not given.
    """

    linears: dict[str, int] | None = None
    tensors: int | None = None


def find_marker(hf_config: object) -> Marker | None:
    """Read our marker from a transformers config; None if it has none.

    Raises:
        ValueError: the marker is ours, but a field is wrong; the message names it.
    """
    found = read_marker({CONFIG_KEY: getattr(hf_config, CONFIG_KEY, None)})
    if found is None:
        return None
    linears = found.get("linears")
    return Marker(None if linears is None else dict(linears), found.get("tensors"))


def _tensor_names(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path.name} in {path.parent} is not a whole safetensors file: {error}"
        ) from error


def _dense_name(name: str) -> str:
    for suffix in PACKED_SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def check_files(folder: Path, marker: Marker) -> None:
    """Check that a checkpoint folder holds every tensor that its index and its marker name.

    vLLM checks neither once a quantization method is set: a missing tensor would be served
    uninitialised.

    Raises:
        FileNotFoundError: some of the shards NAME-i-of-N are there, and others are not.
        ValueError: a shard or a tensor is missing, or a file is not a whole safetensors file.
    """
    index = folder / INDEX
    if index.is_file():
        weight_map = read_index(index)
        absent = sorted({file for file in weight_map.values() if not (folder / file).is_file()})
        if absent:
            raise ValueError(f"{folder} lacks the shard(s) {', '.join(absent)} that {INDEX} names")
        names = {file: _tensor_names(folder / file) for file in sorted(set(weight_map.values()))}
        missing = sorted(name for name, file in weight_map.items() if name not in names[file])
        if missing:
            raise ValueError(f"{folder}: the shards lack {_some(missing)}, which {INDEX} names")
        found = set().union(*names.values())
    else:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{folder} has no safetensors files")
        check_parts(folder, [file.name for file in files])
        found = set().union(*(_tensor_names(file) for file in files))
    dense = {_dense_name(name) for name in found}
    missing = sorted(name for name in marker.linears or () if not _has_weight(name, dense))
    if missing:
        raise ValueError(
            f"{folder}: config.json lists Linears whose weights are absent: {_some(missing)}"
        )
    if marker.tensors is not None and len(dense) != marker.tensors:
        raise ValueError(
            f"{folder} holds {len(dense)} tensors, config.json says {marker.tensors}: "
            "a file was lost or added after pruning"
        )


def _has_weight(name: str, tensors: set[str]) -> bool:
    return f"{name}.weight" in tensors or f"{name}.weight_packed" in tensors


def _some(names: list[str], limit: int = 3) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
