"""Every selection, allocation and score inside oneshot, against a plain pass over the model."""

from __future__ import annotations

import copy
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from llmcompressor.modifiers.pruning import SparseGPTModifier
from torch import Tensor

from tamp_modifier import TAMPModifier
from tamp_modifier.report import PruningReport
from tests.architectures.inputs import Batch, pad_together
from tests.architectures.models import Expected, build, eager
from tests.running import linear_weights, prune, sparsity

pytestmark = pytest.mark.slow

SELECTIONS = ["amia", "drift", "text", "all"]
ALLOCATIONS = ["das", "das_numel", "owl", "dlp", "atp", "uniform"]
SCORES = ["wanda", "sparsegpt", "magnitude", "obs"]


def pruned(
    folder: Path, fields: dict[str, Any], name: str = "llava_llama", **arguments: Any
) -> tuple[dict[str, Tensor], PruningReport]:
    """Prunes a tiny model; returns the targets' weights and the report."""
    model, batches, expected = build(name)
    report = folder / "report.json"
    prune(model, batches, TAMPModifier(report_path=str(report), **fields), folder, **arguments)
    return linear_weights(model, expected.targets), PruningReport.load(report)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check_budget(weights: dict[str, Tensor], report: PruningReport, wanted: float) -> None:
    """Every Linear has exactly what it was allocated, and all together what was asked for."""
    total = sum(weight.numel() for weight in weights.values())
    zeros = {name: int((weight == 0).sum()) for name, weight in weights.items()}
    assert abs(sum(zeros.values()) - wanted * total) <= sum(len(w) for w in weights.values())
    for name, weight in weights.items():
        assert zeros[name] == round(report.linears[name].allocated * weight.numel()), name
        assert report.linears[name].reached == pytest.approx(zeros[name] / weight.numel())


@pytest.mark.parametrize(
    "fields",
    [
        *({"selection": name, "allocation": "uniform"} for name in SELECTIONS),
        *({"selection": "all", "allocation": name} for name in ALLOCATIONS if name != "uniform"),
        *({"selection": "drift", "allocation": "dlp", "score": name} for name in SCORES),
        {"selection": "amia", "allocation": "das", "score": "sparsegpt"},
    ],
    ids=lambda fields: "-".join(fields.values()),
)
def test_every_rule_meets_the_budget_exactly(tmp_path: Path, fields: dict[str, str]) -> None:
    weights, report = pruned(tmp_path, {"sparsity": 0.6, **fields})
    check_budget(weights, report, 0.6)
    assert report.settings["selection"] == fields["selection"]
    measured = fields["allocation"] not in ("uniform", "atp")
    assert ("dense_pass" in report.timings) == measured
    assert all((linear.importance is not None) == measured for linear in report.linears.values())


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("structure", ["2:4", "1:4"])
def test_every_score_keeps_the_structure(tmp_path: Path, score: str, structure: str) -> None:
    n, m = map(int, structure.split(":"))
    fields = {"mask_structure": structure, "sparsity": n / m, "score": score, "allocation": "owl"}
    weights, report = pruned(tmp_path, {**fields, "selection": "drift"})
    for weight in weights.values():
        assert bool(((weight == 0).view(-1, m).sum(1) == n).all())
    assert "dense_pass" not in report.timings


# -- allocation
# ------------------------------------------------------------------------------


def dense_metrics(name: str) -> tuple[Expected, dict[str, Tensor]]:
    """|W_ij| ||x_j||_2 of every target over all samples of the dense model."""
    model, batches, expected = build(name)
    squares: dict[str, Tensor] = {}
    for target in expected.targets:
        model.get_submodule(target).register_forward_hook(
            lambda _m, args, _o, t=target: squares.update(
                {t: squares.get(t, 0) + args[0].double().square().flatten(0, -2).sum(0)}
            )
        )
    with eager(model):
        for batch in batches:
            model(**batch)
    weights = {t: model.get_submodule(t).weight.detach() for t in expected.targets}
    return expected, {t: weights[t].abs().double() * squares[t].sqrt() for t in weights}


