"""The calibration samples beside a report: their names, and where the tokens of a picture lie.

``tamp prune`` writes them, as strict JSON::

    {"seed": 0, "samples": [{"name": "data.jsonl:1",
                             "media": [{"kind": "image", "path": "a.png", "first": 3,
                                        "grid": [12, 12]}]}]}

A path is relative to the folder of the data, or the file's name alone where it lies elsewhere; of
media that are in no file there is none. ``first`` and ``grid`` (rows, columns) are there where they
are known. Files of version 0.1 have absolute paths.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tamp_modifier.report.model import ReportError, _count, _expect, _text

MOST_TOKENS = 2**20
"""Tokens of one picture, at most."""

_MEDIA = ("image", "video", "audio")


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Return names and media of the samples beside a report; none where there is no such file.

    Raises:
        ReportError: the file is not what ``tamp prune`` writes; names the place.
    """
    if not os.path.lexists(path):
        return []
    if not path.is_file():
        raise ReportError(f"{path} is not a regular file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path} is not a JSON file: {error}") from None
    try:
        samples = _expect(_field(data, "samples", "the file"), list, "samples")
        return [_sample(sample, f"samples[{number}]") for number, sample in enumerate(samples)]
    except (ReportError, OverflowError) as error:
        raise ReportError(f"{path} is not a list of samples of tamp prune: {error}") from None


def _field(data: Any, name: str, place: str) -> Any:
    if name not in _expect(data, dict, place):
        raise ReportError(f"{place} lacks {name}")
    return data[name]


def _sample(data: Any, place: str) -> dict[str, Any]:
    media = _expect(_field(data, "media", place), list, f"{place}.media")
    return {
        "name": _text(_field(data, "name", place), f"{place}.name"),
        "media": [_medium(one, f"{place}.media[{number}]") for number, one in enumerate(media)],
    }


def _medium(data: Any, place: str) -> dict[str, Any]:
    kind = _text(_field(data, "kind", place), f"{place}.kind")
    if kind not in _MEDIA:
        raise ReportError(f"{place}.kind is {kind!r:.60}, expected one of {', '.join(_MEDIA)}")
    found: dict[str, Any] = {
        "kind": kind,
        "path": _text(_field(data, "path", place), f"{place}.path"),
    }
    if "\0" in found["path"]:
        raise ReportError(f"{place}.path is {found['path']!r:.60}, expected the name of a file")
    if "grid" in data or "first" in data:
        found |= _tokens(data, place)
    return found


def _tokens(data: Mapping[str, Any], place: str) -> dict[str, Any]:
    grid = _expect(_field(data, "grid", place), list, f"{place}.grid")
    sizes = [_count(size, f"{place}.grid") for size in grid]
    if len(sizes) != 2 or min(sizes) < 1 or sizes[0] * sizes[1] > MOST_TOKENS:
        raise ReportError(
            f"{place}.grid is {grid!r:.60}, expected [rows, columns] of 1 to {MOST_TOKENS:,} tokens"
        )
    return {"first": _count(_field(data, "first", place), f"{place}.first"), "grid": sizes}


def find_medium(path: str, folder: Path) -> Path | None:
    """Return the file of a medium if it lies in a folder, None if it lies elsewhere or is gone.

    Args:
        path: of `read_samples`.
        folder: where it may lie; nothing outside is looked at, links followed.
    """
    try:
        root = folder.resolve()
        found = (root / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None
    return found if found.is_relative_to(root) and found.is_file() else None


def shown_path(path: Path, folder: Path) -> str:
    """Return the path of a medium as it is written: within the data's folder, or the name alone."""
    try:
        return path.absolute().relative_to(folder.absolute()).as_posix()
    except ValueError:
        return path.name
