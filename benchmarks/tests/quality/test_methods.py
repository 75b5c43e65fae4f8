"""Methods are what their names say, and those of the benchmark alone do what their papers tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.quality import atp, ecoflap, explain
from benchmarks.quality.cells import parse_setting
from benchmarks.quality.job import Job
from benchmarks.quality.methods import METHODS, applies
from benchmarks.quality.models import MODELS, BoxModel
from tamp_modifier import TAMPModifier


def test_every_method_has_a_recipe_at_every_setting(tmp_path: Path) -> None:
    for name, kind in MODELS.items():
        model = kind(tmp_path)
        assert set(model.quick) <= set(model.settings)
        for setting in model.settings:
            sparsity, structure = parse_setting(setting)
            job = Job(model, sparsity, structure, [], None)
            for method in METHODS.values():
                if applies(method, setting):
                    recipe = method.recipe(job)
                    assert recipe["sparsity"] == sparsity, name
                    json.dumps(recipe, allow_nan=False)


def test_rivals_are_what_their_names_say() -> None:
    job = Job(BoxModel(Path()), 0.5, "0:0", [], None)
    tamp = METHODS["tamp"].make(job)
    assert isinstance(tamp, TAMPModifier)
    assert tamp.selection_options == tamp.allocation_options == {"positive_only": True}
    assert (tamp.allocation, tamp.selection, tamp.score) == ("das", "amia", "wanda")
    assert METHODS["amia"].make(job).allocation == "uniform"
    assert METHODS["das"].make(job).selection == "all"
    assert type(METHODS["wanda"].make(job)).__module__.startswith("llmcompressor.")
    assert type(METHODS["sparsegpt"].make(job)).__module__.startswith("llmcompressor.")


def test_ecoflap_finds_the_block_that_matters_and_leaves_the_weights_alone() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        initializer_range=0.2,
    )
    dense = LlamaForCausalLM(config).eval()
    # A decoder layer whose outputs are nearly shut off cannot change the loss much.
    with torch.no_grad():
        dense.model.layers[1].post_attention_layernorm.weight.mul_(1e-3)
        dense.model.layers[1].input_layernorm.weight.mul_(1e-3)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    batches = [{"input_ids": torch.randint(3, 50, (1, 24))} for _ in range(4)]
    model = BoxModel(Path())
    shares = ecoflap.allocate(model, dense, batches, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    linears = model.linears(dense)
    total = sum(m.weight.numel() for m in linears.values())
    reached = sum(shares[name] * m.weight.numel() for name, m in linears.items()) / total
    assert reached == pytest.approx(0.5) and max(shares.values()) <= 0.6 + 1e-9
    by_layer = [shares[f"model.layers.{number}.mlp.up_proj"] for number in range(3)]
    assert by_layer[1] == max(by_layer) > min(by_layer)
    assert ecoflap.allocate(model, dense, batches, 0.5) == shares


@pytest.mark.parametrize(
    ("losses", "steepest", "wanted"),
    [
        ([3, 2, 1, 2, 2, 0], 1.0, 2),  # goes no further than two worse slopes
        ([3, 2, 4, 1, 2, 3], 1.0, 3),  # but over one
        ([1, 2, 3, 0], 1.0, 0),
        ([3, 2, 1, 0], 0.0041, 2),  # and never above the steepest
        ([3, 2, 1, 0], 0.0, 0),
    ],
)
def test_the_slope_of_atp_is_searched_from_flat_to_steep(
    losses: list[int], steepest: float, wanted: int
) -> None:
    found = atp.search(lambda slope: losses[round(slope / atp.STEP)], steepest)
    assert found == pytest.approx(wanted * atp.STEP)


@pytest.mark.slow
def test_atp_keeps_the_slope_that_loses_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atp, "STEP", 0.05)
    model = BoxModel(Path())
    batches = model.batches(100, 4)
    dense = model.load()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    job = Job(model, 0.7, "0:0", batches, dense)
    shares = atp.allocate(job)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    by_depth = [
        {share for name, share in shares.items() if f".layers.{number}." in name}
        for number in range(6)
    ]
    assert all(len(values) == 1 for values in by_depth)
    line = [values.pop() for values in by_depth]
    steps = {round(after - before, 6) for before, after in zip(line, line[1:], strict=False)}
    assert len(steps) == 1 and steps <= {0.0, 0.05, 0.1}
    method = METHODS["atp"]
    assert method.recipe(job)["step"] == 0.002 and "beta" not in method.recipe(job)


@pytest.mark.slow
def test_figures_of_what_tamp_looks_at_are_drawn(tmp_path: Path) -> None:
    model = BoxModel(Path())
    batches = model.batches(0, 2)
    by_layer, tokens = explain.attention_shares(model.load(), batches)
    assert set(by_layer) == set(tokens) == {"text", "image"}
    assert sum(tokens.values()) == pytest.approx(1.0)
    for shares in zip(*by_layer.values(), strict=True):
        assert sum(shares) == pytest.approx(1.0, abs=1e-2)
    paths = explain.draw(model, tmp_path, samples=1)
    assert [path.name for path in paths] == [
        "quality-attention-box.png",
        "quality-diversity-box.png",
        "quality-selection-box.png",
    ]
    assert all(path.stat().st_size > 10_000 for path in paths)