@pytest.mark.parametrize("rule", ["owl", "dlp"])
def test_the_importance_is_that_of_the_dense_model(tmp_path: Path, rule: str) -> None:
    expected, metrics = dense_metrics("llava_llama")
    options = {"m": 2.0} if rule == "owl" else {}
    fields = {"allocation": rule, "allocation_options": options, "selection": "all"}
    _, report = pruned(tmp_path, fields)
    _, single = pruned(tmp_path, {**fields, "one_pass": True}, propagate_error=False)
    layers: dict[str, list[float]] = {}
    for target in expected.targets:
        layer = report.linears[target].layer
        layers.setdefault(layer, []).extend(metrics[target].flatten().tolist())
    for name, linear in report.linears.items():
        values = layers[linear.layer]
        mean = sum(values) / len(values)
        outliers = sum(value > 2 * mean for value in values) / len(values)
        value = outliers if rule == "owl" else statistics.median_low(values)
        assert linear.importance == pytest.approx(value, rel=1e-4)
        assert single.linears[name].allocated == linear.allocated
    shares = {linear.layer: linear for linear in report.linears.values()}
    low, high = sorted(shares.values(), key=lambda linear: linear.importance or 0.0)
    assert (low.allocated > high.allocated) == (rule == "owl")


def test_the_allocation_does_not_depend_on_padding(tmp_path: Path) -> None:
    model, batches, expected = build("llava_llama")
    pair, _ = pad_together([(batches[i], expected.token_types[i]) for i in (0, 1)])
    fields = {"allocation": "dlp", "selection": "drift"}
    reports = []
    for number, some in enumerate(([pair], batches[:2])):
        path = tmp_path / f"{number}.json"
        modifier = TAMPModifier(report_path=str(path), **fields)
        prune(copy.deepcopy(model), some, modifier, tmp_path)
        reports.append(PruningReport.load(path))
    for name, linear in reports[0].linears.items():
        assert linear.allocated == reports[1].linears[name].allocated
        assert linear.selected == reports[1].linears[name].selected


def test_atp_rises_with_depth_and_refuses_a_steep_beta_before_work(tmp_path: Path) -> None:
    weights, report = pruned(tmp_path, {"allocation": "atp", "allocation_options": {"beta": 0.25}})
    for name, weight in weights.items():
        share = 0.375 if ".layers.0." in name else 0.625
        assert abs(sparsity(weight) - share) <= 1 / weight.shape[1]
    model, batches, _ = build("llava_llama")
    steep = TAMPModifier(allocation="atp", allocation_options={"beta": 1.5})
    with pytest.raises(ValueError, match="beta must be at most 1 for sparsity 0.5 and 2 layers"):
        prune(model, batches, steep, tmp_path)


def test_linears_of_a_tower_keep_the_requested_sparsity(tmp_path: Path) -> None:
    model, batches, _ = build("llava_llama")
    tower = [n for n, _ in model.named_modules() if "vision_tower" in n and n.endswith("q_proj")]
    targets = ["Linear", "re:.*vision_tower.*q_proj"]
    fields: dict[str, Any] = {"allocation": "owl", "selection": "drift", "targets": targets}
    prune(model, batches, TAMPModifier(**fields), tmp_path)
    assert tower
    assert all(sparsity(model.get_submodule(name).weight) == 0.5 for name in tower)


# -- selection
# ---------------------------------------------------------------------------------


def slow_choice(
    states: list[tuple[Tensor, Tensor]], types: list[Tensor], alpha: float
) -> list[list[int]]:
    """Tokens of every sample by the rule of ATV-Pruning, from a layer's inputs and outputs."""
    drifts = []
    for (x, y), kinds in zip(states, types, strict=True):
        cosine = torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=-1)
        drifts.append({v: 1 - float(cosine[v]) for v in kinds.nonzero().flatten().tolist()})
    mean = statistics.mean(value for drift in drifts for value in drift.values())
    choice = []
    for drift, kinds in zip(drifts, types, strict=True):
        text = (kinds == 0).nonzero().flatten().tolist()
        k = min(len(drift), round(min(1, alpha * mean) * len(text)))
        choice.append(sorted(text + sorted(drift, key=lambda v: -drift[v])[:k]))
    return choice


