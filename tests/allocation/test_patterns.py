"""What mask_structure asks for: patterns per Linear that share one budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamp_modifier import TAMPModifier
from tamp_modifier.allocation import ALLOCATIONS
from tamp_modifier.allocation.patterns import Structure
from tamp_modifier.masks import has_structure
from tamp_modifier.report import PruningReport
from tamp_modifier.report.table import pattern_counts
from tests.architectures.models import build
from tests.running import linear_weights, prune, sparsity

SHAPES = {
    f"layers.{layer}.{name}": shape
    for layer in range(4)
    for name, shape in {"q": (32, 32), "k": (16, 32), "up": (48, 32), "down": (32, 48)}.items()
}
NUMEL = {name: rows * columns for name, (rows, columns) in SHAPES.items()}
TOTAL = sum(NUMEL.values())


def chosen(text: str, wanted: float, importance: list[float]) -> tuple[dict[str, float], dict]:
    structure = Structure.parse(text, wanted)
    rule = ALLOCATIONS["das_numel"]
    cap = structure.cap(rule.default_cap(wanted))
    given = rule(dict(zip(SHAPES, importance, strict=True)), NUMEL, wanted, cap)
    return structure.choose(given, SHAPES, cap)


IMPORTANCE = st.lists(st.floats(0.01, 5.0), min_size=len(SHAPES), max_size=len(SHAPES))


@settings(max_examples=60, deadline=None)
@given(wanted=st.floats(0.02, 0.5), importance=IMPORTANCE)
def test_mixed_linears_are_2_of_4_or_dense_and_meet_the_budget(
    wanted: float, importance: list[float]
) -> None:
    sparsities, patterns = chosen("2:4", wanted, importance)
    assert {(sparsities[name], patterns[name]) for name in SHAPES} <= {(0.5, "2:4"), (0.0, "dense")}
    reached = sum(NUMEL[name] * value for name, value in sparsities.items())
    assert abs(reached - wanted * TOTAL) <= 16 * 32 / 4 + 1e-6  # half of k's step


@settings(max_examples=60, deadline=None)
@given(m=st.sampled_from([2, 4, 8, 16]), share=st.floats(0.05, 1.0), importance=IMPORTANCE)
def test_free_patterns_meet_the_budget_within_half_of_the_smallest_step(
    m: int, share: float, importance: list[float]
) -> None:
    wanted = share * (m - 1) / m
    sparsities, patterns = chosen(f"n:{m}", wanted, importance)
    for name, value in sparsities.items():
        n = round(value * m)
        assert 0 <= n < m and value == n / m
        assert patterns[name] == (f"{n}:{m}" if n else "dense")
    reached = sum(NUMEL[name] * value for name, value in sparsities.items())
    assert abs(reached - wanted * TOTAL) <= 16 * 32 / m / 2 + 1e-6


def test_less_important_linears_lose_more() -> None:
    importance = [float(1 + i) for i in range(len(SHAPES))]
    for text in ("n:8", "2:4"):
        sparsities, _ = chosen(text, 0.4, importance)
        for kind in ("q", "k", "up", "down"):
            values = [value for name, value in sparsities.items() if name.endswith(f".{kind}")]
            assert values == sorted(values, reverse=True)


def test_the_cap_of_the_user_is_kept_and_the_default_is_rounded_up() -> None:
    structure = Structure.parse("n:4", 0.5)
    assert structure.cap(0.6) == 0.6
    given = {"a": 0.6, "b": 0.4}
    assert structure.choose(given, {"a": (4, 8), "b": (4, 8)}, 0.6)[0] == {"a": 0.5, "b": 0.5}
    given = {"a": 0.6, "b": 0.6, "c": 0.3}
    shapes = dict.fromkeys(given, (4, 8))
    free = Structure.parse("n:4", 0.5).choose(given, shapes, 0.6)[0]
    assert sorted(free.values()) == [0.25, 0.5, 0.75]
    capped = Structure.parse("n:4", 0.5, max_sparsity=0.7).choose(given, shapes, 0.7)[0]
    assert max(capped.values()) == 0.5


@pytest.mark.parametrize("text", ["0:0", "2:4", "1:4"])
def test_the_same_pattern_everywhere_stays_as_it_was(text: str) -> None:
    n, _, m = text.partition(":")
    wanted = int(n) / int(m) if m != "0" else 0.3
    structure = Structure.parse(text, wanted)
    assert structure.is_fixed == (m != "0")
    values, patterns = structure.choose(dict.fromkeys(SHAPES, wanted), SHAPES, 1.0)
    assert set(patterns.values()) == {text}
    assert sum(NUMEL[k] * v for k, v in values.items()) == pytest.approx(wanted * TOTAL, abs=64)


def test_given_sparsities_must_be_patterns() -> None:
    mixed = Structure.parse("2:4", 0.4)
    assert mixed.check_given({"a": 0.5, "b": 0.0}) == (
        {"a": 0.5, "b": 0.0},
        {"a": "2:4", "b": "dense"},
    )
    with pytest.raises(ValueError, match="gives 'b' the sparsity 0.4.*must be 0 or 0.5, for b"):
        mixed.check_given({"a": 0.5, "b": 0.4})
    with pytest.raises(ValueError, match="gives 'a' the sparsity 0.3.*a multiple of 1 / 8"):
        Structure.parse("n:8", 0.4).check_given({"a": 0.3, "b": 0.25})


# -- through oneshot


def run(folder: Path, **fields: Any) -> tuple[dict[str, torch.Tensor], PruningReport]:
    model, batches, expected = build("llava_llama")
    modifier = TAMPModifier(report_path=str(folder / "report.json"), **fields)
    prune(model, batches, modifier, folder)
    report = PruningReport.load(folder / "report.json")
    return linear_weights(model, expected.targets), report


def smallest(weights: dict[str, torch.Tensor]) -> int:
    return min(weight.numel() for weight in weights.values())


@pytest.mark.parametrize("score", ["wanda", "sparsegpt"])
def test_oneshot_leaves_some_linears_dense(tmp_path: Path, score: str) -> None:
    weights, report = run(tmp_path, mask_structure="2:4", sparsity=0.4, score=score)
    total = sum(weight.numel() for weight in weights.values())
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    assert abs(zeros - 0.4 * total) <= smallest(weights) / 4
    assert report.reached_sparsity == pytest.approx(zeros / total)
    for name, linear in report.linears.items():
        assert linear.importance is not None
        assert has_structure(weights[name], "2:4") == (linear.pattern == "2:4")
        assert sparsity(weights[name]) == {"2:4": 0.5, "dense": 0.0}[linear.pattern]
    assert {linear.pattern for linear in report.linears.values()} == {"2:4", "dense"}


@pytest.mark.parametrize("allocation", ["das", "das_numel", "uniform", "owl", "atp"])
def test_oneshot_gives_every_linear_its_own_n(tmp_path: Path, allocation: str) -> None:
    fields = {"mask_structure": "n:8", "sparsity": 0.45, "allocation": allocation}
    weights, report = run(tmp_path, **fields)
    total = sum(weight.numel() for weight in weights.values())
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    assert abs(zeros - 0.45 * total) <= smallest(weights) / 16
    assert report.mask_structure == "n:8" and report.is_mixed
    for name, linear in report.linears.items():
        n = 0 if linear.pattern == "dense" else int(linear.pattern.removesuffix(":8"))
        assert bool(((weights[name] == 0).view(-1, 8).sum(1) == n).all())


def test_oneshot_takes_patterns_from_the_user(tmp_path: Path) -> None:
    _, _, expected = build("llava_llama")
    given = {name: 0.0 if "mlp" in name else 0.5 for name in expected.targets}
    weights, report = run(tmp_path, mask_structure="2:4", allocation=given)
    assert {name: sparsity(weight) for name, weight in weights.items()} == given
    assert pattern_counts(report.linears.values()) == "6 dense, 8 2:4"
    model, batches, _ = build("llava_llama")
    bad = TAMPModifier(mask_structure="2:4", allocation=dict.fromkeys(given, 0.3))
    with pytest.raises(ValueError, match="must be 0 or 0.5"):
        prune(model, batches, bad, tmp_path)
