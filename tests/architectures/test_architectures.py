"""Prunes a tiny model of every supported architecture through oneshot and checks every Linear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tamp_modifier import TAMPModifier
from tamp_modifier.report import PruningReport
from tests.architectures.inputs import PADDING, Batch, pad_together
from tests.architectures.models import ARCHITECTURES, Expected, build
from tests.running import prune as run_oneshot

pytestmark = pytest.mark.slow

SPARSITY = 0.5


def prune(
    model: torch.nn.Module,
    batches: list[Batch],
    expected: Expected,
    folder: Path,
    *,
    oneshot_options: dict[str, Any] | None = None,
    **fields: Any,
) -> PruningReport:
    """Runs TAMP through oneshot, as a user does, and returns its report."""
    if expected.user_token_types is not None:
        fields["token_types_fn"] = expected.user_token_types
    report = folder / "report.json"
    run_oneshot(
        model,
        batches,
        TAMPModifier(sparsity=SPARSITY, report_path=str(report), **fields),
        folder,
        sequential_targets=[expected.decoder_layer],
        **(oneshot_options or {}),
    )
    return PruningReport.load(report)


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All tensors of a model by name; experts once more in the form that oneshot gives them."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def check_pruned(
    model: torch.nn.Module,
    expected: Expected,
    before: dict[str, torch.Tensor],
    report: PruningReport,
) -> None:
    """Every target Linear was seen and has its sparsity; everything else is as it was."""
    linears = dict(model.named_modules())
    assert set(report.linears) == set(expected.targets)
    total = pruned = 0
    for name in expected.targets:
        weight, entry = linears[name].weight, report.linears[name]
        zeros = int((weight == 0).sum())
        assert entry.tokens_seen > 0, name
        assert abs(zeros / weight.numel() - entry.allocated) <= 1 / weight.shape[1], name
        assert zeros / weight.numel() == pytest.approx(entry.reached, abs=1e-9), name
        total, pruned = total + weight.numel(), pruned + zeros
    rows = sum(linears[name].weight.shape[0] for name in expected.targets)
    assert abs(pruned - SPARSITY * total) <= rows
    assert report.reached_sparsity == pytest.approx(pruned / total, abs=1e-9)

    after = model.state_dict()
    targets = {f"{name}.weight" for name in expected.targets}
    untouched = [name for name in before if name in after and name not in targets]
    assert untouched
    changed = [name for name in untouched if not torch.equal(before[name], after[name])]
    assert not changed
    # Only fused experts may be gone: they are Linears now.
    assert all(".experts." in name for name in set(before) - set(after))


def check_survivors(
    model: torch.nn.Module, expected: Expected, before: dict[str, torch.Tensor]
) -> None:
    """Weights that were kept are the old ones, bit for bit."""
    after = model.state_dict()
    for name in (f"{target}.weight" for target in expected.targets):
        if name in before:
            kept = after[name] != 0
            assert torch.equal(after[name][kept], before[name][kept]), name


@pytest.mark.parametrize("pipeline", ["sequential", "basic"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_of_the_text_decoder_is_pruned_and_nothing_else(
    name: str, pipeline: str, tmp_path: Path
) -> None:
    model, batches, expected = build(name)
    before = snapshot(model)
    report = prune(
        model,
        batches,
        expected,
        tmp_path,
        oneshot_options={"pipeline": pipeline},
        dense_pipeline=pipeline,
    )
    check_pruned(model, expected, before, report)
    check_survivors(model, expected, before)
    assert report.tokens == expected.counts()
    assert report.samples == len(batches)


def check_padding(name: str, left: bool, folder: Path) -> None:
    """Prunes with batches of samples 0, 1 and 1, 2, and with the same samples one by one."""
    single, batches, expected = build(name)
    samples = [(batches[i], expected.token_types[i]) for i in (0, 1, 1, 2)]
    joined = [pad_together(samples[:2], left), pad_together(samples[2:], left)]
    assert any((types == PADDING).any() for _, types in joined)
    expected.token_types = [types for _, types in samples]
    padded, _, padded_expected = build(name)
    padded_expected.token_types = [types for _, types in joined]
    before = snapshot(padded)

    batches = [inputs for inputs, _ in joined]
    padded_report = prune(padded, batches, padded_expected, folder / "padded")
    report = prune(single, [inputs for inputs, _ in samples], expected, folder / "single")

    check_pruned(padded, padded_expected, before, padded_report)
    assert padded_report.tokens == report.tokens == expected.counts()
    assert padded_report.samples == report.samples == 4
    for target in expected.targets:
        kept = padded.get_submodule(target).weight != 0
        kept_alone = single.get_submodule(target).weight != 0
        assert torch.equal(kept, kept_alone), target


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_padded_batch_gives_the_masks_of_single_samples(name: str, tmp_path: Path) -> None:
    check_padding(name, True, tmp_path)


@pytest.mark.parametrize("name", ["llava_mistral", "qwen2_5_omni", "gemma3", "qwen3_vl_moe"])
def test_padding_may_be_on_the_right(name: str, tmp_path: Path) -> None:
    check_padding(name, False, tmp_path)