def layer_states(
    model: torch.nn.Module, layer: str, batches: list[Batch]
) -> list[tuple[Tensor, Tensor]]:
    """Input and output of a decoder layer for every batch of one sample."""
    found: list[tuple[Tensor, Tensor]] = []

    def note(_module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        y = output[0] if isinstance(output, tuple) else output
        found.append((x[0].detach().clone(), y[0].detach().clone()))

    handle = model.get_submodule(layer).register_forward_hook(note, with_kwargs=True)
    with eager(model):
        for batch in batches:
            model(**batch)
    handle.remove()
    return found


@pytest.mark.parametrize(
    ("name", "alpha"),
    [
        ("llava_llama", 0.4),
        ("llava_llama", 1.0),
        ("qwen3_vl", 1.5),
        ("video_llama2_style", 1.0),
        ("qwen2_5_omni", 1.0),
    ],
)
def test_drift_chooses_on_the_layers_pruned_so_far(tmp_path: Path, name: str, alpha: float) -> None:
    model, batches, expected = build(name)
    report_path = tmp_path / "report.json"
    extra = {"token_types_fn": expected.user_token_types} if expected.user_token_types else {}
    fields = {"selection": "drift", "selection_options": {"alpha": alpha}, "allocation": "uniform"}
    dense = copy.deepcopy(model)
    prune(
        model,
        batches,
        TAMPModifier(report_path=str(report_path), **fields, **extra),
        tmp_path,
        sequential_targets=[expected.decoder_layer],
    )
    report = PruningReport.load(report_path)
    types = [kinds[0] for kinds in expected.token_types]
    names = sorted({linear.layer for linear in report.linears.values()})
    for depth, layer in enumerate(names):
        # The layer under test is still dense, those before it are pruned.
        partly = copy.deepcopy(dense)
        for done in names[:depth]:
            partly.get_submodule(done).load_state_dict(model.get_submodule(done).state_dict())
        choice = slow_choice(layer_states(partly, layer, batches), types, alpha)
        for linear in report.linears.values():
            if linear.layer == layer:
                assert linear.selected == choice
                assert linear.tokens_seen == sum(map(len, choice))


@pytest.mark.parametrize("score", SCORES)
def test_drift_and_metrics_follow_tokens_into_experts(tmp_path: Path, score: str) -> None:
    fields = {"selection": "drift", "allocation": "owl", "score": score}
    weights, report = pruned(tmp_path, fields, "qwen3_vl_moe")
    check_budget(weights, report, 0.5)
    experts = [name for name in weights if ".experts." in name]
    assert experts
    if score == "magnitude":
        return
    for name in experts:
        layer = report.linears[name].layer
        whole = report.linears[f"{layer}.self_attn.q_proj"].selected
        for mine, everyone in zip(report.linears[name].selected, whole, strict=True):
            assert set(mine) <= set(everyone)


def test_drift_does_not_depend_on_the_pipeline_in_the_first_layer(tmp_path: Path) -> None:
    fields = {"selection": "drift", "allocation": "uniform"}
    _, sequential = pruned(tmp_path, fields)
    basic, report = pruned(tmp_path, fields, pipeline="basic")
    single, _ = pruned(tmp_path, {**fields, "one_pass": True}, propagate_error=False)
    assert same(basic, single)
    for name, linear in report.linears.items():
        if ".layers.0." in name:
            assert linear.selected == sequential.linears[name].selected


@pytest.mark.parametrize("selection", ["drift", "amia"])
@pytest.mark.parametrize("allocation", ["das", "owl", "uniform"])
def test_a_last_layer_that_is_not_finite_is_refused_and_nothing_is_pruned(
    tmp_path: Path, selection: str, allocation: str
) -> None:
    model, batches, _ = build("llava_llama")
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"not finite.*layers\.1"):
        prune(model, batches, TAMPModifier(selection=selection, allocation=allocation), tmp_path)
    assert same(dict(model.state_dict()), before)


# -- score
# -------------------------------------------------------------------------------------


