"""Windows of prose and code that no calibration sample comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.packages import SetUpError
from benchmarks.quality import texts
from benchmarks.quality.language import SmolLM2Elsewhere


def letters(text: str) -> dict[str, list[int]]:
    """A tokenizer that makes one token of each letter."""
    return {"input_ids": [ord(letter) for letter in text]}


def test_prose_is_taken_from_the_middle(tmp_path: Path) -> None:
    paragraph = "".join(chr(300 + number) for number in range(100))
    (tmp_path / "jargon.txt").write_text(f"a heading\n\n{paragraph}\n", "utf-8")
    rows = texts.prose(tmp_path, "jargon", letters, 3, 20)
    assert rows.shape == (3, 20)
    assert rows.flatten().tolist() == [320 + number for number in range(60)]
    with pytest.raises(SetUpError, match="jargon has 100 tokens, 120 are needed"):
        texts.prose(tmp_path, "jargon", letters, 6, 20)


def test_code_is_the_middle_of_each_module(tmp_path: Path) -> None:
    for name in ("ast", "csv"):
        (tmp_path / f"{name}.py").write_text("x" * 10 + name[0] * 256 + "y" * 10)
    rows = texts.code(tmp_path, letters, ("csv", "ast"))
    assert [chr(row[0]) for row in rows.tolist()] == ["c", "a"]
    assert all(len(set(row)) == 1 for row in rows.tolist())


def test_a_module_that_choices_were_made_on_is_not_asked() -> None:
    assert "textwrap" in texts.MODULES
    assert set(texts.MODULES) - set(SmolLM2Elsewhere.modules) == {"textwrap"}
    assert not {"argparse", "shutil"} & set(texts.MODULES)


def test_missing_texts_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.quality.smollm2.is_ready", lambda folder: True)
    with pytest.raises(FileNotFoundError, match="--prepare --models smollm2_elsewhere"):
        SmolLM2Elsewhere(tmp_path).check()
