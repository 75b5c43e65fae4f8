"""The estimate on paper counts what a model really has and does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tamp_modifier import cli
from tamp_modifier.allocation import get_allocation
from tamp_modifier.messages import duration
from tamp_modifier.scores import get_score
from tamp_modifier.selection import get_selection
from tamp_modifier.selection.by_modality import TextTokens
from tamp_modifier.workflows.estimate import Machine, estimate
from tamp_modifier.workflows.shapes import Shapes, measure, measure_config
from tests.architectures.models import build, eager


def shapes(**changed: object) -> Shapes:
    fields = {
        "parameters": 10_000,
        "outside": 3_000,
        "largest_outside": 2_000,
        "tower": 1_000,
        "layers": 2,
        "layer": 3_500,
        "linears": {(32, 48): 4},
        "experts": {},
        "routed": 1.0,
        "hidden": 32,
        "heads": 4,
        "head_width": 32,
    }
    return Shapes(**{**fields, **changed})  # type: ignore[arg-type]


def test_operations_are_those_that_torch_counts() -> None:
    model, batches, _ = build("llama_text")
    batch = batches[0]
    counter = FlopCounterMode(display=False)
    with eager(model), counter:
        model.model(**batch)
    # torch counts rotary embeddings too, a product of positions and frequencies.
    extra = counter.get_flop_counts()["Global"]
    counted = sum(extra.values()) - 2 * batch["input_ids"].shape[1] * 4
    found = estimate(
        measure(model), 1, batch["input_ids"].shape[1], passes=1, selection=TextTokens()
    )
    assert found.operations == counted


@pytest.mark.parametrize("name", ["llava_llama", "qwen3_vl_moe", "qwen2_5_omni"])
def test_shapes_are_those_of_the_model(name: str) -> None:
    model, _, expected = build(name)
    found = measure(model)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.layers == 2
    assert found.outside + found.layers * found.layer == found.parameters
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    known = sum(linears[n].weight.numel() for n in expected.targets if n in linears)
    if name == "qwen3_vl_moe":
        assert found.routed == 0.5
        fused = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
        assert found.experts == {(32, 16): 16, (16, 32): 8}
        assert found.targets == known + fused
    else:
        assert found.targets == known and not found.experts


def test_a_config_is_enough() -> None:
    model, _, _ = build("qwen2_5_vl")
    found = measure_config(model.config)
    assert found.bytes == 2
    assert found == Shapes(**{**measure(model).__dict__, "bytes": 2})


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 64), st.integers(1, 4096), st.integers(1, 3), st.sampled_from([1, 2, 4]))
def test_time_and_memory_grow_with_the_work(
    samples: int, tokens: int, passes: int, processes: int
) -> None:
    model = shapes()
    base = estimate(model, samples, tokens, passes=passes)
    assert estimate(model, 2 * samples, tokens, passes=passes).operations == 2 * base.operations
    assert estimate(model, samples, 2 * tokens, passes=passes).device_peak >= base.device_peak
    shared = estimate(model, samples * processes, tokens, passes=passes, processes=processes)
    assert shared.operations == base.operations
    assert shared.seconds <= base.seconds
    assert base.seconds <= base.seconds_disk


def test_experts_cost_as_much_as_they_are_used() -> None:
    model = shapes(experts={(32, 16): 64}, routed=0.125)
    few = estimate(model, 1, 10, passes=1, selection=TextTokens()).operations
    every = estimate(model, 1, 10, passes=1, selection=TextTokens(), all_experts=True).operations
    assert every - few == 2 * 10 * 0.875 * 64 * 32 * 16


def test_a_score_that_looks_at_no_token_is_not_charged_for_the_selection() -> None:
    model = shapes()
    text = estimate(model, 4, 100, selection=TextTokens(), score=get_score("magnitude"))
    amia = estimate(model, 4, 100, selection=get_selection("amia"), score=get_score("magnitude"))
    wanda = estimate(model, 4, 100)
    assert amia == text and amia.statistics == 0
    # Every token is compared with every other in the outputs of the four Linears.
    assert wanda.operations - text.operations == 4 * 2 * 100**2 * 4 * 48
    assert wanda.activations - text.activations == 3 * 4 * 100**2


def test_a_solver_is_charged_for_its_hessians() -> None:
    wanda = estimate(shapes(), 4, 100)
    solver = estimate(shapes(), 4, 100, score=get_score("sparsegpt"))
    collecting, solving = 4 * 2 * 32**2 * 400, 4 * (48 * 32**2 + 32**3 / 3)
    assert solver.operations - wanda.operations == pytest.approx(collecting + solving)
    assert (wanda.statistics, solver.statistics) == (2 * 8 * 32, 2 * 4 * 32**2)
    assert solver.pruning - wanda.pruning == 3 * 4 * 32**2


def test_diversity_over_positive_pairs_is_charged_for_comparing_them() -> None:
    das, official = (
        estimate(shapes(), 4, 100, allocation=get_allocation("das", positive_only=positive))
        for positive in (False, True)
    )
    assert das == estimate(shapes(), 4, 100)
    assert official.operations - das.operations == 4 * 2 * 100**2 * 4 * 48


def test_a_rule_of_the_users_own_costs_what_it_says() -> None:
    class Dear(TextTokens):
        def operations(self, tokens: float, out_features: int) -> float:
            return 1e9

        def memory(self, tokens: int) -> int:
            return 10**9

    cheap = estimate(shapes(), 4, 100, selection=TextTokens())
    dear = estimate(shapes(), 4, 100, selection=Dear())
    assert dear.operations - cheap.operations == 4 * 4 * 1e9
    assert dear.activations - cheap.activations == 10**9


@pytest.mark.parametrize("name", ["samples", "tokens", "batch_size", "passes", "processes"])
def test_numbers_out_of_range_are_named(name: str) -> None:
    numbers = {"samples": 1, "tokens": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        estimate(shapes(), **numbers)
    with pytest.raises(ValueError, match="flops must be finite and > 0, got 0"):
        Machine(flops=0)


def test_durations_are_readable() -> None:
    assert [duration(s) for s in (3.2, 600, 9000)] == ["3 s", "10 min", "2.5 h"]


def test_the_command_prints_the_estimate(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model, _, _ = build("llava_llama")
    model.config.save_pretrained(tmp_path)
    assert cli.main(["estimate", str(tmp_path), "--samples", "3", "--tokens", "24", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == estimate(measure_config(model.config), 3, 24).to_dict()
    assert cli.main(["estimate", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "not measured" in shown and " 0.0 GB" not in shown
    assert " kB " in shown or " MB " in shown
    assert cli.main(["estimate", str(tmp_path), "--tflops", "0"]) == 1
    assert "flops must be finite" in capsys.readouterr().err
    sized = ["estimate", str(tmp_path), "--samples", "3", "--tokens", "24", "--json"]
    assert cli.main([*sized, "--score", "magnitude"]) == 0
    assert json.loads(capsys.readouterr().out)["operations"] < found["operations"]
    assert cli.main(["estimate", str(tmp_path), "--score", "best"]) == 1
    assert "score must be one of" in capsys.readouterr().err
    absent = str(tmp_path / "absent")
    assert cli.main(["estimate", absent]) == 1
    assert capsys.readouterr().err == f"tamp: error: {absent}: no such folder\n"
