"""Experts that no calibration token was routed to do not stop a run, and are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from loguru import logger

from tamp_modifier import TAMPModifier
from tamp_modifier.masks import magnitude_mask
from tamp_modifier.report import PruningReport
from tests.architectures.tiny import TEXT
from tests.running import prune
from tests.upstream.test_experts import batches, llama4

pytestmark = pytest.mark.slow


def route_to_two(model: Any) -> Any:
    """Makes every token go to expert 0 or 1, whatever it is: their logits are v x and -v x."""
    for name, module in model.named_modules():
        if name.endswith((".router", ".gate")):
            with torch.no_grad():
                module.weight[1] = -module.weight[0]
                module.weight[2:] = 0
    return model


def mixtral(experts: int = 4) -> Any:
    torch.manual_seed(0)
    config = tf.MixtralConfig(**TEXT, num_local_experts=experts, num_experts_per_tok=1)
    return route_to_two(tf.MixtralForCausalLM(config).eval())


def llama() -> Any:
    torch.manual_seed(0)
    return route_to_two(llama4().eval())


def run(model: Any, folder: Path, all_experts: bool, **fields: Any) -> PruningReport:
    report = folder / "report.json"
    recipe = TAMPModifier(**{"sparsity": 0.5, "selection": "all"} | fields, report_path=str(report))
    prune(model, batches(), recipe, folder, moe_calibrate_all_experts=all_experts)
    return PruningReport.load(report)


def experts(model: Any) -> dict[str, torch.Tensor]:
    """Weights of the experts' Linears by name."""
    return {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if ".experts." in name and isinstance(module, torch.nn.Linear)
    }


@pytest.mark.parametrize(
    ("make", "all_experts", "allocation"),
    [
        (mixtral, True, "das"),
        (mixtral, False, "owl"),
        (mixtral, False, "uniform"),
        (llama, True, "das"),
        (llama, False, "uniform"),
    ],
)
def test_they_are_pruned_with_a_warning_and_named_in_the_report(
    make: Any, all_experts: bool, allocation: str, tmp_path: Path
) -> None:
    model = make()
    lines: list[str] = []
    handle = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    report = run(model, tmp_path, all_experts, allocation=allocation)
    logger.remove(handle)
    assert len([line for line in lines if "reached by no calibration token" in line]) == 1
    [told] = report.warnings
    weights = experts(model)
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    assert zeros / sum(weight.numel() for weight in weights.values()) > 0.4
    for name in weights:
        expert = name.rpartition(".")[0]
        unreached = int(expert.rpartition(".")[2]) >= 2
        assert (report.linears[name].tokens_seen == 0) == unreached
        assert (expert in told.split(": ")[1].split(", ")) == unreached


@pytest.mark.parametrize("all_experts", [True, False])
def test_they_can_be_pruned_by_magnitude(all_experts: bool, tmp_path: Path) -> None:
    dense = mixtral().model.layers[0].mlp.experts.down_proj[2].detach()
    model = mixtral()
    run(model, tmp_path, all_experts, allocation="uniform", unreached_experts="magnitude")
    weight = experts(model)["model.layers.0.mlp.experts.2.down_proj"]
    assert torch.equal(weight != 0, magnitude_mask(dense, 0.5))


def test_pooled_is_what_all_tokens_of_the_layer_give(tmp_path: Path) -> None:
    # The first layer's experts get dense inputs, all tokens of which went to expert 0 or 1.
    found = []
    for all_experts in (True, False):
        model = mixtral()
        torch.manual_seed(1)
        run(model, tmp_path, all_experts, allocation="uniform")
        found.append(experts(model)["model.layers.0.mlp.experts.2.up_proj"])
    assert torch.equal(*found)


@pytest.mark.parametrize("allocation", ["das", "uniform"])
@pytest.mark.parametrize("all_experts", [True, False])
def test_below_half_it_is_refused_unless_asked_for(
    all_experts: bool, allocation: str, tmp_path: Path
) -> None:
    model = mixtral(experts=8)
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="reached 2 of 8 experts of .*give more samples"):
        run(model, tmp_path, all_experts, allocation=allocation)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in dense.items() if name in after)
    run(model, tmp_path, all_experts, allocation=allocation, unreached_experts="pooled")


@pytest.mark.parametrize("allocation", ["das", "uniform"])
def test_they_can_be_refused(allocation: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no calibration token reached \d experts: .*experts.2"):
        run(mixtral(), tmp_path, True, allocation=allocation, unreached_experts="error")
