"""The snippet of docs/extending.md: it runs, and its rule prunes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tamp_modifier import TAMPModifier
from tamp_modifier.report import PruningReport
from tamp_modifier.selection import SELECTIONS, get_selection
from tests.architectures.models import build
from tests.running import prune

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture
def snippet(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    monkeypatch.setattr("tamp_modifier.selection.registry.SELECTIONS", rules := dict(SELECTIONS))
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
