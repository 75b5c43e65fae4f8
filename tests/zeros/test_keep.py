"""Pruned weights stay zero through what follows, or the run fails and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization import fake_quantize as round_to_grid
from llmcompressor.modifiers import Modifier
from llmcompressor.modifiers.gptq import GPTQModifier, base
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tamp_modifier import FittedGPTQModifier, TAMPModifier
from tamp_modifier.zeros import remembered as preserve
from tamp_modifier.zeros.keep import guard_zeros, keep_zeros, refuse_lost_zeros
from tests.architectures.models import build
from tests.running import IGNORE, int4, prune

DECODER = "re:^(?!.*vision_tower).*"
QKV = [DECODER + f"{name}_proj$" for name in "qkv"]
GATED = [DECODER + "gate_proj$", DECODER + "up_proj$"]


def tamp(**fields: Any) -> TAMPModifier:
    return TAMPModifier(**{"allocation": "uniform", "selection": "all", **fields})


def preset(scheme: str) -> dict[str, Any]:
    return {"targets": "Linear", "scheme": scheme, "ignore": IGNORE}


def smooth() -> SmoothQuantModifier:
    mappings = [[QKV, DECODER + "input_layernorm$"], [GATED, DECODER + "post_attention_layernorm$"]]
    return SmoothQuantModifier(smoothing_strength=0.8, mappings=mappings)


def awq() -> AWQModifier:
    mappings = [
        AWQMapping(DECODER + "input_layernorm$", QKV),
        AWQMapping(DECODER + "post_attention_layernorm$", GATED),
        AWQMapping(DECODER + "up_proj$", [DECODER + "down_proj$"]),
    ]
    return AWQModifier(mappings=mappings, n_grid=3)


FOLLOWERS = {
    "FP8_DYNAMIC": lambda: [QuantizationModifier(**preset("FP8_DYNAMIC"))],
    "FP8": lambda: [QuantizationModifier(**preset("FP8"))],
    "W4A16": lambda: [QuantizationModifier(**int4())],
    "W4A16, asymmetric": lambda: [QuantizationModifier(**int4(symmetric=False))],
    "GPTQ W4A16": lambda: [GPTQModifier(**int4())],
    "GPTQ W4A16, asymmetric": lambda: [GPTQModifier(**int4(symmetric=False))],
    "GPTQ W4A16, in order": lambda: [GPTQModifier(actorder=None, **int4())],
    "GPTQ W4A16, batched": lambda: [GPTQModifier(batched_quantization=4, **int4())],
    "fitted GPTQ W4A16": lambda: [FittedGPTQModifier(**int4())],
    "fitted GPTQ W4A16, asymmetric": lambda: [FittedGPTQModifier(**int4(symmetric=False))],
    "SmoothQuant, GPTQ W8A8": lambda: [smooth(), GPTQModifier(**preset("W8A8"))],
    "AWQ W4A16, asymmetric": lambda: [awq(), QuantizationModifier(**int4(symmetric=False))],
}


@torch.no_grad()
def logits_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).logits


def masks_of(model: nn.Module) -> dict[str, torch.Tensor]:
    found = preserve.remembered(model)
    return {name: preserve.pruned_bits(module).mask() for name, module in found.items()}


def check_saved(
    model: nn.Module, masks: dict[str, torch.Tensor], folder: Path, batch: dict[str, torch.Tensor]
) -> None:
    """Saves a model and checks that what transformers loads has its logits and the zeros."""
    logits = logits_of(model, batch)
    assert bool(logits.isfinite().all())
    model.save_pretrained(folder)
    auto = AutoModelForImageTextToText if "pixel_values" in batch else AutoModelForCausalLM
    loaded = auto.from_pretrained(folder)
    torch.testing.assert_close(logits_of(loaded, batch), logits, rtol=1e-3, atol=1e-3)
    for name, mask in masks.items():
        assert int(loaded.get_submodule(name).weight[mask].count_nonzero()) == 0, name


@pytest.mark.parametrize("structure", ["2:4", "0:0"])
@pytest.mark.parametrize("follower", FOLLOWERS)
def test_every_zero_stays_and_reloads(follower: str, structure: str, tmp_path: Path) -> None:
    architecture = "llava_llama" if structure == "2:4" else "llama_text"
    model, batches, expected = build(architecture)
    prune(model, batches, [tamp(mask_structure=structure), *FOLLOWERS[follower]()], tmp_path)
    masks = masks_of(model)
    assert list(masks) == expected.targets
    assert all(
        float(mask.float().mean()) == pytest.approx(0.5, abs=0.05) for mask in masks.values()
    )
    check_saved(model, masks, tmp_path / "saved", batches[0])


def test_a_later_run_keeps_them_as_well(tmp_path: Path) -> None:
    model, batches, _ = build("llava_llama")
    prune(model, batches, tamp(), tmp_path)
    masks = masks_of(model)
    prune(model, batches, GPTQModifier(**int4()), tmp_path)
    check_saved(model, masks, tmp_path / "saved", batches[0])


def test_zeros_of_a_loaded_model_can_be_kept(tmp_path: Path) -> None:
    model, batches, expected = build("llava_llama")
    prune(model, batches, tamp(), tmp_path)
    model.save_pretrained(tmp_path / "pruned")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "pruned")
    assert preserve.remembered(loaded) == {}
    assert keep_zeros(loaded) == expected.targets
    prune(loaded, batches, GPTQModifier(**int4()), tmp_path)
    check_saved(loaded, masks_of(model), tmp_path / "saved", batches[0])
    with pytest.raises(ValueError, match="Linear has no zeros to keep"):
        keep_zeros(nn.Linear(4, 4))


class Undo(Modifier):
    """Brings pruned weights back, one of each Linear, when calibration ends."""

    requires_calibration_data: bool = True

    def on_initialize(self, state: Any, **kwargs: Any) -> bool:
        return True

    def on_calibration_end(self, state: Any, event: Any, **kwargs: Any) -> None:
        for name, module in preserve.remembered(state.model).items():
            if "up_proj" in name:
                row, column = (module.weight == 0).nonzero()[0]
                module.weight.data[row, column] = 1.0


@pytest.mark.parametrize("together", [True, False], ids=["same recipe", "later run"])
def test_a_run_that_brings_weights_back_fails(tmp_path: Path, together: bool) -> None:
    model, batches, _ = build("llava_llama")
    report = tmp_path / "report.json"
    recipe: list[Modifier] = [tamp(report_path=str(report))]
    if not together:
        prune(model, batches, recipe, tmp_path)
        recipe = []
    with pytest.raises(
        RuntimeError, match=r"2 pruned weights came back in 2 Linears.*up_proj \(1\)"
    ):
        prune(model, batches, [*recipe, Undo()], tmp_path, output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out" / "config.json").exists()
    assert report.exists() != together


def test_weights_that_the_user_changed_are_no_longer_kept(
    tmp_path: Path, logged: list[str]
) -> None:
    model, batches, expected = build("llava_llama")
    prune(model, batches, tamp(), tmp_path)
    changed = expected.targets[0]
    model.get_submodule(changed).weight.data.fill_(0.1)
    prune(model, batches, QuantizationModifier(**preset("FP8_DYNAMIC")), tmp_path)
    assert any("changed before this run" in line and changed in line for line in logged)
    assert list(preserve.remembered(model)) == expected.targets[1:]


def test_a_grid_without_zero_is_refused() -> None:
    module = nn.Linear(16, 4, bias=False)
    module.weight.data[:, ::2] = 0
    preserve.remember(module, module.weight)
    module.quantization_scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=4, symmetric=False)
    )
    module.weight_scale = nn.Parameter(torch.ones(4, 1), requires_grad=False)
    module.weight_zero_point = nn.Parameter(torch.zeros(4, 1), requires_grad=False)
    model = nn.Sequential(module)
    refuse_lost_zeros(model)
    module.weight_zero_point[1] = 9  # codes go from -8 to 7
    with pytest.raises(RuntimeError, match="1 pruned Linears has no exact zero: 0"):
        refuse_lost_zeros(model)


# -- GPTQ's solver ---------------------------------------------------------------------------------


def slow_gptq(
    weight: torch.Tensor, hessian: torch.Tensor, pruned: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """GPTQ row by row and column by column, with the inverse Hessian of the columns to come.

    After column j is fixed with error e, the columns after it move by
    -e H^-1[j, j+1:] / H^-1[j, j], and row and column j leave H^-1 (arXiv 2208.11580).
    """
    args = QuantizationArgs(num_bits=4, strategy="channel")
    work, result = weight.double().clone(), torch.zeros_like(weight)
    damped = hessian.double() + 0.01 * hessian.double().diag().mean() * torch.eye(len(hessian))
    for row in range(len(weight)):
        inverse = damped.inverse()
        for column in range(weight.shape[1]):
            value = work[row, column].float()
            fixed = round_to_grid(value.view(1, 1), scale[row].view(1, 1), None, args).squeeze()
            fixed = torch.zeros(()) if pruned[row, column] else fixed
            result[row, column] = fixed
            error = (work[row, column] - fixed) / inverse[column, column]
            work[row, column + 1 :] -= error * inverse[column, column + 1 :]
            left = inverse[:, column : column + 1] @ inverse[column : column + 1]
            inverse = inverse - left / inverse[column, column]
    return result


@torch.no_grad()
def test_the_solver_is_gptq_with_pruned_weights_fixed_at_zero() -> None:
    guard_zeros()
    torch.manual_seed(0)
    module = nn.Linear(24, 6, bias=False)
    module.weight.data[torch.rand(6, 24) < 0.5] = 0
    inputs = torch.randn(64, 24) @ torch.randn(24, 24)
    hessian = inputs.T @ inputs / 64
    scale = module.weight.detach().abs().amax(1, keepdim=True) / 7.5
    pruned = module.weight == 0

    def solve() -> torch.Tensor:
        qparams = {"scale": scale, "zero_point": torch.zeros(6, 1), "global_scale": None}
        hessians, samples = {module: hessian.clone()}, {module: torch.ones(())}
        weights, stacked, scales, zero_points, _ = base.prepare_batch(
            [module], [qparams], hessians, samples
        )
        args = QuantizationArgs(num_bits=4, strategy="channel")
        found, *_ = base.quantize_weight(
            weights, stacked, scales, zero_points, None, args, blocksize=8
        )
        return found[0].detach()

    free = solve()
    preserve.remember(module, module.weight)
    masked = solve()
    assert int(free[pruned].count_nonzero()) > 0
    assert int(masked[pruned].count_nonzero()) == 0
    torch.testing.assert_close(masked, slow_gptq(module.weight.detach(), hessian, pruned, scale))
    none = torch.zeros_like(pruned)
    torch.testing.assert_close(free, slow_gptq(module.weight.detach(), hessian, none, scale))

    def loss(weight: torch.Tensor) -> float:
        return float(((weight - module.weight.detach()) @ inputs.T).square().sum())

    assert loss(masked) < loss(free.masked_fill(pruned, 0.0))


# -- what a run that breaks leaves behind ----------------------------------------------------------


def hooks_of(model: nn.Module) -> list[str]:
    """llm-compressor's hooks; transformers leaves some of its own on the vision tower."""
    return [
        name
        for name, module in model.named_modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if "HooksMixin" in hook.__qualname__
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("forward", [0, 3], ids=["dense pass", "pruning pass"])
def test_a_broken_run_leaves_the_model_as_it_was(
    tmp_path: Path, error: type[BaseException], forward: int
) -> None:
    model, batches, expected = build("llava_llama")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    last = model.get_submodule(expected.targets[-1])
    calls = 0

    def breaking(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > forward:
            raise error("stop")

    handle = last.register_forward_pre_hook(breaking)
    with pytest.raises(error, match="stop"):
        prune(model, batches, TAMPModifier(selection="drift"), tmp_path)
    handle.remove()
    assert hooks_of(model) == []
    assert preserve.remembered(model) == {}
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    prune(model, batches, tamp(), tmp_path)


# -- the other order -------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False], ids=["same recipe", "later run"])
@pytest.mark.parametrize("scheme", ["GPTQ W4A16", "FP8_DYNAMIC", "SmoothQuant, GPTQ W8A8"])
def test_pruning_what_is_quantized_gives_a_right_checkpoint(
    tmp_path: Path, scheme: str, together: bool
) -> None:
    model, batches, _ = build("llava_llama")
    if together:
        prune(model, batches, [*FOLLOWERS[scheme](), tamp(mask_structure="2:4")], tmp_path)
    else:
        prune(model, batches, FOLLOWERS[scheme](), tmp_path)
        prune(model, batches, tamp(mask_structure="2:4"), tmp_path)
    check_saved(model, masks_of(model), tmp_path / "saved", batches[0])


def test_a_score_that_leaves_the_grid_is_refused(tmp_path: Path) -> None:
    model, batches, _ = build("llama_text")
    recipe = [*FOLLOWERS["GPTQ W4A16"](), tamp(score="sparsegpt")]
    with pytest.raises(ValueError, match="'sparsegpt' changes the weights that stay.*quantized"):
        prune(model, batches, recipe, tmp_path)


@pytest.mark.parametrize("scheme", ["W4A16", "FP8_DYNAMIC"])
def test_a_quantized_checkpoint_is_refused(tmp_path: Path, scheme: str) -> None:
    model, batches, _ = build("llama_text")
    prune(model, batches, FOLLOWERS[scheme](), tmp_path)
    model.save_pretrained(tmp_path / "quantized")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "quantized")
    with pytest.raises(ValueError, match="stored quantized and cannot be pruned"):
        prune(loaded, batches, tamp(), tmp_path / "again")


# -- company ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"targets": ["re:.*q_proj"]}, "prune the same 2 Linears.*q_proj"),
        (
            {"targets": ["re:.*layers.*q_proj"], "report_path": "{folder}/a.json"},
            {"targets": ["re:.*layers.*k_proj"], "report_path": "{folder}/../{name}/a.json"},
            "same report_path",
        ),
    ],
)
def test_two_modifiers_that_clash_are_refused(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], message: str
) -> None:
    model, batches, _ = build("llama_text")
    both = [
        {
            key: value.format(folder=tmp_path, name=tmp_path.name)
            if key == "report_path"
            else value
            for key, value in fields.items()
        }
        for fields in (first, second)
    ]
    with pytest.raises(ValueError, match=message):
        prune(model, batches, [tamp(**fields) for fields in both], tmp_path)


def test_two_modifiers_with_different_targets_work_together(tmp_path: Path) -> None:
    model, batches, expected = build("llama_text")
    attention = tamp(sparsity=0.25, targets=["re:.*self_attn.*"])
    mlp = tamp(sparsity=0.75, targets=["re:.*mlp.*"])
    prune(model, batches, [attention, mlp], tmp_path)
    for name, mask in masks_of(model).items():
        wanted = 0.25 if "self_attn" in name else 0.75
        assert float(mask.float().mean()) == pytest.approx(wanted), name
    assert list(masks_of(model)) == expected.targets
