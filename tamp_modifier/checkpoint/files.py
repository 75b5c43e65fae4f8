"""Which files and tensors a checkpoint folder holds, and whether the index names them all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tamp_modifier.checkpoint.entries import require_regular
from tamp_modifier.checkpoint.writer import DTYPE_NAMES
from tamp_modifier.messages import some
from tamp_modifier.sparse.serialization import PACKED_SUFFIXES

INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
_PART = re.compile(r"(?P<name>.*?)(?P<number>[0-9]+)-of-(?P<total>[0-9]+)\.safetensors")


def read_json(file: Path) -> Any:
    """Return the contents of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, or not JSON; names it.
    """
    require_regular(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the contents of config.json.

    Raises:
        ValueError: config.json is missing or no JSON object.
    """
    file = Path(folder) / CONFIG_FILE
    try:
        config = read_json(file)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no {CONFIG_FILE}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return config


def open_shard(file: Path) -> Any:
    """Return the opened safetensors file.

    Raises:
        ValueError: it cannot be read; names it.
    """
    require_regular(file)
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from error


Look = Callable[[str], torch.Tensor | None]
"""Finds a tensor of a checkpoint by its name; None if it is not there."""


def looking(files: Iterable[Path]) -> Look:
    """Return what finds a tensor in any of these safetensors files.

    Raises:
        ValueError: a file cannot be read; names it.
    """
    places: dict[str, Path] = {}
    for file in files:
        with open_shard(file) as handle:
            places |= dict.fromkeys(handle.keys(), file)

    def look(name: str) -> torch.Tensor | None:
        if name not in places:
            return None
        with open_shard(places[name]) as handle:
            return handle.get_tensor(name)

    return look


def shards(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the safetensors files of a checkpoint folder, those of the index if there is one.

    Raises:
        FileNotFoundError: the folder or one of its shards is missing.
        ValueError: there are no safetensors files, one of them cannot be read, the index is no
            index, or it does not list the tensors of the files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    index = folder / INDEX_FILE
    if not index.exists() and not index.is_symlink():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{folder} holds no safetensors files")
        check_parts(folder, [file.name for file in files])
        for file in files:
            require_regular(file)
        return files
    weight_map = read_index(index)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not os.path.lexists(folder / name)]
    if missing:
        raise FileNotFoundError(f"{folder}: the index names missing files: {some(missing, 3)}")
    check_parts(folder, names)
    files = [folder / name for name in names]
    _check_index(index, weight_map, files)
    return files


def read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name.

    Raises:
        ValueError: the file is no safetensors index.
    """
    try:
        weight_map = read_json(index)["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not a safetensors index: {error}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"{index} is not a safetensors index: weight_map must map tensors to files"
        )
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index}: {name!r} is not a file name")
    return weight_map


def check_parts(folder: Path, names: Iterable[str]) -> None:
    """Refuse some of the files ``NAME-i-of-N.safetensors`` without the others.

    Raises:
        FileNotFoundError: names the shards that are missing.
    """
    parts: dict[tuple[str, str, int], set[int]] = {}
    for name in names:
        match = _PART.fullmatch(name)
        if match:
            key = match["name"], match["total"], len(match["number"])
            parts.setdefault(key, set()).add(int(match["number"]))
    for (name, total, digits), found in parts.items():
        start = 0 if 0 in found else 1  # some tools count from 0
        numbers = range(start, start + int(total))
        lacking = int(total) - sum(number in numbers for number in found)
        if lacking:
            # A name can say any total: only the first that lack are looked for.
            first = islice((number for number in numbers if number not in found), 3)
            files = [f"{name}{number:0{digits}}-of-{total}.safetensors" for number in first]
            more = f" and {lacking - len(files):,} more" if lacking > len(files) else ""
            raise FileNotFoundError(
                f"{folder}: missing or not in the index: {', '.join(files)}{more}"
            )


def _check_index(index: Path, weight_map: Mapping[str, str], files: Iterable[Path]) -> None:
    for file in files:
        with open_shard(file) as handle:
            held = set(handle.keys())
        listed = {name for name, place in weight_map.items() if place == file.name}
        if listed - held:
            raise ValueError(
                f"{file} lacks {some(sorted(listed - held), 3)}, which {index.name} names"
            )
        if held - listed:
            raise ValueError(
                f"{file} holds {some(sorted(held - listed), 3)}, which {index.name} lacks"
            )


_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}

Header = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of every tensor by its name on disk."""


def read_header(files: Iterable[Path]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor in safetensors files; uint8 for a dtype that torch lacks.

    Raises:
        ValueError: a file cannot be read, or a tensor is in two of them; names it.
    """
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    place: dict[str, Path] = {}
    for file in files:
        with open_shard(file) as handle:
            for name in handle.keys():  # noqa: SIM118
                if name in place:
                    raise ValueError(f"{name} is in {place[name]} and in {file.name}")
                part: Any = handle.get_slice(name)
                place[name] = file
                found[name] = tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), torch.uint8)
    return found


def dense_name(name: str) -> str:
    """Return the name of a weight, of the name of one of its stored tensors."""
    for suffix in PACKED_SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name
