"""docs/evaluation.md: its commands run, those for tasks from the hub as far as a machine can."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lm_eval
import pytest

from tamp_modifier import cli
from tamp_modifier.demo.evaluation import MODEL_FOLDER
from tamp_modifier.report.card import write_card
from tests.data.files import asked, jsonl
from tests.report.test_report import make_report
from tests.test_readme import BLOCK, tamp_commands

PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"
BLOCKS = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
COMMANDS = [given for kind, text in BLOCKS if kind == "bash" for given in tamp_commands(text)]


@pytest.mark.slow
def test_the_commands_run_with_the_task_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MODEL_FOLDER, "pruned")
    write_card(Path("pruned"), make_report())
    jsonl(Path("questions.jsonl"), [asked(question="what is red ?", answer="cat")])
    (task,), (row,) = ([text for kind, text in BLOCKS if kind == of] for of in ("yaml", "json"))
    cache = f"  cache_dir: {tmp_path / 'cache'}\n"
    Path("tasks").mkdir()
    Path("tasks/opposites.yaml").write_text(task.replace("test_split", f"{cache}test_split", 1))
    jsonl(Path("opposites.jsonl"), [json.loads(row)])
    ran = [given for given in COMMANDS if "hellaswag" not in given]
    assert len(ran) == len(COMMANDS) - 1
    for given in ran:
        assert cli.main(given) == 0
    assert "100.0 %" in capsys.readouterr().out
    assert "## Answers to questions" in Path("pruned/README.md").read_text()


def test_the_tasks_that_the_page_names_are_tasks_of_the_harness() -> None:
    (given,) = [given for given in COMMANDS if "hellaswag" in given]
    args = cli.build_parser().parse_args(given)
    files = Path(lm_eval.__file__).parent.rglob("*.yaml")
    known = {line for file in files for line in file.read_text().splitlines() if "task: " in line}
    assert {f"task: {name}" for name in args.tasks} <= known