def test_sparsegpt_on_all_tokens_is_near_upstreams(tmp_path: Path) -> None:
    ours, _ = pruned(tmp_path, {"score": "sparsegpt", "selection": "all", "allocation": "uniform"})
    model, batches, expected = build("llava_llama")
    dense = linear_weights(model, expected.targets)
    theirs = SparseGPTModifier(sparsity=0.5, targets=[expected.decoder_layer], dampening_frac=0.05)
    prune(model, batches, theirs, tmp_path)
    others = linear_weights(model, expected.targets)
    agree = [float(((ours[n] == 0) == (others[n] == 0)).double().mean()) for n in ours]
    assert statistics.mean(agree) > 0.9
    # The weights that stay were adapted.
    moved = [bool(((ours[n] != dense[n]) & (ours[n] != 0)).any()) for n in ours]
    assert all(moved)


def test_sparsegpt_by_row_gives_every_row_its_share(tmp_path: Path) -> None:
    fields = {"score": "sparsegpt", "score_options": {"per_row": 1}, "allocation": "uniform"}
    weights, report = pruned(tmp_path, fields)
    check_budget(weights, report, 0.5)
    for weight in weights.values():
        assert len(set((weight == 0).sum(1).tolist())) == 1


def test_magnitude_needs_no_selection_and_no_attention(tmp_path: Path) -> None:
    model, _, expected = build("llava_llama")
    dense = linear_weights(model, expected.targets)
    found, report = pruned(tmp_path, {"score": "magnitude", "allocation": "uniform"})
    for name, weight in found.items():
        columns = weight.shape[1]
        for row, before in zip(weight, dense[name], strict=True):
            kept = before.abs().argsort(descending=True)[: columns - round(columns / 2)]
            assert set(row.nonzero().flatten().tolist()) == set(kept.tolist())
    assert all(linear.selected == [] for linear in report.linears.values())


@pytest.mark.parametrize("score", SCORES)
def test_a_late_refusal_brings_every_weight_back(tmp_path: Path, score: str) -> None:
    model, batches, _ = build("llama_text")
    model.model.layers[-1].unused = torch.nn.Linear(32, 32)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="saw no calibration sample"):
        modifier = TAMPModifier(allocation="uniform", score=score)
        prune(model, batches, modifier, tmp_path)
    assert same(dict(model.state_dict()), before)


# -- fields
# ------------------------------------------------------------------------------------


def test_a_yaml_recipe_takes_options(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "pruning_stage:\n  pruning_modifiers:\n    TAMPModifier:\n      selection: drift\n"
        "      selection_options: {alpha: 0.5}\n      allocation: owl\n"
        "      allocation_options: {m: 3, lam: 0.1}\n      score: sparsegpt\n"
        "      score_options: {damping: 0.1}\n"
    )
    model, batches, expected = build("llava_llama")
    prune(model, batches, str(recipe), tmp_path)
    fields = {
        "selection": "drift",
        "selection_options": {"alpha": 0.5},
        "allocation": "owl",
        "allocation_options": {"m": 3, "lam": 0.1},
        "score": "sparsegpt",
        "score_options": {"damping": 0.1},
    }
    assert same(linear_weights(model, expected.targets), pruned(tmp_path, fields)[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"allocation": "ecoflap"}, "one of das, das_numel, uniform, owl, dlp, atp"),
        ({"selection": "visual"}, "one of amia, all, text, balanced, drift"),
        ({"score": "hessian"}, "one of wanda, sparsegpt, magnitude"),
        ({"allocation": "owl", "allocation_options": {"beta": 1}}, "its options are m, lam"),
        ({"allocation": {"a": 0.5}, "allocation_options": {"m": 1}}, "for a rule by name"),
        ({"selection_options": {"alpha": 1}}, "'amia' has no option 'alpha'"),
        ({"allocation": "owl", "allocation_options": {"m": True}}, "option m .* a number, got Tr"),
        ({"allocation_options": {"positive_only": 1}}, "positive_only .* true or false, got 1"),
        ({"selection": "all", "selection_options": {"alpha": 1}}, "it has none"),
        ({"selection": "drift", "selection_options": {"alpha": -1}}, "alpha must be finite"),
        ({"score_options": {"damping": 0.1}}, "score 'wanda' has no option 'damping'"),
        ({"score": "sparsegpt", "score_options": {"damping": 0}}, "damping must be in"),
        ({"score": "magnitude", "selection": "none"}, "selection must be one of"),
        ({"mask_structure": "2:4", "allocation": "owls"}, "allocation must be one of"),
    ],
)
def test_bad_fields_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TAMPModifier(**fields)
