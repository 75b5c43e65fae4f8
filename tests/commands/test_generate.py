"""``tamp generate``: whole files, and runs that go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tamp_modifier import cli
from tamp_modifier.data import read_conversations
from tamp_modifier.demo.evaluation import MODEL_FOLDER
from tamp_modifier.workflows import texts

pytestmark = pytest.mark.slow
GIVEN = ("--samples", "5", "--tokens", "16", "--batch-size", "2")


def generate(*more: str) -> int:
    return cli.main(["generate", str(MODEL_FOLDER), *GIVEN, "--output", "texts.jsonl", *more])


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_file_is_data_that_other_commands_read(inside: Path, capsys: Any) -> None:
    assert generate() == 0
    assert "wrote 5 texts of 16 tokens to texts.jsonl" in capsys.readouterr().out
    assert [path.name for path in inside.iterdir()] == ["texts.jsonl"]
    rows = read_conversations(Path("texts.jsonl"))
    assert len(rows) == 5 and all(row.turns for row in rows)


def test_a_run_that_was_stopped_goes_on_with_the_same_texts(
    inside: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generate() == 0
    whole = Path("texts.jsonl").read_text()
    Path("texts.jsonl").unlink()
    made = texts.generate_texts

    def stopped(*arguments: Any) -> Any:
        for batch in made(*arguments):
            yield batch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(texts, "generate_texts", stopped)
        assert generate() == 130
    assert "the texts so far are kept in texts.jsonl.partial" in capsys.readouterr().err
    with open("texts.jsonl.partial", "a") as file:
        file.write('{"text": "cut o')
    firsts: list[int] = []

    def watched(model: Any, processor: Any, generating: Any, first: int) -> Any:
        firsts.append(first)
        return made(model, processor, generating, first)

    monkeypatch.setattr(texts, "generate_texts", watched)
    assert generate() == 0
    assert firsts == [1] and Path("texts.jsonl").read_text() == whole
    assert [path.name for path in inside.iterdir()] == ["texts.jsonl"]


def test_what_is_in_the_way_is_refused_and_stays(inside: Path, capsys: Any) -> None:
    def error(*more: str) -> str:
        assert generate(*more) == 1
        return str(capsys.readouterr().err)

    partial = Path("texts.jsonl.partial")
    partial.write_text("mine\n")
    assert "texts.jsonl.partial is in the way and is not ours" in error()
    assert partial.read_text() == "mine\n"
    partial.write_text(
        json.dumps(
            {
                "model": str(MODEL_FOLDER),
                "dtype": "auto",
                "samples": 5,
                "tokens": 16,
                "temperature": 1.0,
                "batch_size": 2,
                "seed": 0,
            }
        )
        + "\n"
    )
    assert "was made with another seed; --restart forgets it" in error("--seed", "1")
    assert generate("--restart") == 0
    capsys.readouterr()
    assert "texts.jsonl exists" in error()
    assert cli.main(["generate", str(MODEL_FOLDER), "--output", "texts.txt"]) == 1
    assert "a file whose name ends in .jsonl" in capsys.readouterr().err
    assert generate("--temperature", "0") == 1
    assert "temperature must be above 0" in capsys.readouterr().err


def test_a_name_without_a_model_is_one_error(inside: Path, capsys: Any) -> None:
    assert cli.main(["generate", "absent", "--output", "texts.jsonl"]) == 1
    assert "absent: no such folder" in capsys.readouterr().err
    assert list(inside.iterdir()) == []
