"""The order of columns for N:4, and that a model with reordered columns is the same model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tamp_modifier import TAMPModifier
from tamp_modifier.calibration.activations import Activations
from tamp_modifier.calibration.targets import Target, find_decoder_layers, find_targets
from tamp_modifier.permutation import best_order, kept_metric
from tamp_modifier.pruning.columns import ColumnOrder, find_free_columns
from tamp_modifier.report import PruningReport
from tests.architectures.models import build
from tests.running import linear_weights, prune, sparsity


def slow_kept(metric: torch.Tensor, order: list[int], pruned: int) -> float:
    kept = 0.0
    for row in metric.tolist():
        for start in range(0, len(order), 4):
            kept += sum(sorted(row[column] for column in order[start : start + 4])[pruned:])
    return kept


@settings(max_examples=15, deadline=None)
@given(pruned=st.sampled_from([1, 2, 3]), rows=st.integers(1, 5), seed=st.integers(0, 9999))
def test_eight_columns_get_the_best_order_of_all(pruned: int, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    metric = torch.rand(rows, 8, generator=generator) * torch.rand(8, generator=generator)
    order = best_order(metric, pruned)
    best = max(
        slow_kept(metric, [*left, *(c for c in range(8) if c not in left)], pruned)
        for left in itertools.combinations(range(8), 4)
    )
    assert sorted(order.tolist()) == list(range(8))
    assert slow_kept(metric, order.tolist(), pruned) == pytest.approx(best, rel=1e-5)
    assert kept_metric(metric[:, order], pruned) == pytest.approx(best, rel=1e-5)


@settings(max_examples=10, deadline=None)
@given(groups=st.integers(1, 9), seed=st.integers(0, 9999))
def test_an_order_never_keeps_less_and_is_the_same_every_time(groups: int, seed: int) -> None:
    metric = torch.rand(6, 4 * groups, generator=torch.Generator().manual_seed(seed))
    order = best_order(metric, 2)
    assert sorted(order.tolist()) == list(range(4 * groups))
    assert kept_metric(metric[:, order], 2) >= kept_metric(metric, 2) * (1 - 1e-6)
    assert torch.equal(order, best_order(metric, 2))


def test_important_columns_that_lie_together_are_spread() -> None:
    metric = torch.rand(16, 32) * 0.1
    metric[:, :16] += 1.0  # in place, half of these would go
    order = best_order(metric, 2)
    assert (order.view(-1, 4) < 16).sum(1).tolist() == [2] * 8


def test_of_many_rows_all_kinds_are_looked_at() -> None:
    metric = torch.ones(8192, 8)
    metric[3::8, :4] = 100.0  # one row in eight tells which columns belong apart
    assert (best_order(metric, 2).view(-1, 4) < 4).sum(1).tolist() == [2, 2]


def test_what_does_not_fit_is_refused() -> None:
    for shape, pruned in (((2, 6), 2), ((2, 8), 0), ((2, 8), 4)):
        with pytest.raises(ValueError, match="N:4 with 0 < N < 4"):
            best_order(torch.ones(shape), pruned)


# -- models


def targets_of(model: nn.Module) -> list[Target]:
    return find_targets(model, find_decoder_layers(model), ["Linear"], [])[0]


def logits(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits


def show(columns: ColumnOrder) -> None:
    """Inputs with outlier features, for every Linear."""
    for target in columns.targets:
        inputs = torch.randn(5, target.module.in_features).exp()
        columns.collect(Activations(target, 0, inputs, inputs, torch.zeros(5, dtype=torch.long), 5))


@pytest.mark.parametrize(
    "name",
    ["llava_qwen2", "gemma3", "qwen3_vl_moe", "qwen3_next", "smolvlm", "video_llama2_style"],
)
@torch.no_grad()
def test_an_architecture_computes_what_it_did(name: str) -> None:
    model, batches, _ = build(name)
    targets = targets_of(model)
    for target in targets:  # biases that differ from row to row
        if target.module.bias is not None:
            target.module.bias.normal_()
    columns = ColumnOrder(model, find_free_columns(model, targets), 2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = [logits(model(**batch)) for batch in batches]
    show(columns)
    columns.apply(batches[0])
    for batch, before in zip(batches, outputs, strict=True):
        torch.testing.assert_close(logits(model(**batch)), before, rtol=1e-3, atol=1e-4)
    readers = {f"{target.name}.weight" for target in columns.targets}
    moved = {n for n, value in model.state_dict().items() if not value.equal(weights[n])}
    assert readers <= moved
    columns.undo()
    assert all(value.equal(weights[n]) for n, value in model.state_dict().items())


def test_columns_of_o_proj_stay_with_their_key_and_value_head() -> None:
    model, batches, _ = build("llama_text")
    targets = targets_of(model)
    free = {f.reader.name.rpartition(".")[2]: f for f in find_free_columns(model, targets)}
    assert (free["down_proj"].heads, free["down_proj"].shared, free["down_proj"].width) == (
        1,
        1,
        48,
    )
    assert (free["o_proj"].heads, free["o_proj"].shared, free["o_proj"].width) == (2, 2, 8)
    columns = ColumnOrder(model, find_free_columns(model, targets), 2)
    o_proj = model.model.layers[0].self_attn.o_proj
    before = o_proj.weight.detach().clone().view(32, 2, 2, 8)
    show(columns)
    columns.apply(batches[0])
    after = o_proj.weight.detach().view(32, 2, 2, 8)
    for head in range(2):
        places = [
            [torch.equal(after[:, head, query, i], before[:, head, query, j]) for j in range(8)]
            for query in range(2)
            for i in range(8)
        ]
        assert places[:8] == places[8:] and all(sum(row) == 1 for row in places)


def test_a_gate_on_the_columns_of_o_proj_is_left_alone() -> None:
    model, _, _ = build("qwen3_next")
    names = {f.reader.name.rpartition(".")[2] for f in find_free_columns(model, targets_of(model))}
    assert "o_proj" not in names


def test_a_model_that_would_change_is_refused_and_stays_as_it_was() -> None:
    model, batches, _ = build("llama_text")

    class Scaled(nn.Module):  # treats every column in its own way
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.silu(x) * torch.linspace(-1, 3, x.shape[-1])

    model.model.layers[0].mlp.act_fn = Scaled()
    columns = ColumnOrder(model, find_free_columns(model, targets_of(model)), 2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    show(columns)
    with pytest.raises(ValueError, match="permute_columns changes the logits of LlamaForCausalLM"):
        columns.apply(batches[0])
    assert all(value.equal(weights[n]) for n, value in model.state_dict().items())


def test_oneshot_keeps_more_of_the_metric(tmp_path: Path) -> None:
    kept = {}
    for permute in (False, True):
        model, batches, expected = build("llava_llama")
        fields = {"mask_structure": "2:4", "score": "magnitude", "permute_columns": permute}
        report = tmp_path / "report.json"
        modifier = TAMPModifier(report_path=str(report), **fields)
        prune(model, batches, modifier, tmp_path)
        weights = linear_weights(model, expected.targets)
        assert all(sparsity(weight) == 0.5 for weight in weights.values())
        kept[permute] = {n: float(weight.abs().sum()) for n, weight in weights.items()}
        assert ("permutation" in PruningReport.load(report).timings) == permute
    down = [name for name in kept[True] if "down_proj" in name]
    # The rows of up_proj only moved, if they saw the same inputs.
    assert kept[True][down[0].replace("down", "up")] == pytest.approx(
        kept[False][down[0].replace("down", "up")]
    )
    assert all(kept[True][name] > kept[False][name] for name in down)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "permute_columns needs mask_structure '1:4', '2:4' or '3:4', got '0:0'"),
        ({"mask_structure": "4:8"}, "permute_columns needs mask_structure"),
        ({"mask_structure": "n:4"}, "permute_columns needs mask_structure"),
        ({"mask_structure": "2:4", "one_pass": True}, "excludes one_pass and resume_path"),
        ({"mask_structure": "2:4", "resume_path": "layers"}, "excludes one_pass and resume_path"),
    ],
)
def test_fields_that_exclude_it_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TAMPModifier(permute_columns=True, **fields)


def test_targets_without_free_columns_are_refused(tmp_path: Path) -> None:
    model, batches, _ = build("llama_text")
    modifier = TAMPModifier(mask_structure="2:4", permute_columns=True, targets="re:.*q_proj")
    with pytest.raises(ValueError, match="permute_columns finds no Linear"):
        prune(model, batches, modifier, tmp_path)
