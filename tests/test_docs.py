"""What docs/data.md shows: it runs, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tamp_modifier import TAMPModifier
from tamp_modifier.data import read_conversations
from tamp_modifier.data.conversations import READERS
from tamp_modifier.demo.evaluation import MODEL_FOLDER, load_processor
from tamp_modifier.report import PruningReport
from tamp_modifier.workflows.models import load_config, load_model
from tests.data.files import jsonl, picture

DATA_PAGE = Path(__file__).parents[1] / "docs" / "data.md"
FORMATS = dict(re.findall(r"^\| ([^|`]+) \| `([{\[].+[}\]])` \|$", DATA_PAGE.read_text(), re.M))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_the_page_is_read(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.png")
    (found,) = read_conversations(jsonl(tmp_path / "data.jsonl", [FORMATS[name]]))
    assert found.plain or found.turns[-1].text == "A cat."
    shown = [part.kind for part in found.media]
    has = {"OpenAI sound": ["audio"]}.get(name, ["image"])
    texts = ("prompt and completion", "Alpaca", "text")
    assert shown == ([] if name in texts else has)


def test_the_page_names_every_kind_of_file() -> None:
    table = DATA_PAGE.read_text().split("## Files")[1].split("Limits")[0]
    assert len(FORMATS) == 17 and all(f"`{ending}`" in table for ending in READERS)


@pytest.mark.slow
def test_the_code_of_the_data_page_prunes(tmp_path: Path) -> None:
    from llmcompressor import oneshot

    _, code, _ = re.findall(r"```python\n(.*?)```", DATA_PAGE.read_text(), re.S)
    picture(tmp_path / "a.png")
    path = tmp_path / "report.json"
    rows = [{"image": str(tmp_path / "a.png"), "question": "what ?", "answer": "cat"}] * 2
    model = load_model(str(MODEL_FOLDER), load_config(str(MODEL_FOLDER)))
    recipe = TAMPModifier(report_path=str(path))
    names = {"rows": rows, "processor": load_processor(), "model": model, "oneshot": oneshot}
    exec(code, {**names, "recipe": recipe})
    assert PruningReport.load(path).tokens["image"] == 2 * 144
