"""`tamp_modifier.prune`: the call that ``tamp prune`` makes, from Python."""

from __future__ import annotations

import inspect
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import tamp_modifier
from tamp_modifier import TAMPModifier, cli
from tamp_modifier.data import Answering, read_conversations
from tamp_modifier.report import PruningReport
from tamp_modifier.workflows.models import load_config, load_model, load_processor
from tests.data.files import asked, jsonl
from tests.data.folders import write_model

ROWS = [asked(question=f"what is {number} plus 4 ?", answer="7") for number in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with its tokenizer."""
    return write_model("llama", tmp_path_factory.mktemp("model") / "llama")


def loaded(folder: Path) -> dict[str, Any]:
    name = str(folder)
    return {"model": load_model(name, load_config(name)), "processor": load_processor(name)}


def zeros(model: Any, report: PruningReport) -> float:
    weights = [model.get_submodule(name).weight for name in report.linears]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def test_the_command_makes_the_same_call(folder: Path, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "data.jsonl", ROWS)
    out = tmp_path / "cli"
    arguments = ["prune", str(folder), "--data", str(data), "--output", str(out)]
    assert cli.main([*arguments, "--sparsity", "0.4", "--selection", "all"]) == 0
    steps: list[str] = []
    done = tamp_modifier.prune(
        folder,
        data=data,
        sparsity=0.4,
        selection="all",
        output=tmp_path / "python",
        progress=lambda phase, done, total: steps.append(phase),
    )
    assert done.output == tmp_path / "python" and {"load", "prune", "save"} == set(done.seconds)
    assert list(dict.fromkeys(steps))[:2] == ["samples", "loading the model"]
    assert {"dense pass", "pruning"} <= set(steps)
    one, other = (place / "model.safetensors" for place in (out, tmp_path / "python"))
    assert one.read_bytes() == other.read_bytes()
    assert PruningReport.load(done.output / "tamp_report.json").linears == done.report.linears
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", "cli", "python"}


def test_a_loaded_model_is_pruned_in_place_and_nothing_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = loaded(folder)
    rows = read_conversations(ROWS)  # conversations, as well as rows
    done = tamp_modifier.prune(**given, data=rows, sparsity=0.6, mask_structure="n:8")
    assert done.model is given["model"] and done.processor is given["processor"]
    assert done.output is None and done.report.samples == 3
    assert zeros(done.model, done.report) == pytest.approx(0.6, abs=0.01)
    assert not list(tmp_path.iterdir())
    again = tamp_modifier.prune(folder, data=ROWS, sparsity=0.6, mask_structure="n:8")
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, done.model.state_dict()[name]), name


def test_a_loaded_model_is_saved_with_card_and_samples(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = tamp_modifier.prune(**loaded(folder), data=ROWS, output=out, selection="all")
    card = (out / "README.md").read_text()
    assert "# llama, pruned" in card and "3 samples with" in card and str(tmp_path) not in card
    stored = load_model(str(out), load_config(str(out)))
    assert zeros(stored, done.report) == pytest.approx(0.5, abs=0.01)


def test_a_modifier_or_a_list_of_them_is_a_recipe(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "mine.json"
    modifier = TAMPModifier(sparsity=0.25, selection="all", report_path=str(report))
    done = tamp_modifier.prune(folder, data=ROWS, recipe=modifier)
    assert done.report.reached_sparsity == pytest.approx(0.25, abs=0.02)
    assert PruningReport.load(report).linears == done.report.linears
    # With an output the report goes there.
    second = TAMPModifier(sparsity=0.25, selection="all", report_path=str(tmp_path / "no.json"))
    tamp_modifier.prune(folder, data=ROWS, recipe=[second], output=tmp_path / "out")
    assert "report_path: tamp_report.json" in (tmp_path / "out" / "recipe.yaml").read_text()
    assert not (tmp_path / "no.json").exists() and (tmp_path / "out" / "tamp_report.json").exists()


def test_columns_may_change_places(folder: Path, tmp_path: Path) -> None:
    done = tamp_modifier.prune(
        folder,
        data=ROWS,
        mask_structure="2:4",
        selection="all",
        permute_columns=True,
        output=tmp_path / "out",
    )
    assert done.report.reached_sparsity == pytest.approx(0.5)


def test_a_loaded_model_answers_itself(folder: Path) -> None:
    questions = [{"messages": row["messages"][:1]} for row in ROWS]
    done = tamp_modifier.prune(
        **loaded(folder), data=questions, answers=Answering(tokens=2), selection="all"
    )
    assert done.report.samples == 3


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"data": None}, ValueError, "data must be a file, a folder or rows of conv.*got None"),
        ({"data": []}, ValueError, "the data: there is no conversation in it"),
        ({"data": "nowhere.jsonl"}, FileNotFoundError, "no such file or folder"),
        ({"sparsity": 1.5}, ValueError, "sparsity must be between 0 and 1, got 1.5"),
        ({"sparsty": 0.5}, ValueError, "TAMPModifier has no field 'sparsty'"),
        ({"model": 3}, TypeError, "model must be a folder, .*, got int"),
        ({"model": torch.nn.Linear(1, 1)}, TypeError, "model must be a folder, .*, got Linear"),
        ({"recipe": [], "preset": "best"}, ValueError, "has fields of its own, leave out preset"),
        ({"recipe": []}, ValueError, "the recipe must have one TAMPModifier, it has 0"),
        ({"recipe": "nowhere.yaml"}, FileNotFoundError, "no such recipe"),
        ({"output": __file__}, ValueError, "exists and is not a folder"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    arguments: dict[str, Any], kind: type[Exception], message: str, folder: Path
) -> None:
    with pytest.raises(kind, match=message):
        tamp_modifier.prune(**{"model": folder, "data": ROWS, **arguments})


def test_a_loaded_model_needs_its_processor_and_has_its_dtype(folder: Path) -> None:
    given = loaded(folder)
    with pytest.raises(ValueError, match="a loaded model needs its processor"):
        tamp_modifier.prune(given["model"], data=ROWS)
    with pytest.raises(ValueError, match="dtype must be 'auto', got 'float16'"):
        tamp_modifier.prune(**given, data=ROWS, dtype="float16")


def test_an_interrupt_tells_what_is_kept_and_how_to_go_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def interrupt(after: str) -> Any:
        def step(phase: str, done: int, total: int) -> None:
            if phase == after and (done or not total):
                signal.raise_signal(signal.SIGINT)

        return step

    assert threading.current_thread() is threading.main_thread()
    for phase, kept in (
        ("samples", "nothing was written"),
        ("dense pass", "nothing was written"),
        ("pruning", f"are kept in {out}.partial: run the same command to resume"),
    ):
        with pytest.raises(KeyboardInterrupt, match=kept):
            tamp_modifier.prune(
                folder, data=ROWS, selection="all", output=out, progress=interrupt(phase)
            )
        assert kept != "nothing was written" or not list(tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"out.partial"}
    done = tamp_modifier.prune(folder, data=ROWS, selection="all", output=out)
    assert done.report.samples == 3 and {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_run_that_was_killed_before_any_progress_blocks_no_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def killed(phase: str, done: int, total: int) -> None:
        if phase == "dense pass":
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        tamp_modifier.prune(folder, data=ROWS, sparsity=0.5, output=out, progress=killed)
    assert [path.name for path in Path(f"{out}.partial").iterdir()] == ["run.json"]
    done = tamp_modifier.prune(folder, data=ROWS, sparsity=0.6, output=out)
    assert done.report.requested_sparsity == 0.6


def test_the_docstring_describes_every_argument() -> None:
    text = inspect.getdoc(tamp_modifier.prune) or ""
    described = text.partition("Args:")[2].partition("Returns:")[0]
    for name in inspect.signature(tamp_modifier.prune).parameters:
        assert f"{name}: " in described, name
