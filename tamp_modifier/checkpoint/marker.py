"""The marker in config.json, and what can be checked before any weight is read.

config.json carries ``compression_config`` (`CONFIG_KEY`), a key that neither transformers nor vLLM
takes for a quantization: without this package both load a dense checkpoint as it is. A packed one
they cannot read, so its config.json has ``quantization_config`` with ``quant_method``
`QUANT_METHOD` as well, by which transformers finds our quantizer and stock vLLM refuses it. A
``quantization_config`` that was there before stands below `INNER_KEY`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tamp_modifier.checkpoint.files import check_parts, read_index
from tamp_modifier.messages import some
from tamp_modifier.sparse.serialization import FORMAT_VERSION, PACKED_SUFFIXES

CONFIG_KEY = "compression_config"
CONFIG_FORMAT = "tamp-sparse"
QUANT_METHOD = "tamp_sparse"
INNER_KEY = "packed_over"
LAYOUTS = ("dense", "packed")
INDEX = "model.safetensors.index.json"


def config_marker(
    layout: str, linears: Mapping[str, int] | None = None, tensors: int | None = None
) -> dict[str, Any]:
    """Return what stands in config.json under `CONFIG_KEY`.

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
    """Return the marker in the contents of a config.json, checked; None if there is none of ours.

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
    """Return contents of config.json of a packed checkpoint; arguments as in `config_marker`."""
    inner = _inner_quantization(config)
    quantization = {"quant_method": QUANT_METHOD} | ({} if inner is None else {INNER_KEY: inner})
    marker = config_marker("packed", linears, tensors)
    return {**config, CONFIG_KEY: marker, "quantization_config": quantization}


def mark_dense(config: Mapping[str, Any], linears: Mapping[str, int] | None) -> dict[str, Any]:
    """Return the contents of config.json of an unpacked checkpoint."""
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
            raise ValueError(f"{folder}: the shards lack {some(missing, 3)}, which {INDEX} names")
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
            f"{folder}: config.json lists Linears whose weights are absent: {some(missing, 3)}"
        )
    if marker.tensors is not None and len(dense) != marker.tensors:
        raise ValueError(
            f"{folder} holds {len(dense)} tensors, config.json says {marker.tensors}: "
            "a file was lost or added after pruning"
        )


def _has_weight(name: str, tensors: set[str]) -> bool:
    return f"{name}.weight" in tensors or f"{name}.weight_packed" in tensors
