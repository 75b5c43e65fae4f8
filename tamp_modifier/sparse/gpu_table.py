"""What a GPU multiplies sparse, and how: the constants of the Triton kernels, by card.

The table is ``gpu_table.json`` beside this module. ``benchmarks/gpu_check.sh --write-table``
measures a card and adds an entry under the name that torch gives it; other cards use "default",
whose "measured" is null as long as its numbers are guessed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

KINDS = ("float", "int8", "int4")
"""Kinds of weights: bf16, fp16 and fp32; int8 activations; 4-bit codes."""
DEFAULT = "default"
PATH = Path(__file__).with_suffix(".json")
MOST_LAUNCH_ROWS, MOST_TILES, MOST_WARPS = 64, 64, 32


@dataclass(frozen=True)
class Choice:
    """How a card multiplies one kind of weight.

    Attributes:
        sparse_rows: with more rows of x than this a dense GEMM of the expanded weight is faster.
        tilings: rows of x in one launch, a power of two -> tiles that a program reads at once and
            its warps, powers of two; more rows than the largest key take several launches.
    """

    sparse_rows: int
    tilings: Mapping[int, tuple[int, int]]

    def launch(self, rows: int) -> tuple[int, int, int]:
        """Rows (a power of two), tiles and warps of a launch for up to `rows` rows of x."""
        fitting = min((m for m in self.tilings if m >= rows), default=max(self.tilings))
        return fitting, *self.tilings[fitting]


def _power(value: Any, most: int, name: str) -> int:
    number = isinstance(value, int) and not isinstance(value, bool)
    if not number or value < 1 or value > most or value & (value - 1):
        raise ValueError(f"{name} must be a power of two from 1 to {most}, got {value!r}")
    return value


def _choice(entry: Any, name: str) -> Choice:
    if not isinstance(entry, Mapping) or set(entry) != {"sparse_rows", "tilings"}:
        raise ValueError(f"{name} must have sparse_rows and tilings, got {entry!r}")
    rows, tilings = entry["sparse_rows"], entry["tilings"]
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
        raise ValueError(f"{name}: sparse_rows must be an integer from 0 on, got {rows!r}")
    if not isinstance(tilings, Mapping) or not tilings:
        raise ValueError(f"{name}: tilings must name at least one number of rows, got {tilings!r}")
    found = {}
    for key, value in tilings.items():
        if not str(key).isdecimal() or not isinstance(value, list) or len(value) != 2:
            raise ValueError(f"{name}: tilings must map rows to [tiles, warps], got {key}: {value}")
        place = f"{name}: tilings, {key}"
        launch_rows = _power(int(key), MOST_LAUNCH_ROWS, f"{place}: rows")
        tiles = _power(value[0], MOST_TILES, f"{place}: tiles")
        found[launch_rows] = (tiles, _power(value[1], MOST_WARPS, f"{place}: warps"))
    return Choice(rows, found)


def parse(content: Any, source: str) -> dict[str, dict[str, Choice]]:
    """Return card -> kind of weight -> choice.

    Args:
        content: the JSON of a table.
        source: its name in errors.

    Raises:
        ValueError: it is not a table, or an entry has a value that is not allowed.
    """
    if not isinstance(content, Mapping) or content.get("format") != "tamp-gpu-table":
        raise ValueError(f"{source} is not a tamp-gpu-table")
    if content.get("version") != 1:
        raise ValueError(f"{source} has version {content.get('version')!r}, known is 1")
    cards = content.get("cards")
    if not isinstance(cards, Mapping) or DEFAULT not in cards:
        raise ValueError(f'{source}: cards must have an entry "{DEFAULT}"')
    found: dict[str, dict[str, Choice]] = {}
    for card, entry in cards.items():
        if not isinstance(entry, Mapping):
            raise ValueError(f"{source}: {card} must map kinds of weights, got {entry!r}")
        missing = [kind for kind in KINDS if kind not in entry]
        if missing:
            raise ValueError(f"{source}: {card} lacks {', '.join(missing)}")
        found[card] = {k: _choice(entry[k], f"{source}: {card}: {k}") for k in KINDS}
    return found


@functools.cache
def _table() -> dict[str, dict[str, Choice]]:
    return parse(json.loads(PATH.read_text()), PATH.name)


@functools.cache
def _of_card(kind: str, card: str) -> Choice:
    table = _table()
    return table.get(card, table[DEFAULT])[kind]


@functools.cache
def _card(index: int | None) -> str:
    return torch.cuda.get_device_name(index)


def choice(kind: str, device: torch.device) -> Choice:
    """Return the entry of a device for one of `KINDS`; of "default" where nobody measured it.

    Args:
        kind: of the weight.
        device: a GPU, or the CPU where Triton's interpreter runs.

    Raises:
        ValueError: an unknown kind, or a damaged table.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return _of_card(kind, _card(device.index) if device.type == "cuda" else DEFAULT)
