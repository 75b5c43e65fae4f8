"""docs/getting-started.md, step by step: what it prunes with; the server is in tests/serving."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from tamp_modifier.demo.evaluation import evaluation_samples
from tamp_modifier.demo.pictures import draw
from tests.test_readme import BLOCK, run, tamp_commands

PAGE = Path(__file__).parents[1] / "docs" / "getting-started.md"
FIGURE = PAGE.parent / "figures" / "getting-started.png"


def blocks() -> list[tuple[str, str]]:
    """Language and text of each block of the page."""
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def question_block() -> str:
    """The last Python block, which needs a server on port 8000."""
    return [text for language, text in blocks() if language == "python"][-1]


@pytest.mark.slow
def test_the_steps_run_in_order_up_to_the_server(tmp_path: Path) -> None:
    for language, text in blocks():
        if language == "python" and text != question_block():
            run([sys.executable, "-W", "ignore", "-c", text], tmp_path)
        for arguments in tamp_commands(text) if language == "bash" else ():
            run([sys.executable, "-m", "tamp_modifier.cli", *arguments], tmp_path)
    assert (tmp_path / "pruned" / "model.safetensors").is_file()
    assert (tmp_path / "report.html").is_file()
    (shown,) = (json.loads(text) for language, text in blocks() if language == "json")
    assert shown == json.loads((tmp_path / "questions.jsonl").read_text().splitlines()[0])


def test_the_picture_and_the_answer_are_those_of_the_first_question() -> None:
    (sample,) = evaluation_samples("what", 1)
    assert sample.scene is not None
    drawn = draw(sample.scene).convert("RGB").resize((288, 288), Image.Resampling.NEAREST)
    assert ImageChops.difference(drawn, Image.open(FIGURE).convert("RGB")).getbbox() is None
    answer = re.search(r"^what is at .*$", PAGE.read_text(), re.MULTILINE)
    assert answer and answer[0] == f"{sample.question.question} {sample.question.answer}"
