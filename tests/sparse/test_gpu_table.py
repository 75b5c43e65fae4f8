"""The table of the GPU: what it may say, and which launch follows from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tamp_modifier.sparse import gpu_table
from tamp_modifier.sparse.gpu_table import Choice

ENTRY: dict[str, Any] = {"sparse_rows": 8, "tilings": {"1": [8, 4], "16": [2, 2]}}


def table(**change: Any) -> dict[str, Any]:
    """A table of one card, with a change in its entry for int8."""
    card = {"measured": None, **dict.fromkeys(gpu_table.KINDS, ENTRY), "int8": {**ENTRY, **change}}
    return {"format": "tamp-gpu-table", "version": 1, "cards": {"default": card}}


def test_the_table_of_the_package_has_every_kind_of_weight() -> None:
    cards = gpu_table.parse(json.loads(gpu_table.PATH.read_text()), "the table")
    assert all(set(entry) == set(gpu_table.KINDS) for entry in cards.values())
    for kind in gpu_table.KINDS:
        assert gpu_table.choice(kind, torch.device("cpu")) == cards["default"][kind]


@pytest.mark.parametrize(
    ("rows", "launch"),
    [(1, (1, 8, 4)), (2, (16, 2, 2)), (16, (16, 2, 2)), (100, (16, 2, 2))],
)
def test_a_launch_has_the_fewest_rows_that_hold_all_of_x(
    rows: int, launch: tuple[int, int, int]
) -> None:
    assert Choice(100, {1: (8, 4), 16: (2, 2)}).launch(rows) == launch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparse_rows": -1}, "sparse_rows must be an integer from 0 on, got -1"),
        ({"sparse_rows": True}, "sparse_rows must be an integer from 0 on, got True"),
        ({"tilings": {}}, "tilings must name at least one number of rows"),
        ({"tilings": {"3": [8, 4]}}, "rows must be a power of two from 1 to 64, got 3"),
        ({"tilings": {"1": [8, 5]}}, "warps must be a power of two from 1 to 32, got 5"),
        ({"tilings": {"1": [0, 4]}}, "tiles must be a power of two from 1 to 64, got 0"),
        ({"tilings": {"1": 8}}, r"tilings must map rows to \[tiles, warps\], got 1: 8"),
        ({"more": 1}, "must have sparse_rows and tilings"),
    ],
)
def test_a_wrong_entry_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"t.json: default: int8.*{message}"):
        gpu_table.parse(table(**change), "t.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "else"}, "t.json is not a tamp-gpu-table"),
        ({"version": 2}, "t.json has version 2, known is 1"),
        ({"cards": {}}, 't.json: cards must have an entry "default"'),
        ({"cards": {"default": {"float": ENTRY}}}, "t.json: default lacks int8, int4"),
        ({"cards": {"default": 1}}, "t.json: default must map kinds of weights, got 1"),
    ],
)
def test_what_is_no_table_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpu_table.parse({**table(), **change}, "t.json")


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="kind must be one of float, int8, int4, got 'fp4'"):
        gpu_table.choice("fp4", torch.device("cpu"))
