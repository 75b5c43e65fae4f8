"""docs/report-format.md: its fields, types, ranges and example are those of the code."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tamp_modifier.report import LinearReport, PruningReport, ReportError
from tamp_modifier.report.model import FORMAT, FORMAT_VERSION, Recovery

PAGE = (Path(__file__).parents[2] / "docs" / "report-format.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \|", re.M)
FILE = dict(ROW.findall(PAGE.split("## File")[1].split("## Linear")[0]))
RECOVERY = dict(ROW.findall(PAGE.split("## Recovery")[1].split("## Example")[0]))
LINEAR = dict(ROW.findall(PAGE.split("## Linear")[1].split("## Recovery")[0]))
(EXAMPLE,) = map(json.loads, re.findall(r"^```json\n(.*?)^```", PAGE, re.M | re.S))

POINT = {"seconds": 0.0, "tokens": 0, "samples": 0, "loss": 1.5}
TRAINING: dict[str, Any] = {
    "settings": {},
    "learning_rate": 1e-4,
    "trained": 3,
    "curve": [POINT],
    "best": 1.5,
    "ended": "",
}

# Type on the page -> values of it and values that are refused.
ACCEPTED: dict[str, list[Any]] = {
    "string": [""],
    "fraction": [0, 0.5, 1],
    "count": [0, 10**12],
    "integer or null": [-1, None],
    "number or null": [-2.5, None],
    "object": [{"anything": [None]}],
    "two counts": [[4, 0]],
    "{name: Linear}": [{}],
    "{layer: {modality: number}}": [{}, {"a": {}}, {"a": {"text": 1.5}}],
    "list of lists of pairs": [[], [[], [[3, 1]]]],
    "list of strings": [[], ["a", ""]],
    "list of lists of counts": [[], [[], [7]]],
    "Recovery or null": [None, TRAINING],
    "number from 0": [0, 2.5],
    "list of points": [[], [POINT]],
}
REFUSED: dict[str, list[Any]] = {
    "string": [None, 1],
    "fraction": [-0.1, 1.1, "0.5", None, True],
    "count": [-1, 0.5, "1", None, True],
    "number": ["1", None, True, []],
    "integer": [3, "2", None],
    "integer or null": [0.5, "0"],
    "number or null": ["1", True],
    "object": [[], None],
    "two counts": [[4], [4, 4, 4], [4, -1], 4],
    "{name: Linear}": [None, [], {"a": 1}, {"a": {}}],
    "{layer: {modality: number}}": [None, {"a": 1}, {"a": {"text": "1"}}],
    "list of strings": [None, "a", [1], [None]],
    "list of lists of pairs": [None, [None], [[[0]]], [[[4, 1]]], [[[0, 0]]], [[[0, 1, 2]]]],
    "list of lists of counts": [None, [None], [[-1]], [[0.5]]],
    "Recovery or null": [{}, [], TRAINING | {"more": 1}],
    "number from 0": [-1, None, "1"],
    "list of points": [None, [{}], [POINT | {"loss": None}], [POINT | {"more": 1.0}]],
}


def load(folder: Path, place: str, name: str, value: Any) -> PruningReport:
    """The example with one field changed."""
    data = json.loads(json.dumps(EXAMPLE))
    (linear,) = data["linears"].values()
    training = dict(TRAINING)
    if place == "recovery":
        data["recovery"] = training
    {"file": data, "linear": linear, "recovery": training}[place][name] = value
    path = folder / "report.json"
    path.write_text(json.dumps(data))
    return PruningReport.load(path)


def cases(values: dict[str, list[Any]]) -> list[tuple[str, str, Any]]:
    """(place, field, value) for every value of the type that the page gives to the field."""
    found = []
    for place, table in (("file", FILE), ("linear", LINEAR), ("recovery", RECOVERY)):
        for name, kind in table.items():
            inside = re.fullmatch(r"\{\w+: (\w+)\}", kind)
            if inside and inside[1] != "Linear":
                found += [(place, name, {"key": value}) for value in values.get(inside[1], [])]
            else:
                found += [(place, name, value) for value in values.get(kind, [])]
    return found


def test_the_page_has_every_field_in_order() -> None:
    assert list(FILE) == ["format", "format_version", *(f.name for f in fields(PruningReport))]
    assert list(LINEAR) == [f.name for f in fields(LinearReport)]
    assert list(RECOVERY) == [f.name for f in fields(Recovery)] == list(TRAINING)
    assert list(EXAMPLE) == list(FILE)
    assert all(list(linear) == list(LINEAR) for linear in EXAMPLE["linears"].values())


def test_the_example_is_read_and_written_as_it_is(tmp_path: Path) -> None:
    assert (EXAMPLE["format"], EXAMPLE["format_version"]) == (FORMAT, FORMAT_VERSION)
    report = load(tmp_path, "file", "format", FORMAT)
    report.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == EXAMPLE
    assert report.token_types == [[0] * 3 + [1] * 144 + [0] * 9]


@pytest.mark.parametrize(
    ("place", "name", "value"), [case for case in cases(ACCEPTED) if case[1] != "format"]
)
def test_values_of_the_type_are_read(tmp_path: Path, place: str, name: str, value: Any) -> None:
    load(tmp_path, place, name, value)


def test_every_type_of_the_page_is_tried() -> None:
    tried = {name for _, name, _ in cases(REFUSED)}
    assert tried == {*FILE, *LINEAR, *RECOVERY}


@pytest.mark.parametrize(("place", "name", "value"), cases(REFUSED))
def test_other_values_are_refused(tmp_path: Path, place: str, name: str, value: Any) -> None:
    with pytest.raises(ReportError):
        load(tmp_path, place, name, value)


def test_a_field_that_the_page_lacks_is_refused(tmp_path: Path) -> None:
    for place in ("file", "linear", "recovery"):
        with pytest.raises(ReportError, match="has unknown another"):
            load(tmp_path, place, "another", 1)
