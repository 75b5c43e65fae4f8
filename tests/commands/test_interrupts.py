"""Ctrl-C and errors: one line, exit status 130 or 1, nothing half written, and bars that end."""

from __future__ import annotations

import io
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tamp_modifier import cli
from tamp_modifier.commands.output import phases, shard_progress
from tests.data.files import asked, jsonl
from tests.data.folders import write_model
from tests.report.test_report import make_report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, data, a report and a pruned checkpoint, to be given to commands."""
    write_model("llama", tmp_path / "model")
    jsonl(tmp_path / "data.jsonl", [asked(question="what is red ?", answer="cat")] * 8)
    make_report().save(tmp_path / "report.json")
    shutil.copytree(tmp_path / "model", tmp_path / "sparse")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            weight[:, ::2] = 0
    save_file(weights, tmp_path / "sparse" / "model.safetensors", {"format": "pt"})
    return tmp_path


COMMANDS = [
    ("prune model --data data.jsonl --output out", "data.encoding.Encoder.__call__", "nothing was"),
    ("prune model --data data.jsonl --dry-run", "workflows.plan.empty_model", "nothing was"),
    ("eval model --data data.jsonl", "workflows.evaluate.score_answers", "nothing was written"),
    ("generate model --output out.jsonl", "workflows.texts.load_to_run", "nothing was written"),
    ("estimate model", "workflows.shapes.measure_config", "nothing was written"),
    ("pack sparse out", "checkpoint.pack.pack", "nothing was written"),
    ("unpack packed out", "checkpoint.pack.unpack", "nothing was written"),
    ("inspect sparse", "checkpoint.inspection.find_pattern", "nothing was written"),
    ("report report.json --html out.html", "report.page.page", "the page was not written"),
    ("demo --output out", "demo.evaluation.score", "what is finished stays in the output"),
    ("env", "commands.env.processor", "nothing was written"),
    (
        "recover model --teacher model --data data.jsonl --output out",
        "workflows.recover.load_config",
        "what was trained, if anything, is kept beside OUT",
    ),
    (
        "recover model --teacher model --data data.jsonl --dry-run",
        "workflows.recover.load_config",
        "nothing was written",
    ),
]


@pytest.mark.parametrize(("command", "place", "left"), COMMANDS, ids=lambda text: text.split()[0])
def test_every_command_ends_with_one_line_and_status_130(
    command: str,
    place: str,
    left: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    if command.startswith("unpack"):
        assert cli.main(["pack", "sparse", "packed"]) == 0
    before = {path.name for path in folder.iterdir()}
    monkeypatch.setattr(f"tamp_modifier.{place}", lambda *_, **__: interrupt())
    capsys.readouterr()
    assert cli.main(command.split()) == 130
    error = capsys.readouterr().err
    assert error.startswith("tamp: interrupted; ") and left in error and error.count("\n") == 1
    after = {path.name for path in folder.iterdir()}
    assert after - before <= ({"out"} if command.startswith("demo") else set())


def interrupt() -> Any:
    """What Ctrl-C does."""
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("the interrupt came too late")


def test_kept_answers_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tamp_modifier.data import answers

    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.chdir(folder)
    rows = [asked(question=f"what is {number} plus 4 ?", answer="7") for number in range(3)]
    jsonl(folder / "data.jsonl", rows)
    with_answer, count = answers.Collator.__call__, []

    def collate(self: Any, samples: Any) -> Any:
        count.append(samples)
        return interrupt() if len(count) == 3 else with_answer(self, samples)

    monkeypatch.setattr(answers.Collator, "__call__", collate)
    command = ["prune", "model", "--data", "data.jsonl", "--output", "out", "--answers", "own"]
    assert cli.main([*command, "--answer-tokens", "2"]) == 130
    error = " ".join(capsys.readouterr().err.split())
    assert "the answers so far are kept in" in error and "run the same command to resume" in error
    (file,) = (folder / "cache").rglob("*.jsonl")
    assert len(file.read_text().splitlines()) == 2


# -- bars ------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def standard_error(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal in its place; in the test itself, as pytest's capture puts its own before it."""
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def plain(terminal: Terminal) -> str:
    """What was written, without what moves the cursor and colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


def test_bars_end_full_where_all_went_well(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = standard_error(monkeypatch)
    with phases() as step:
        step("loading the model", 0, 0)
        step("pruning", 0, 4)
        step("pruning", 4, 4)
        step("saving", 0, 0)
    text = plain(terminal)
    assert text.endswith("\n")
    for line in ("loading the model", "pruning", "saving"):
        last = [part for part in re.split(r"[\r\n]", text) if part.startswith(line)][-1]
        done, total = re.findall(r"(\d+)/(\d+)", last)[0]
        assert done == total, last


def test_bars_end_where_they_were_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = standard_error(monkeypatch)
    with pytest.raises(ValueError, match="broken"):
        with phases() as step:
            step("samples", 3, 3)
            step("pruning", 1, 4)
            raise ValueError("broken")
    assert terminal.getvalue().endswith("\n\x1b[?25h")  # a line of its own, and the cursor
    text = plain(terminal)
    assert re.search(r"pruning: stopped .* 1/4", text)


def test_a_bar_over_shards_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = standard_error(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        with shard_progress("packing") as step:
            step("a.weight", 0, 2)
            raise KeyboardInterrupt
    assert terminal.getvalue().endswith("\x1b[2K") and "\x1b[?25h" in terminal.getvalue()
