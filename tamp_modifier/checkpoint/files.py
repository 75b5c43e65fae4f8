"""Which files and tensors a checkpoint folder holds, and whether they are all there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tamp_modifier.messages import some
from tamp_modifier.sparse.format import STORAGE_DTYPES, nonzero
from tamp_modifier.sparse.serialization import PACKED_SUFFIXES

INDEX_FILE = "model.safetensors.index.json"
_PART = re.compile(r"(?P<name>.*?)(?P<number>\d+)-of-(?P<total>\d+)\.safetensors")


def open_shard(file: Path) -> Any:
    """Return the opened safetensors file.

    Raises:
        ValueError: it cannot be read; names it.
    """
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from error


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
    if not index.exists():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{folder} holds no safetensors files")
        check_parts(folder, [file.name for file in files])
        return files
    weight_map = read_index(index)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder}: the index names missing files: {missing}")
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
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
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
        missing = sorted(set(range(start, start + int(total))) - found)
        if missing:
            files = [f"{name}{number:0{digits}}-of-{total}.safetensors" for number in missing]
            raise FileNotFoundError(
                f"{folder}: missing or not in the index: {some(sorted(files), 3)}"
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


def stored_names(files: Iterable[Path]) -> set[str]:
    """Names of all stored tensors.

    Raises:
        ValueError: a file cannot be read; names it.
    """
    names: set[str] = set()
    for file in files:
        with open_shard(file) as handle:
            names.update(handle.keys())
    return names


def dense_name(name: str) -> str:
    """Return the name of a weight, of the name of one of its stored tensors."""
    for suffix in PACKED_SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


class MarkerCheck:
    """Compares what config.json says about the tensors with the files, while they are read.

    Args:
        where: the folder, for messages.
        marker: of `serialization.read_marker`, or None: then nothing is checked.
    """

    def __init__(self, where: object, marker: Mapping[str, Any] | None) -> None:
        self._where = where
        self._linears: Mapping[str, int] = (marker or {}).get("linears") or {}
        self._tensors: int | None = (marker or {}).get("tensors")
        self._found: set[str] = set()

    def check_names(self, stored: Iterable[str]) -> None:
        """Compare the number of tensors.

        Raises:
            ValueError: it is another than config.json says; names the Linears that are missing.
        """
        names = {dense_name(name) for name in stored}
        if self._tensors in (None, len(names)):
            return
        kinds = (".weight", ".weight_packed")
        gone = [name for name in self._linears if not names & {name + kind for kind in kinds}]
        raise ValueError(
            f"{self._where} holds {len(names)} tensors, config.json says {self._tensors}: "
            + (
                f"it lacks {some(sorted(gone), 3)}"
                if gone
                else "one was lost or added after pruning"
            )
        )

    def see(self, name: str, dense: Tensor) -> int | None:
        """Non-zeros of a weight that config.json lists, None for all others.

        Raises:
            ValueError: it keeps another number of values than listed.
        """
        if name.endswith(".weight_packed"):  # quantized, its zeros cannot be counted
            self._found.add(name.removesuffix(".weight_packed"))
            return None
        linear = name.removesuffix(".weight")
        if linear not in self._linears or dense.dim() != 2:
            return None
        self._found.add(linear)
        known = dense.dtype in STORAGE_DTYPES
        kept = int((nonzero(dense) if known else dense != 0).sum())
        if kept != self._linears[linear]:
            raise ValueError(
                f"{name} keeps {kept} values, config.json says {self._linears[linear]}"
            )
        return kept

    def finish(self) -> None:
        """All listed weights must have been seen.

        Raises:
            ValueError: names those that were not.
        """
        missing = set(self._linears) - self._found
        if missing:
            raise ValueError(
                f"{self._where}: config.json names weights that are missing: "
                f"{some(sorted(missing), 3)}"
            )
