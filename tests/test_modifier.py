"""TAMPModifier inside oneshot: what it prunes, what it refuses, and that passes agree."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from llmcompressor.modifiers.pruning import WandaPruningModifier
from torch.utils.data import DataLoader, RandomSampler
from transformers import PreTrainedConfig

from tamp_modifier import TAMPModifier
from tamp_modifier.pruning.settings import Settings
from tamp_modifier.report import PruningReport
from tests.architectures.inputs import IMAGE_ID, pad_together
from tests.architectures.models import build
from tests.running import linear_weights, prune, sparsity


def pruned(
    folder: Path, fields: dict[str, Any], name: str = "llava_llama", **arguments: Any
) -> tuple[dict[str, torch.Tensor], PruningReport]:
    """Prunes a tiny model; returns the targets' weights and the report."""
    model, batches, expected = build(name)
    report = folder / "report.json"
    modifier = TAMPModifier(report_path=str(report), **fields)
    prune(model, arguments.pop("batches", batches), modifier, folder, **arguments)
    return linear_weights(model, expected.targets), PruningReport.load(report)


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("wanted", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("allocation", ["das", "das_numel", "uniform"])
def test_the_global_budget_is_met_within_a_weight_per_row(
    tmp_path: Path, allocation: str, wanted: float
) -> None:
    weights, report = pruned(tmp_path, {"sparsity": wanted, "allocation": allocation})
    total = sum(weight.numel() for weight in weights.values())
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    rows = sum(weight.shape[0] for weight in weights.values())
    # Uniform sparsity may have to round every Linear the same way.
    assert abs(zeros - wanted * total) <= rows
    assert report.reached_sparsity == pytest.approx(zeros / total)
    for name, linear in report.linears.items():
        assert linear.reached == pytest.approx(sparsity(weights[name]))
        assert linear.allocated <= wanted + 0.1 + 1 / weights[name].shape[1]


def test_an_explicit_allocation_is_used_as_given(tmp_path: Path) -> None:
    _, _, expected = build("llava_llama")
    given = {name: 0.25 if "q_proj" in name else 0.5 for name in expected.targets}
    weights, report = pruned(tmp_path, {"allocation": given})
    assert {name: sparsity(weight) for name, weight in weights.items()} == given
    assert all(linear.importance is None for linear in report.linears.values())


@pytest.mark.parametrize("structure", ["2:4", "4:8", "1:4"])
def test_structured_masks_hold_in_every_group(tmp_path: Path, structure: str) -> None:
    n, m = map(int, structure.split(":"))
    weights, _ = pruned(tmp_path, {"mask_structure": structure, "sparsity": n / m})
    for weight in weights.values():
        assert bool(((weight == 0).view(-1, m).sum(1) == n).all())


@pytest.mark.parametrize("structure", ["0:0", "2:4"])
def test_all_tokens_and_uniform_sparsity_are_wanda(tmp_path: Path, structure: str) -> None:
    fields = {"selection": "all", "allocation": "uniform", "mask_structure": structure}
    ours, _ = pruned(tmp_path, fields)
    model, batches, expected = build("llava_llama")
    wanda = WandaPruningModifier(
        sparsity=0.5,
        mask_structure=structure,
        targets=[expected.decoder_layer],
    )
    prune(model, batches, wanda, tmp_path)
    assert same(ours, linear_weights(model, expected.targets))


def test_batches_of_two_with_padding_give_the_masks_of_batch_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batches, expected = build("llava_llama")
    one = copy.deepcopy(model)
    types = expected.token_types
    pair, _ = pad_together([(batches[0], types[0]), (batches[1], types[1])])
    prune(one, batches[:2], TAMPModifier(), tmp_path)
    prune(model, [pair], TAMPModifier(), tmp_path)
    masks = [
        {name: weight != 0 for name, weight in linear_weights(m, expected.targets).items()}
        for m in (one, model)
    ]
    assert same(*masks)


@pytest.mark.parametrize("name", ["llava_llama", "llama_text"])
def test_the_basic_pipeline_reaches_the_same_allocation(tmp_path: Path, name: str) -> None:
    _, sequential = pruned(tmp_path, {}, name)
    _, basic = pruned(tmp_path, {"dense_pipeline": "basic"}, name, pipeline="basic")
    for linear in sequential.linears:
        assert basic.linears[linear].allocated == sequential.linears[linear].allocated


def test_one_pass_is_the_basic_pipeline_without_error_propagation(tmp_path: Path) -> None:
    one_pass, report = pruned(tmp_path, {"one_pass": True}, propagate_error=False)
    basic, _ = pruned(tmp_path, {}, pipeline="basic")
    assert same(one_pass, basic)
    assert "dense_pass" not in report.timings


def test_the_same_seed_and_data_give_the_same_masks(tmp_path: Path) -> None:
    assert same(pruned(tmp_path, {})[0], pruned(tmp_path, {})[0])


def test_a_random_sampler_shows_all_passes_the_same_samples(tmp_path: Path) -> None:
    _, batches, _ = build("llava_llama")
    many = [{**batch, "input_ids": batch["input_ids"].clone()} for batch in batches * 3]
    for batch in many:
        text = batch["input_ids"] != IMAGE_ID
        batch["input_ids"][text] = torch.randint(3, 100, (int(text.sum()),))
    # Draws 4 of 9 samples, others in every pass, from torch's global generator.
    loader = DataLoader(many, batch_size=None, sampler=RandomSampler(many, num_samples=4))
    _, report = pruned(tmp_path, {}, batches=loader)
    assert report.samples == 4


def test_samples_that_change_between_passes_are_refused(tmp_path: Path) -> None:
    class Changing(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            if index >= 2:
                raise IndexError
            ids = torch.tensor([[os.urandom(1)[0] % 90 + 3] * 9])
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    with pytest.raises(RuntimeError, match="fixed order"):
        pruned(tmp_path, {}, "llama_text", batches=DataLoader(Changing(), batch_size=None))


def test_a_yaml_recipe_gives_the_same_masks(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "pruning_stage:\n  pruning_modifiers:\n    TAMPModifier:\n"
        "      sparsity: 0.6\n      targets: [Linear]\n"
    )
    model, batches, expected = build("llava_llama")
    prune(model, batches, str(recipe), tmp_path)
    assert same(linear_weights(model, expected.targets), pruned(tmp_path, {"sparsity": 0.6})[0])


def test_everything_but_the_text_decoder_is_left_alone(tmp_path: Path) -> None:
    model, batches, expected = build("llava_llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prune(model, batches, TAMPModifier(), tmp_path)
    targets = {f"{name}.weight" for name in expected.targets}
    changed = {
        name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])
    }
    assert changed == targets


def test_a_vision_tower_is_pruned_when_targeted_by_name(tmp_path: Path) -> None:
    model, batches, _ = build("llava_llama")
    vision = [n for n, m in model.named_modules() if "vision_tower" in n and "q_proj" in n]
    prune(model, batches, TAMPModifier(targets=["re:.*vision_tower.*q_proj"]), tmp_path)
    assert vision
    weights = linear_weights(model, vision)
    assert sum(sparsity(w) for w in weights.values()) / len(weights) == pytest.approx(0.5, abs=0.04)


def test_the_report_tells_modalities_tokens_and_settings(tmp_path: Path) -> None:
    _, report = pruned(tmp_path, {"sparsity": 0.6})
    _, batches, expected = build("llava_llama")
    assert report.tokens == expected.counts()
    assert report.samples == len(batches)
    assert report.settings["sparsity"] == report.requested_sparsity == 0.6
    assert set(report.timings) == {"dense_pass", "pruning_pass"}
    lengths = [int(types.numel()) for types in expected.token_types]
    for linear in report.linears.values():
        assert set(linear.similarities) == {"text-text", "text-image", "image-image"}
        terms = [1 - cosine for cosine in linear.similarities.values()]
        assert linear.importance == pytest.approx(sum(terms), rel=1e-4)
        assert [len(tokens) <= n for tokens, n in zip(linear.selected, lengths, strict=True)]
        assert linear.tokens_seen == sum(map(len, linear.selected)) > 0


def test_the_modifier_keeps_the_report_of_its_run(tmp_path: Path) -> None:
    model, batches, _ = build("llava_llama")
    modifier = TAMPModifier(keep_indices=True)
    assert modifier.report is None
    prune(model, batches, modifier, tmp_path)
    report = modifier.report
    assert report is not None and report.reached_sparsity == pytest.approx(0.5, abs=0.01)
    assert all(len(linear.selected) == len(batches) for linear in report.linears.values())
    report.save(tmp_path / "report.json")
    assert PruningReport.load(tmp_path / "report.json") == report


# -- refused before any work
# --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 0.0}, "sparsity must be between 0 and 1"),
        ({"sparsity": 1.0}, "sparsity must be between 0 and 1"),
        ({"sparsity": math.nan}, "sparsity must be between 0 and 1"),
        ({"mask_structure": "24"}, "mask_structure"),
        ({"mask_structure": "5:4"}, "mask_structure"),
        ({"mask_structure": 124}, 'YAML reads 2:4 without quotes; write mask_structure: "2:4"'),
        ({"selection_options": {"num_neighbors": True}}, "num_neighbors .* a number, got True"),
        ({"max_sparsity": True}, "max_sparsity must be a number, got True"),
        ({"allocation": {"a": True}}, "allocation must be a number, got True"),
        (
            {"mask_structure": "2:4", "sparsity": 0.9},
            "sparsity must be at most 0.5 with mask_structure '2:4'",
        ),
        (
            {"mask_structure": "n:4", "sparsity": 0.8},
            "sparsity must be at most 0.75 with mask_structure 'n:4'",
        ),
        ({"mask_structure": "n:1"}, "M of at least 2"),
        ({"mask_structure": "n:4", "max_sparsity": 0.7, "sparsity": 0.55}, "lets at most 0.5 of"),
        ({"mask_structure": "2:4", "max_sparsity": 0.45, "sparsity": 0.4}, "max_sparsity must be"),
        ({"max_sparsity": 0.4}, "max_sparsity must be between sparsity"),
        ({"allocation": "owls"}, "allocation must be one of"),
        ({"selection": "best"}, "selection must be one of"),
        ({"score": "hessian"}, "score must be one of"),
        ({"selection_options": {"num_neighbors": 0}}, "num_neighbors must be an integer >= 1"),
        ({"selection_options": {"num_neighbors": 2.5}}, "num_neighbors must be an integer >= 1"),
        ({"selection_options": {"threshold": -1.0}}, "threshold must be finite and >= 0"),
        ({"modality_token_ids": {"picture": 3}}, "unknown modality 'picture'"),
        ({"report_path": "report.txt"}, "report_path must end with .json"),
        ({"sparsty": 0.5}, "sparsty"),
        (
            {"modality_token_ids": {"image": 3}, "token_types_fn": "a.b:c"},
            "modality_token_ids or token_types_fn, not both",
        ),
    ],
)
def test_a_bad_field_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TAMPModifier(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": ["re:.*no_such"]}, "match no Linear"),
        ({"targets": []}, "targets is empty"),
        ({"targets": ["re:("]}, "targets: 're:\\(' is not a regular expression"),
        ({"targets": ["Linear", "re:.*lm_head"]}, "output head"),
        ({"report_path": "/proc/report.json"}, "report_path '/proc/report.json' cannot be written"),
        ({"ignore": ["Linear"]}, "all ignored"),
        ({"mask_structure": "3:6"}, "divisible by 6"),
        ({"sequential_targets": "NoLayer"}, "sequential_targets"),
        ({"allocation": {"model.nothing": 0.5}}, "allocation gives no sparsity for"),
        ({"token_types_fn": "no.such:function"}, "token_types_fn"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_calibration(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    model, batches, _ = build("llava_llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        prune(model, batches, TAMPModifier(**fields), tmp_path)
    assert same(model.state_dict(), before)


def test_unknown_modalities_are_refused_and_can_be_given(tmp_path: Path) -> None:
    model, batches, expected = build("llama_text")
    model.config = PreTrainedConfig(**model.config.to_dict(), vision_config={"hidden_size": 8})
    with pytest.raises(ValueError, match="modality_token_ids"):
        Settings.resolve(TAMPModifier(), model)
    given = TAMPModifier(modality_token_ids={"image": IMAGE_ID})
    assert Settings.resolve(given, model).placeholder_ids == {"image": (IMAGE_ID,)}


def test_no_calibration_data_is_refused(tmp_path: Path) -> None:
    from llmcompressor import oneshot

    model, _, _ = build("llama_text")
    model.config.save_pretrained(tmp_path)
    model.config._name_or_path = str(tmp_path)
    with pytest.raises(ValueError, match="calibration data"):
        oneshot(model=model, recipe=[TAMPModifier()])


def test_an_empty_loader_is_refused(tmp_path: Path) -> None:
    model, _, _ = build("llama_text")
    with pytest.raises(ValueError, match="calibration data"):
        prune(model, [], TAMPModifier(), tmp_path)


def test_placeholders_without_their_picture_are_refused(tmp_path: Path) -> None:
    model, batches, _ = build("llava_llama")
    del batches[1]["pixel_values"]
    with pytest.raises(ValueError, match="batch 1 has image tokens but only attention_mask, input"):
        prune(model, batches, TAMPModifier(), tmp_path)


def test_ids_that_no_sample_has_are_a_warning(tmp_path: Path, logged: list[str]) -> None:
    pruned(tmp_path, {"modality_token_ids": {"image": 99999}})
    assert any("everything is pruned as text" in line for line in logged)


def test_an_ignore_pattern_without_a_match_is_a_warning(tmp_path: Path, logged: list[str]) -> None:
    pruned(tmp_path, {"ignore": ["re:.*nothing.*", "re:.*q_proj"]})
    assert any("re:.*nothing.*" in line for line in logged)
    assert not any("re:.*q_proj" in line for line in logged)


# -- refused after calibration, with the weights as they were
# --------------------------------------------


@pytest.mark.parametrize("allocation", ["das", "uniform"])
def test_a_linear_that_sees_no_sample_is_refused_and_nothing_is_pruned(
    tmp_path: Path, allocation: str
) -> None:
    model, batches, _ = build("llama_text")
    last = model.model.layers[-1]
    last.unused = torch.nn.Linear(32, 32)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"saw no calibration sample.*layers\.1\.unused"):
        prune(model, batches, TAMPModifier(allocation=allocation), tmp_path)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("selection", ["amia", "all"])
@pytest.mark.parametrize("allocation", ["das", "uniform"])
def test_activations_that_are_not_finite_are_refused_and_nothing_is_pruned(
    tmp_path: Path, allocation: str, selection: str
) -> None:
    model, batches, _ = build("llama_text")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"not finite.*layers\.1\.mlp"):
        prune(model, batches, TAMPModifier(allocation=allocation, selection=selection), tmp_path)
    assert same(model.state_dict(), before)


def test_a_sample_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model, batches, _ = build("llava_llama")
    batches[1]["pixel_values"][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="batch 1 has NaN or infinite values in 'pixel_values'"):
        prune(model, batches, TAMPModifier(), tmp_path)
