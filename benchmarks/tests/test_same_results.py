"""The comparison of results: what it runs, what it calls the same, and what it refuses."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from llmcompressor import oneshot

from benchmarks.same_results.files import SameResultsError, conditions, read, write
from benchmarks.same_results.outcome import differences, outcome_of
from benchmarks.same_results.recipes import RECIPES
from tamp_modifier import TAMPModifier
from tamp_modifier.allocation import ALLOCATIONS
from tamp_modifier.demo.evaluation import calibration_dataloader, load_model
from tamp_modifier.pruning.presets import PRESETS
from tamp_modifier.scores import SCORES
from tamp_modifier.selection import SELECTIONS

ROOT = Path(__file__).parents[2]
DOWN = "model.language_model.layers.2.mlp.down_proj"


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.same_results", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "COLUMNS": "160"},
    )


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The printed table: recipe -> the other cells."""
    cells = [line.split("│")[1:-1] for line in done.stdout.splitlines() if line.startswith("│")]
    return {name.strip(): " ".join(cell.strip() for cell in more) for name, *more in cells}


@pytest.mark.slow
def test_a_run_is_the_same_as_itself_and_a_change_is_named(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    names = ("structure.2of4", "resumed.das")
    done = command("--output", path, "--only", *names)
    assert done.returncode == 0, done.stderr
    done = command("--against", path, "--only", names[0])
    assert done.returncode == 0, done.stderr
    assert rows(done) == {names[0]: "42 same"}

    data = json.loads(path.read_text())
    data["recipes"][names[0]]["linears"][DOWN]["mask"] = "0" * 64
    path.write_text(json.dumps(data))
    done = command("--against", path, "--only", *names)
    assert done.returncode == 1, done.stderr
    assert rows(done) == {names[0]: f"42 1 differ, first {DOWN}: mask", names[1]: "42 same"}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The demo model, pruned, and its report."""
    path = tmp_path_factory.mktemp("pruned") / "report.json"
    model = load_model()
    modifier = TAMPModifier(score="magnitude", allocation="uniform", report_path=str(path))
    oneshot(model=model, dataset=calibration_dataloader(1), recipe=modifier)
    return model, json.loads(path.read_text())


def test_a_flipped_bit_is_named(pruned: tuple[torch.nn.Module, dict[str, Any]]) -> None:
    model, report = pruned
    before = outcome_of(model, report)
    assert differences(before, outcome_of(model, report)) == []

    weight = model.get_parameter(f"{DOWN}.weight").data
    row, column = weight.nonzero()[0].tolist()
    weight.view(torch.int32)[row, column] ^= 1
    assert differences(before, outcome_of(model, report)) == [f"{DOWN}: tensors"]
    weight.view(torch.int32)[row, column] ^= 1

    norm = model.get_parameter("model.language_model.norm.weight").data
    norm.view(torch.int32)[0] ^= 1
    assert differences(before, outcome_of(model, report)) == ["run: rest of the model"]
    norm.view(torch.int32)[0] ^= 1
    assert differences(before, outcome_of(model, report)) == []


def test_what_the_report_says_is_compared(
    pruned: tuple[torch.nn.Module, dict[str, Any]],
) -> None:
    model, report = pruned
    before = outcome_of(model, report)
    changed = copy.deepcopy(report)
    changed["linears"][DOWN]["pattern"] = "2:4"
    changed["reached_sparsity"] = 0.25
    for left_out in ("timings", "versions", "settings"):
        changed[left_out] = {"other": 1}
    assert differences(before, outcome_of(model, changed)) == [
        f"{DOWN}: pattern",
        "run: reached_sparsity",
    ]
    del changed["linears"][DOWN]
    assert f"{DOWN}: pruned only before" in differences(before, outcome_of(model, changed))


def test_every_rule_preset_and_recipe_is_compared() -> None:
    fields = [recipe.source for recipe in RECIPES.values() if not isinstance(recipe.source, Path)]
    registries: dict[str, Iterable[str]] = {
        "selection": SELECTIONS,
        "allocation": ALLOCATIONS,
        "score": SCORES,
        "preset": PRESETS,
    }
    for field, names in registries.items():
        assert all(any(source.get(field) == name for source in fields) for name in names), field
    files = {recipe.source for recipe in RECIPES.values() if isinstance(recipe.source, Path)}
    assert files == set((ROOT / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize(
    ("name", "value"), [("processor", "another"), ("torch", "1.0"), ("llmcompressor", "0.1")]
)
def test_other_conditions_are_refused(tmp_path: Path, name: str, value: str) -> None:
    path = tmp_path / "before.json"
    write(path, {})
    assert read(path, []) == {}
    data = json.loads(path.read_text())
    data["conditions"][name] = value
    path.write_text(json.dumps(data))
    with pytest.raises(SameResultsError) as caught:
        read(path, [])
    assert f"{name} is {conditions()[name]!r} here and was {value!r}" in str(caught.value)


def test_files_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    with pytest.raises(SameResultsError, match="cannot be read"):
        read(path, [])
    path.write_text('{"format": "tamp-demo"}')
    with pytest.raises(SameResultsError, match="must be a tamp-same-results file of version 1"):
        read(path, [])
    write(path, {})
    with pytest.raises(SameResultsError, match="has no recipe targets; choose with --only"):
        read(path, ["targets"])
