"""The marker in config.json: how a pruned checkpoint is stored, and what it holds.

config.json carries ``compression_config`` (`CONFIG_KEY`), a key that neither transformers nor vLLM
takes for a quantization: without this package both load a dense checkpoint as it is. A packed one
they cannot read, so its config.json has ``quantization_config`` with ``quant_method``
`QUANT_METHOD` as well, by which transformers finds our quantizer and stock vLLM refuses it. A
``quantization_config`` that was there before stands below `INNER_KEY`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tamp_modifier.messages import some
from tamp_modifier.sparse.serialization import FORMAT_VERSION

CONFIG_KEY = "compression_config"
CONFIG_FORMAT = "tamp-sparse"
QUANT_METHOD = "tamp_sparse"
INNER_KEY = "packed_over"
LAYOUTS = ("dense", "packed")
ACTIVATIONS = ("scheme", "int8")
FIELDS = ("format", "version", "layout", "linears", "tensors", "checksums", "activations")


def config_marker(
    layout: str,
    linears: Mapping[str, int] | None = None,
    tensors: int | None = None,
    checksums: Mapping[str, int] | None = None,
    activations: str | None = None,
) -> dict[str, Any]:
    """Return what stands in config.json under `CONFIG_KEY`.

    Args:
        layout: "dense" (safetensors with zeros) or "packed".
        linears: name of each pruned weight on disk, without ".weight", and its number of non-zeros;
            may be absent in layout "dense".
        tensors: number of tensors of the dense checkpoint; may be absent.
        checksums: name of every tensor of the dense checkpoint and the checksum of what is stored
            of it, see `integrity.stored_checksum`; may be absent.
        activations: in what vLLM multiplies the inputs of sparse INT4 Linears, one of
            `ACTIVATIONS`; may be absent.

    Raises:
        ValueError: the layout or `activations` is unknown, or `linears` is missing in layout
            "packed".
    """
    marker: dict[str, Any] = {"format": CONFIG_FORMAT, "version": FORMAT_VERSION, "layout": layout}
    if linears is not None:
        marker["linears"] = dict(linears)
    if tensors is not None:
        marker["tensors"] = tensors
    if checksums is not None:
        marker["checksums"] = dict(checksums)
    if activations is not None:
        marker["activations"] = activations
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
    unknown = sorted(set(map(str, marker)) - set(FIELDS))
    if unknown:
        raise ValueError(
            f"{where}: {some(unknown, 3)} is unknown, the fields are {', '.join(FIELDS)}"
        )
    linears = marker.get("linears")
    if linears is None and marker["layout"] == "packed":
        raise ValueError(f"{where}: layout packed needs linears")
    if linears is not None and not _counts(linears):
        raise ValueError(f"{where}: linears must map names to numbers of non-zeros")
    checksums = marker.get("checksums", {})
    if not _counts(checksums):
        raise ValueError(f"{where}: checksums must map names to numbers")
    tensors = marker.get("tensors")
    if tensors is not None and (type(tensors) is not int or tensors < 0):
        raise ValueError(f"{where}: tensors must be a number, got {tensors!r}")
    if marker.get("activations", ACTIVATIONS[0]) not in ACTIVATIONS:
        raise ValueError(
            f"{where}: activations is {marker['activations']!r}, "
            f"allowed are {', '.join(ACTIVATIONS)}"
        )


def _counts(values: object) -> bool:
    return isinstance(values, Mapping) and all(
        type(value) is int and value >= 0 for value in values.values()
    )


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
    config: Mapping[str, Any],
    linears: Mapping[str, int],
    tensors: int | None = None,
    checksums: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return contents of config.json of a packed checkpoint; arguments as in `config_marker`."""
    inner = _inner_quantization(config)
    quantization = {"quant_method": QUANT_METHOD} | ({} if inner is None else {INNER_KEY: inner})
    activations = (read_marker(config) or {}).get("activations")
    marker = config_marker("packed", linears, tensors, checksums, activations)
    return {**config, CONFIG_KEY: marker, "quantization_config": quantization}


def mark_dense(config: Mapping[str, Any], linears: Mapping[str, int] | None) -> dict[str, Any]:
    """Return the contents of config.json of an unpacked checkpoint."""
    inner = _inner_quantization(config)
    activations = (read_marker(config) or {}).get("activations")
    config = {**config, CONFIG_KEY: config_marker("dense", linears, activations=activations)}
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
    """What config.json says about a pruned checkpoint, as `config_marker` writes it.

    Attributes:
        linears: non-zero weights of each pruned Linear by its name on disk, without ``.weight``;
            None when the marker does not list them.
        tensors: number of tensors of the dense checkpoint; None when not given.
        checksums: of every tensor by its name on disk; None when not given, as in files that were
            packed before 0.2.
        layout: "dense" or "packed"; None without a marker.
        activations: in what inputs of INT4 are multiplied; None when not given.
    """

    linears: dict[str, int] | None = None
    tensors: int | None = None
    checksums: dict[str, int] | None = None
    layout: str | None = None
    activations: str | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any] | None) -> Marker:
        """Return what `read_marker` found."""
        if fields is None:
            return cls()
        linears, checksums = fields.get("linears"), fields.get("checksums")
        return cls(
            None if linears is None else dict(linears),
            fields.get("tensors"),
            None if checksums is None else dict(checksums),
            fields["layout"],
            fields.get("activations"),
        )


def find_marker(hf_config: object) -> Marker | None:
    """Read our marker from a transformers config; None if it has none.

    Raises:
        ValueError: the marker is ours, but a field is wrong; the message names it.
    """
    marker = getattr(hf_config, CONFIG_KEY, None)
    if isinstance(marker, Mapping):  # vLLM adds to it what it looks for in a quantization_config
        marker = {key: value for key, value in marker.items() if key in FIELDS}
    found = read_marker({CONFIG_KEY: marker})
    return None if found is None else Marker.of(found)
