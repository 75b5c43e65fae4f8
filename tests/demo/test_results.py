"""The page on benchmarks shows what the demo printed, and the demo shows all that it found."""

from __future__ import annotations

import json
import re
from pathlib import Path

from devtools import demo_page
from tamp_modifier.demo.evaluation import Scores
from tamp_modifier.demo.methods import METHODS, SETTINGS, steps
from tamp_modifier.demo.results import RECOVERED, SAVED, SMALL, SPREAD, table
from tamp_modifier.demo.run import FORMAT_VERSION, Run

ROOT = Path(__file__).parents[2]
DATA = json.loads((ROOT / "docs" / "results" / "demo.json").read_text())


def recorded() -> list[Run]:
    """The runs of the committed result."""
    runs = []
    for entry in DATA["runs"]:
        fields = {name: value for name, value in entry.items() if name != "label"}
        names = ("tasks", "nll", "samples_per_task", "seconds")
        scores = Scores(**{name: entry["scores"][name] for name in names})
        runs.append(Run(**{**fields, "scores": scores}))
    return runs


def test_the_page_shows_the_committed_result() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    section = re.split(r"^## ", page, flags=re.M)[1]
    assert re.findall(r"^\|.*\|$", section, re.M) == demo_page.rows(DATA)
    for number in (DATA["calibration_samples"], DATA["questions_per_task"]):
        assert f"{number} " in section


def test_the_committed_result_is_of_all_steps() -> None:
    assert DATA["format_version"] == FORMAT_VERSION
    runs = recorded()
    assert [(run.method, run.label) for run in runs[1:]] == [
        (step.method, step.setting) for step in steps()
    ]
    assert [run.label for run in runs] == [entry["label"] for entry in DATA["runs"]]


def test_the_table_has_a_row_for_each_run() -> None:
    runs = recorded()
    assert table(runs, 30).row_count == len(runs) == len(METHODS) * len(SETTINGS) + 3


def test_methods_of_one_setting_do_not_reach_into_the_next() -> None:
    assert SPREAD * len(METHODS) < 1


def test_what_comes_next_names_folders_that_are_written() -> None:
    assert {step.folder for step in steps() if step.folder} == {SAVED, SMALL, RECOVERED}
