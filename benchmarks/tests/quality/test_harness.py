"""The benchmark runs, goes on after a stop, refuses what does not fit, and prints its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import runner
from benchmarks.quality.__main__ import main
from benchmarks.quality.cells import (
    Cell,
    ResultError,
    TaskItems,
    load,
    load_folder,
    pack,
    path_of,
    save,
)
from benchmarks.quality.models import MODELS, BoxModel
from benchmarks.quality.runner import plan, run
from benchmarks.quality.statistics import Comparison, Interval
from benchmarks.quality.table import Block, blocks, markdown, summary
from benchmarks.tests.quality.examples import ITEMS, SmallBox, example


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    cells = plan([SmallBox(tmp_path)], ["magnitude", "best"], ["2:4"], [0])
    assert [method for _, method, *_ in cells] == ["dense", "magnitude", "best"]

    def stop(line: str) -> None:
        if line.startswith("2/3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cells, tmp_path, stop)
    done = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert len(done) == 2
    SmallBox.loads = 0
    said: list[str] = []
    run(cells, tmp_path, said.append)
    assert SmallBox.loads == 1 and said[0] == "3 cells, 2 are done"
    assert all(path.read_bytes() == content for path, content in done.items())

    found = load_folder(tmp_path)
    assert {cell.method: round(cell.reached, 2) for cell in found} == {
        "dense": 0.0,
        "magnitude": 0.5,
        "best": 0.5,
    }
    (best,) = [cell for cell in found if cell.method == "best"]
    assert best.recipe["score"] == "sparsegpt"  # the preset is written out
    assert "| magnitude | 1 | 50.00 % |" in markdown(blocks(found))

    # The same folder is refused with other samples, and nothing in it changes.
    class OtherBox(SmallBox):
        samples = 3

    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with pytest.raises(ResultError, match="other numbers of calibration samples"):
        run(plan([OtherBox(tmp_path)], ["best"], ["2:4"], [0]), tmp_path, said.append)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


@pytest.mark.slow
def test_another_number_of_samples_goes_into_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MODELS, "box", SmallBox)
    rest = ["--models", "box", "--methods", "wanda", "--settings", "50", "--seeds", "0"]
    for count in ("2", "1"):
        assert main([*rest, "--samples", count, "--output", str(tmp_path / count)]) == 0
        assert {cell.samples for cell in load_folder(tmp_path / count)} == {int(count)}
    assert main([*rest, "--output", str(tmp_path / "1")]) == 2
    assert "other numbers of calibration samples" in capsys.readouterr().err


def test_a_cell_is_never_overwritten(tmp_path: Path) -> None:
    path = save(tmp_path, example())
    before = path.read_bytes()
    with pytest.raises(ResultError, match="exists already"):
        save(tmp_path, example(reached=0.4))
    assert path.read_bytes() == before == path_of(tmp_path, example().key).read_bytes()
    assert load(path) == [example()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 0}, "results of version 0, this is version"),
        ({"format": "tamp-demo"}, "is not a results file"),
        ({"seed": None}, "seed: Input should be a valid integer"),
        ({"more": 1}, "more: Unexpected keyword argument"),
        ({"tasks": {"t": {"right": [1], "of": [1], "nll": [0]}}}, "tasks.t.group: .*required"),
        ({"tasks": {"t": {**ITEMS, "of": [1, 1]}}}, "tasks.t: .*different lengths"),
        ({"tasks": {"t": {**ITEMS, "of": [0]}}}, "tasks.t: .*no item, of below 1"),
        ({"tasks": {"t": {**ITEMS, "chance": 2.0}}}, r"tasks.t: .*chance must be in \[0, 1\]"),
        ({"tasks": {"t": {**ITEMS, "group": None}}}, "tasks.t.group: .*valid array"),
        ({"tasks": [1]}, "tasks: Input should be an object"),
        ({"seed": "0"}, "seed: Input should be a valid integer"),
        ({"setting": "abc"}, "setting must be a sparsity in percent"),
        ({"setting": "0"}, "setting of 'wanda' cannot be '0'"),
        ({"reached": "most"}, "reached: Input should be a valid number"),
        ({"reached": 5.0}, "reached: Input should be less than or equal to 1"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"samples": 0}, "samples: Input should be greater than or equal to 1"),
        ({"cpu_seconds": -1.0}, "cpu_seconds: Input should be greater"),
        ({"date": "yesterday"}, "date: String should match"),
        ({"model": "../../box"}, "model: String should match"),
        ({"method": "a|b"}, "method: String should match"),
        ({"format_version": "2"}, "results of version '2', this is version 2"),
        ({"format_version": 2.0}, "results of version 2.0, this is version 2"),
        ({"tasks": {}}, "tasks: Dictionary should have at least 1 item"),
        ({"tasks": {"t": {**ITEMS, "nll": [-5]}}}, "tasks.t.nll.0: Input should be greater"),
        ({"tasks": {"t": {**ITEMS, "nll": [10**400]}}}, "tasks.t.nll.0: "),
        ({"setting": "2:5"}, "setting must be a sparsity in percent"),
        ({"setting": "02:4"}, "setting must be a sparsity in percent"),
        ({"cells": []}, "must have cells and nothing else"),
    ],
)
def test_files_of_something_else_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = save(tmp_path, example())
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ResultError, match=message):
        load_folder(tmp_path)


@pytest.mark.parametrize("text", ['{"format": "tamp-qual', "[" * 200_000, ""])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, example())
    path.write_text(text)
    with pytest.raises(ResultError, match="cannot be read as results"):
        load_folder(tmp_path)


def test_a_file_that_holds_another_cell_is_not_taken_for_done(tmp_path: Path) -> None:
    model = SmallBox(tmp_path)
    cell = example(identity=model.identity, seed=1)
    path = path_of(tmp_path, ("box", "wanda", "50", 0))
    save(tmp_path, cell).rename(path)
    with pytest.raises(ResultError, match="must hold the cell box wanda 50 0 and no other"):
        run([(model, "wanda", "50", 0)], tmp_path, print)
    path.unlink()
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(ResultError, match="notes.json is not a results file"):
        run([(model, "wanda", "50", 0)], tmp_path, print)


def test_a_cell_of_another_process_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = example("dense", "0", cpu_seconds=1.0), example("dense", "0", cpu_seconds=2.0)

    def measure(*_: Any) -> Cell:
        save(tmp_path, other)
        return mine

    monkeypatch.setattr(runner, "measure", measure)
    said: list[str] = []
    run([(SmallBox(tmp_path), "dense", "0", 0)], tmp_path, said.append)
    assert load_folder(tmp_path) == [other]
    assert "came from another process meanwhile and stays" in said[-1]


def test_packing_never_loses_cells_that_were_packed_before(tmp_path: Path) -> None:
    cells = [example(), example("tamp"), example(seed=1)]
    path, other = pack(cells, tmp_path)
    assert [p.name for p in (path, other)] == ["box-0.json", "box-1.json"]
    before = path.read_bytes()
    with pytest.raises(ResultError, match="1 cells that are not packed now, such as box tamp 50 0"):
        pack([example()], tmp_path)
    with pytest.raises(ResultError, match="1 cells that are others now, such as box tamp 50 0"):
        pack([example(), example("tamp", reached=0.4), example(seed=1)], tmp_path)
    assert path.read_bytes() == before
    pack([*cells, example("owl")], tmp_path)
    assert len(load(path)) == 3 and len(load_folder(tmp_path)) == 4


def test_packing_writes_all_files_or_none(tmp_path: Path) -> None:
    pack([example(identity="old")], tmp_path)
    with pytest.raises(ResultError, match="others now"):
        pack([example(model="another"), example()], tmp_path)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "box-0.part").mkdir()
    with pytest.raises(IsADirectoryError):
        pack([example(model="another"), example()], tmp_path / "new")
    assert not list((tmp_path / "new").glob("*.json"))
    assert [path.name for path in tmp_path.glob("*.*")] == ["box-0.json"]
    with pytest.raises(ResultError, match="has packed results; cells go into another --output"):
        run([(BoxModel(Path()), "wanda", "50", 0)], tmp_path, print)


def test_tables_refuse_what_cannot_be_compared() -> None:
    other = {"count": TaskItems([1], [1], [5], [], 0.25)}
    with pytest.raises(ResultError, match="box wanda 50 0 has other items than the dense model"):
        blocks([example("dense", "0"), example(tasks=other)])
    guessed = {"count": TaskItems([1, 0], [1, 1], [5, 5], [], 0.5)}
    with pytest.raises(ResultError, match="no task better than guessing"):
        blocks([example("dense", "0", tasks=guessed)])


def test_the_summary_marks_what_is_clear() -> None:
    ahead, behind = Interval(0.1, 0.05, 0.2), Interval(-0.1, -0.2, -0.05)
    level = Interval(0.01, -0.1, 0.1)
    versus = {
        "wanda": Comparison(ahead, behind, (-0.1, -0.1), 0.01),
        # One seed is on the other side.
        "sparsegpt": Comparison(level, behind, (-0.3, 0.1), 0.01),
        "tamp": Comparison(behind, ahead, (0.1, 0.1), 0.01),
    }
    lines = summary([Block("box", "2:4", [], versus, {}, {})])
    assert lines[2] == (
        "| demo model (pictures and text), 2:4 |  | **+10.0** / **-0.100** (2) "
        "| +1.0 / -0.100 (2) | _-10.0_ / _+0.100_ (2) |  |"
    )
    assert summary([Block("box", "50", [], {}, {}, {})]) == []


def test_a_model_that_answers_nothing_names_its_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(self: SmallBox, model: Any) -> dict[str, TaskItems]:
        return {"count": TaskItems.from_values([0], [1], [float("nan")], [], 0.5)}

    monkeypatch.setattr(SmallBox, "evaluate", evaluate)
    with pytest.raises(ValueError, match="box dense 0 seed 0: the NLL of an answer is not finite"):
        run([(SmallBox(Path()), "dense", "0", 0)], tmp_path, print)
    assert not list(tmp_path.rglob("*.json"))


def test_packed_results_print_the_same_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        for method in ("wanda", "sparsegpt", "solver", "refit", "best"):
            for setting in ("50", "2:4"):
                save(tmp_path / "cells", example(method, setting, seed))
    save(tmp_path / "cells", example("dense", "0", reached=0.0))
    pack(load_folder(tmp_path / "cells"), tmp_path / "packed")
    assert {p.name for p in (tmp_path / "packed").iterdir()} == {"box-0.json", "box-1.json"}
    printed = []
    for folder in ("cells", "packed"):
        assert main(["--table", str(tmp_path / folder), "--figures", str(tmp_path / "f")]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "demo model (pictures and text), 50 %**" in printed[0] and "2:4**" in printed[0]
    assert "| the preset against |" in printed[0]
    assert "| NLL against | picture |" in printed[0]
    steps = printed[0].partition("| step | retained, difference |")[2].splitlines()[2:5]
    assert [line.split(" | ")[0] for line in steps] == [
        "| SparseGPT, our damping",
        "| SparseGPT, our damping, refit",
        '| TAMPModifier(preset="best")',
    ]
    assert {path.name for path in (tmp_path / "f").iterdir()} == {
        "quality.png",
        "quality-all.png",
        "quality-tasks-box.png",
        "retained-box.png",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "wandb"], "unknown method 'wandb'; known are magnitude, wanda"),
        (
            ["--models", "llama"],
            "unknown model 'llama'; known are box, smollm2, smollm2_elsewhere, smolav",
        ),
        (["--settings", "120"], "setting must be a sparsity in percent"),
        (["--settings", "4:2"], "setting must be a sparsity in percent"),
        (["--settings", "05"], "setting must be a sparsity in percent"),
        (["--settings", "2:4", "--methods", "owl"], "owl would be their scores alone"),
        (["--seeds", "0", "-1"], "seeds must be >= 0, got -1"),
        (["--models", "smollm2"], "--prepare"),
        (["--models", "box", "--samples", "0"], "--samples must be at least 1, got 0"),
        (["--table", "results", "--samples", "8"], "--table does not go with --samples"),
        (["--table", "nothing", "--methods", "tamp"], "--table does not go with --methods"),
        (["--table", "results", "--output", "o"], "--table does not go with --output"),
        (
            ["--explain", "e", "--seeds", "1", "--quick"],
            "--explain does not go with --seeds, --quick",
        ),
        (["--quick", "--settings", "50"], "--quick does not go with --settings"),
        (["--table", "results", "--figures", "results/file"], "nothing can be written here"),
        (["--table", "results/file"], "--table results/file is not a folder"),
        (["--settings", "2:5"], "setting must be a sparsity in percent"),
        (["--models", "smolav", "--seeds", "3"], "seeds of smolav must be of 0, 1, 2"),
        (["--table", "results", "--pack", "results"], "where the results are"),
        (["--table", "results", "--pack", "results/packed"], "where the results are"),
        (["--prepare", "--figures", "f"], "--prepare does not go with --figures"),
        (["--models", "box", "--output", "results/file"], "Not a directory"),
        (["--table", "nothing"], "--table nothing is not a folder"),
        (["--table", "empty"], "there are no results in empty"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("results"), example("dense", "0"))
    Path("results/file").touch()
    Path("empty").mkdir()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
