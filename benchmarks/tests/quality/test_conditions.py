"""Results depend on what decides them and outlive moves of modules."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.cells import Conditions, ResultError, check_same, load, load_folder, save
from benchmarks.quality.models import MODELS, BoxModel, QualityModel, SmolAV, SmolLM2
from benchmarks.quality.runner import conditions
from benchmarks.tests.quality.examples import example
from tamp_modifier.demo import evaluation

RESULTS = Path(__file__).parents[3] / "docs" / "results" / "quality"
WEIGHTS_ELSEWHERE = {
    "smollm2": "cea4b5a75cfbedd6",
    "smollm2_elsewhere": "2b9ad5d0f7fbc673",
    "smolav": "643632ccaa7c4f43",
}
"""Identities of committed cells whose weights are fetched and not in the repository."""


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_cells_are_what_would_be_measured_now(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = load(path)
    model = MODELS[cells[0].model](Path())
    if model.name in WEIGHTS_ELSEWHERE:
        monkeypatch.setattr(type(model), "identity", WEIGHTS_ELSEWHERE[model.name])
    for cell in cells:
        now = conditions(model, cell.method, cell.setting, cell.seed)
        assert now == Conditions(cell.key, cell.identity, cell.samples, cell.recipe)


def test_the_questions_are_those_of_the_committed_results() -> None:
    assert BoxModel(Path()).items == "30 questions a task, evaluation seed 2, 4db98accfdf2"
    assert SmolAV(Path()).items == "40 questions a task, evaluation seed 2, 49238d7ea9dc"


def test_conditions_do_not_depend_on_where_modules_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(model: QualityModel) -> list[Any]:
        return [model.items, *(conditions(model, name, "50", 0) for name in ("tamp", "best"))]

    monkeypatch.setattr(SmolAV, "weights", lambda self: BoxModel(Path()).weights())
    kinds = (BoxModel, SmolAV)
    before = [found(kind(Path())) for kind in kinds]
    moved = []
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("tamp_modifier", "benchmarks"):
            for thing in list(vars(module).values()):
                if isinstance(thing, type) and thing.__module__ == name:
                    monkeypatch.setattr(thing, "__module__", "elsewhere.entirely")
                    moved.append(thing.__name__)
    assert {"TAMPModifier", "Question", "Scene", "Medium"} <= set(moved)
    assert [found(kind(Path())) for kind in kinds] == before


def test_cells_of_other_sources_versions_and_machines_go_together(tmp_path: Path) -> None:
    mine = example()
    other = replace(
        example(seed=1),
        code="0123456789ab",
        machine="another processor",
        date="2027-01-01",
        versions={"torch": "3"},
    )
    paths = [save(tmp_path, cell) for cell in (mine, other)]
    for path, cell in zip(paths, (mine, other), strict=True):
        check_same(path, Conditions(cell.key, mine.identity, mine.samples, mine.recipe))
    assert load_folder(tmp_path) == [mine, other]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity": "xyz"}, r"other model weights or items \(abc, now xyz\)"),
        ({"samples": 3}, r"other numbers of calibration samples \(2, now 3\)"),
        ({"recipe": {}}, r"other recipe \(\{'modifier': 'TAMPModifier'\}, now \{\}\)"),
        ({"key": ("box", "wanda", "50", 1)}, "must hold the cell box wanda 50 1 and no other"),
    ],
)
def test_a_cell_measured_under_other_conditions_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    cell = example()
    wanted = Conditions(cell.key, cell.identity, cell.samples, cell.recipe)
    path = save(tmp_path, cell)
    check_same(path, wanted)
    with pytest.raises(ResultError, match=message):
        check_same(path, replace(wanted, **change))


def test_results_of_other_weights_do_not_mix(tmp_path: Path) -> None:
    save(tmp_path, example())
    save(tmp_path, example("tamp", identity="xyz"))
    with pytest.raises(ResultError, match="mixes results of box"):
        load_folder(tmp_path)


def test_the_identity_tells_questions_and_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = [BoxModel(Path()), BoxModel(Path())]
    assert boxes[0].identity == boxes[1].identity
    real = evaluation.evaluation_samples
    monkeypatch.setattr(evaluation, "evaluation_samples", lambda *given: real(*given)[::-1])
    assert BoxModel(Path()).identity != boxes[0].identity
    monkeypatch.setattr(SmolLM2, "weights", lambda self: boxes[0].weights())
    texts = tmp_path / "smollm2" / "texts"
    texts.mkdir(parents=True)
    (texts / "science.txt").write_text("a saying")
    before = SmolLM2(tmp_path).identity
    (texts / "science.txt").write_text("another saying")
    assert SmolLM2(tmp_path).identity != before


def test_seeds_of_other_recipes_do_not_mix(tmp_path: Path) -> None:
    save(tmp_path, example("best"))
    save(tmp_path, example("best", seed=1, recipe={"modifier": "TAMPModifier", "sparsity": 0.5}))
    with pytest.raises(ResultError, match="mixes recipes of box best 50: seeds 0 and 1"):
        load_folder(tmp_path)
