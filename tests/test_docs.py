"""What docs/extending.md and docs/data.md show: it runs, and does what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tamp_modifier import TAMPModifier
from tamp_modifier.data import read_conversations
from tamp_modifier.data.conversations import READERS
from tamp_modifier.demo.evaluation import MODEL_FOLDER, load_processor
from tamp_modifier.report import PruningReport
from tamp_modifier.selection import SELECTIONS, get_selection
from tamp_modifier.workflows.models import load_config, load_model
from tests.architectures.models import build
from tests.data.files import jsonl, picture
from tests.running import prune

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
DATA_PAGE = PAGE.with_name("data.md")
FORMATS = dict(re.findall(r"^\| ([^|`]+) \| `([{\[].+[}\]])` \|$", DATA_PAGE.read_text(), re.M))


@pytest.fixture
def snippet(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    rules = dict(SELECTIONS)
    for place in ("tamp_modifier.selection", "tamp_modifier.selection.registry"):
        monkeypatch.setattr(f"{place}.SELECTIONS", rules)
    names: dict[str, Any] = {}
    exec(code, names)
    assert "most_attended" in rules


@pytest.mark.usefixtures("snippet")
def test_the_rule_of_the_page_prunes(tmp_path: Path) -> None:
    attention = torch.tensor([0.1, 0.5, 0.0, 0.4])
    rule: Any = get_selection("most_attended", share=0.5)
    assert rule.select(torch.randn(4, 8), torch.zeros(4), attention).tolist() == [1, 3]
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got 2"):
        get_selection("most_attended", share=2)
    model, batches, expected = build("llava_llama")
    recipe = TAMPModifier(
        selection="most_attended",
        selection_options={"share": 0.25},
        report_path=str(tmp_path / "report.json"),
    )
    prune(model, batches, recipe, tmp_path / "model")
    report = PruningReport.load(tmp_path / "report.json")
    lengths = [types.shape[1] for types in expected.token_types]
    for linear in report.linears.values():
        assert [len(picked) for picked in linear.selected] == [round(n / 4) for n in lengths]


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

    (code,) = re.findall(r"```python\n(.*?)```", DATA_PAGE.read_text(), re.S)
    picture(tmp_path / "a.png")
    path = tmp_path / "report.json"
    rows = [{"image": str(tmp_path / "a.png"), "question": "what ?", "answer": "cat"}] * 2
    model = load_model(str(MODEL_FOLDER), load_config(str(MODEL_FOLDER)))
    recipe = TAMPModifier(report_path=str(path))
    names = {"rows": rows, "processor": load_processor(), "model": model, "oneshot": oneshot}
    exec(code, {**names, "recipe": recipe})
    assert PruningReport.load(path).tokens["image"] == 2 * 144
