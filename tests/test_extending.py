"""docs/extending.md: the code that it shows runs, does what it says, and needs no other file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tamp_modifier import TAMPModifier, architectures
from tamp_modifier.allocation import Allocation, get_allocation
from tamp_modifier.masks import magnitude_mask
from tamp_modifier.report import PruningReport
from tamp_modifier.scores import Score, get_score
from tamp_modifier.selection import Selection, get_selection
from tests.architectures.models import build
from tests.running import prune

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
REGISTRIES = {"selection": "SELECTIONS", "allocation": "ALLOCATIONS", "score": "SCORES"}


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", section(title), re.M | re.S)


@pytest.fixture
def add_rule(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs the code of a section, with registries that are forgotten after the test."""

    def add(kind: str) -> None:
        folder = {"score": "scores"}.get(kind, kind)
        registry = REGISTRIES[kind]
        rules = dict(getattr(sys.modules[f"tamp_modifier.{folder}"], registry))
        for place in (f"tamp_modifier.{folder}", f"tamp_modifier.{folder}.registry"):
            monkeypatch.setattr(f"{place}.{registry}", rules)
        before = set(rules)
        article = "an" if kind == "allocation" else "a"
        (code,) = blocks(f"{article.title()} {kind}", "python")
        exec(code, {"__name__": __name__})
        assert len(set(rules) - before) == 1

    return add


def pruned(folder: Path, **fields: Any) -> tuple[PruningReport, list[int]]:
    """Prunes a tiny LLaVA; returns the report and the number of tokens of each sample."""
    model, batches, expected = build("llava_llama")
    recipe = TAMPModifier(report_path=str(folder / "report.json"), **fields)
    prune(model, batches, recipe, folder / "model")
    lengths = [types.shape[1] for types in expected.token_types]
    return PruningReport.load(folder / "report.json"), lengths


def test_the_selection_of_the_page_prunes(tmp_path: Path, add_rule: Callable[[str], None]) -> None:
    add_rule("selection")
    attention = torch.tensor([0.1, 0.5, 0.0, 0.4])
    rule: Any = get_selection("most_attended", share=0.5)
    assert rule.select(torch.randn(4, 8), torch.zeros(4), attention).tolist() == [1, 3]
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got 2"):
        get_selection("most_attended", share=2)
    report, lengths = pruned(tmp_path, selection="most_attended", selection_options={"share": 0.25})
    for linear in report.linears.values():
        assert [len(picked) for picked in linear.selected] == [round(n / 4) for n in lengths]


def test_the_allocation_of_the_page_prunes(tmp_path: Path, add_rule: Callable[[str], None]) -> None:
    add_rule("allocation")
    numel = {"small": 100, "large": 400}
    found = get_allocation("by_size", slope=0.05)({}, numel, 0.5, 1.0)
    assert found["large"] - found["small"] == pytest.approx(0.1)  # two doublings
    assert sum(numel[name] * found[name] for name in numel) == pytest.approx(250)
    with pytest.raises(ValueError, match="slope must be finite and >= 0, got -1"):
        get_allocation("by_size", slope=-1)
    report, _ = pruned(tmp_path, allocation="by_size", allocation_options={"slope": 0.05})
    by_size = {linear.numel: linear.allocated for linear in report.linears.values()}
    assert len(by_size) > 1
    assert list(dict(sorted(by_size.items())).values()) == sorted(by_size.values())
    assert all(linear.importance is None for linear in report.linears.values())


def test_the_score_of_the_page_prunes(tmp_path: Path, add_rule: Callable[[str], None]) -> None:
    add_rule("score")
    weight, inputs = torch.randn(8, 32), torch.randn(20, 32)
    results = {}
    for label, score in {
        "wanda": get_score("wanda"),
        "one": get_score("soft_wanda", power=1),
        "half": get_score("soft_wanda"),
        "zero": get_score("soft_wanda", power=0),
    }.items():
        statistics = score.statistics(32)
        statistics.update(inputs)
        results[label] = score.prune(weight.clone(), statistics, 0.5, "0:0")
    assert torch.equal(results["one"], results["wanda"])
    assert not torch.equal(results["half"], results["wanda"])
    assert torch.equal(results["zero"] != 0, magnitude_mask(weight, 0.5, "0:0"))
    report, _ = pruned(tmp_path, score="soft_wanda", score_options={"power": 0.8})
    assert report.reached_sparsity == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("title", "rule"),
    [("A selection", Selection), ("An allocation", Allocation), ("A score", Score)],
)
def test_the_page_names_what_a_rule_must_have(title: str, rule: type) -> None:
    needed = rule.__abstractmethods__ | {"name"}  # type: ignore[attr-defined]
    assert {name for name in needed if not re.search(rf"\b{name}\b", section(title))} == set()


def test_the_page_names_every_table_of_architectures() -> None:
    named = set(re.findall(r"`([A-Z_]{4,})`", section("An architecture").split("Users of")[0]))
    tables = {name for name in vars(architectures) if name.isupper()}
    assert named == tables - {"TOWERS"}  # made of the two tables of towers


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_kernel_of_the_page_multiplies(tmp_path: Path) -> None:
    """In a copy of the package: one new file, one new line, and it is built as setup.py builds."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "tamp_modifier", tmp_path / "tamp_modifier", ignore=ignored)
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    sources = tmp_path / "tamp_modifier" / "sparse" / "csrc"
    code, line = blocks("A kernel", "c")
    (sources / "example.c").write_text(code)
    header = sources / "tamp_sparse.h"
    first = "#define TAMP_PATHS(PATH) \\\n"
    assert header.read_text().count(first) == 1
    header.write_text(header.read_text().replace(first, first + line))
    commands = (
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        [sys.executable, "-c", MULTIPLY],
    )
    for command in commands:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["example", "equal"]


MULTIPLY = """
import torch
from tamp_modifier import sparse
from tamp_modifier.sparse import native

print(native.paths()[0])
native.use("example")
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    for shape in ((1, 1), (5, 40), (64, 300)):
        weight = (torch.randn(shape) * (torch.rand(shape) > 0.5)).to(dtype)
        for rows in (1, 5, 8):
            x, bias = torch.randn(rows, shape[1]).to(dtype), torch.randn(shape[0]).to(dtype)
            y = sparse.linear(x, sparse.pack(weight), bias)
            exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
            torch.testing.assert_close(y, exact.to(dtype))
print("equal")
"""
