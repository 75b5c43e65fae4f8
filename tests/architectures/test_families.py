"""Every family is pruned, and comes back from its checkpoint with the same logits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tamp_modifier import TAMPModifier
from tamp_modifier.report import PruningReport
from tests.architectures.families import FAMILIES, WHOLE
from tests.architectures.models import ARCHITECTURES
from tests.architectures.untraceable import UNTRACEABLE
from tests.running import prune
from tests.upstream.test_experts import MODELS as PER_EXPERT
from tests.upstream.test_grouped_experts import aria, step3

MODELS = {**ARCHITECTURES, **FAMILIES}
del MODELS["video_llama2_style"]  # code of its own, which transformers does not load
PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()


def test_the_page_names_what_is_tested() -> None:
    named = re.findall(r"^\|.*\| tested \| ([^|]+) \|$", PAGE, re.M)
    keys = {key for row in named for key in re.findall(r"`(\w+)`", row)}
    experts = {f"experts_{make.__name__}" for make in (*PER_EXPERT, aria, step3)}
    assert keys == {*MODELS, *experts, "mllama"}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_it_is_pruned_and_comes_back_with_the_same_logits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = MODELS[name]()
    tiny.model.eval().float().save_pretrained(tmp_path / "dense")
    kind = type(tiny.model)
    model = kind.from_pretrained(tmp_path / "dense", dtype=torch.float32).eval()
    report = tmp_path / "report.json"
    folder = tmp_path / "pruned"
    batches = [inputs for inputs, _ in tiny.samples]
    # Strict, so that a family that could be cut into its layers does not run as a whole unseen.
    pipeline = {} if name in WHOLE else {"pipeline": "sequential"}
    recipe = TAMPModifier(sparsity=0.5, report_path=str(report))
    prune(model, batches, recipe, tmp_path, output_dir=str(folder), **pipeline)

    found = PruningReport.load(report)
    types = torch.cat([types.flatten() for _, types in tiny.samples])
    assert sum(found.tokens.values()) == len(types)
    assert found.tokens.get("image", 0) == int((types == 1).sum())
    assert found.tokens.get("audio", 0) == int((types == 3).sum())
    assert found.reached_sparsity == pytest.approx(0.5, abs=0.02)
    if name not in UNTRACEABLE:  # whose Linears are of many kinds
        layers = model.get_submodule(tiny.layers)
        linears = tiny.linears if isinstance(tiny.linears, list) else [tiny.linears] * len(layers)
        expected = {f"{tiny.layers}.{i}.{one}" for i, names in enumerate(linears) for one in names}
        assert set(found.linears) == expected

    again = kind.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for batch in batches:
            ours, read = model(**batch).logits, again(**batch).logits
            torch.testing.assert_close(read, ours, atol=1e-4, rtol=1e-4)
