"""A tiny student learns from a tiny teacher, and keeps its zeros."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

from tamp_modifier.data import DataError, Encoded
from tamp_modifier.demo.processing import build_tokenizer
from tamp_modifier.recovery import budget, run
from tamp_modifier.recovery.probe import probe, usual_rate
from tamp_modifier.recovery.run import PROBE_FILE, Pair, measure_costs, recover_model
from tamp_modifier.recovery.settings import RecoverySettings
from tamp_modifier.recovery.trainer import Recovery

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"samples": 48, "learning_rate": 3e-3, "batch_size": 4, "accumulation": 1}


@pytest.fixture(scope="module")
def teacher() -> LlamaForCausalLM:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def pair(teacher: LlamaForCausalLM) -> Pair:
    student = copy.deepcopy(teacher).to(torch.bfloat16)
    with torch.no_grad():
        for name, module in student.named_modules():
            if isinstance(module, nn.Linear) and "layers" in name:
                small = module.weight.abs() < module.weight.abs().float().median()
                module.weight[small] = 0
    torch.manual_seed(1)
    vocabulary = teacher.config.vocab_size
    samples = [
        Encoded(f"row {i}", {"input_ids": torch.randint(3, vocabulary, (1, 5 + i % 4))})
        for i in range(20)
    ]
    return Pair(student, copy.deepcopy(teacher), build_tokenizer(), samples, {})


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"train": "lora", "rank": 4},
        {"train": "norms"},
        {"top_k": 20},
        {"hidden": 0.1},
        {"temperature": 2.0},
        {"scheme": "W4A16"},
        {"scheme": "W8A8"},
        {"checkpointing": True},
    ],
    ids=lambda more: ",".join(map(str, more.values())) or "kept",
)
def test_the_student_gets_closer_and_nothing_else_moves(
    pair: Pair, tmp_path: Path, more: dict[str, Any]
) -> None:
    before = state_of(pair.student)
    phases: set[str] = set()
    done = recover_model(
        pair, RecoverySettings(**QUICK, **more), tmp_path, lambda phase, *_: phases.add(phase)
    )
    assert done.best < done.before * (0.97 if more.get("train", "kept") == "kept" else 0.999)
    assert [entry["samples"] for entry in done.curve] == sorted(
        entry["samples"] for entry in done.curve
    )
    assert done.reason == "48 samples are over" and done.curve[-1]["samples"] == 48
    assert any(phase.startswith("recovery, held-out KL") for phase in phases)
    after = state_of(pair.student)
    assert after.keys() == before.keys()
    moved = set()
    for name, value in after.items():
        assert value.dtype == before[name].dtype == torch.bfloat16
        if name.removesuffix(".weight") in done.linears:
            assert not value[before[name] == 0].any()
        if not torch.equal(value, before[name]):
            moved.add(name)
    norms = {name for name in before if "layernorm" in name}
    linears = {f"{name}.weight" for name in done.linears}
    assert moved <= norms | linears and moved & norms
    assert bool(moved & linears) == (more.get("train") != "norms")
    assert done.zeros == sum(int((before[name] == 0).sum()) for name in linears)
    if more.get("train", "kept") == "kept":
        kept = sum(int((before[name] != 0).sum()) for name in linears)
        assert done.trained == kept + sum(before[name].numel() for name in norms)


def test_a_killed_run_goes_on(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RecoverySettings(**QUICK)
    monkeypatch.setattr(budget, "TRAINING_PER_COMPARISON", 0.0)
    again = Pair(copy.deepcopy(pair.student), pair.teacher, pair.processor, pair.samples, {})
    save = Trainer._save_checkpoint
    saved = []

    def killing(self: Trainer, *arguments: Any, **more: Any) -> None:
        save(self, *arguments, **more)
        saved.append(1)
        if len(saved) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save_checkpoint", killing)
    with pytest.raises(KeyboardInterrupt):
        recover_model(pair, settings, tmp_path)
    monkeypatch.setattr(Trainer, "_save_checkpoint", save)
    done = recover_model(again, settings, tmp_path)
    assert done.curve[-1]["samples"] == 48, "samples of the first run count"
    assert [entry["samples"] for entry in done.curve[:5]] == [0, 4, 8, 12, 16]
    assert done.best < 0.97 * done.before


def test_a_loss_that_is_not_finite_ends_the_run_and_the_best_state_stays(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Recovery.compute_loss

    def breaking(self: Recovery, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        if model.training and self.state.global_step == 6:
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).fill_(torch.nan)
        return compute(self, model, inputs, *rest, **more)

    monkeypatch.setattr(Recovery, "compute_loss", breaking)
    done = recover_model(pair, RecoverySettings(**QUICK), tmp_path)
    assert done.reason == "the loss is nan at step 6; the best state before is kept"
    assert done.best < done.before
    assert all(bool(value.isfinite().all()) for value in pair.student.state_dict().values())


def test_training_that_only_harms_leaves_the_student_as_it_was(pair: Pair, tmp_path: Path) -> None:
    before = state_of(pair.student)
    done = recover_model(pair, RecoverySettings(**{**QUICK, "learning_rate": 30.0}), tmp_path)
    assert done.best == done.before
    for name, value in pair.student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_costs_are_measured_on_the_longest_samples(pair: Pair, tmp_path: Path) -> None:
    settings = RecoverySettings(**{**QUICK, "samples": 400})
    costs = measure_costs(pair, settings, tmp_path)
    assert costs.training == 18 and costs.held_out == 2
    assert costs.tokens == pytest.approx(4 * 6.5)
    assert costs.minutes(settings) == pytest.approx(100 * costs.seconds / 60)
    assert costs.peak > 10e6 and costs.trained > 0


def test_one_of_several_processes_is_refused(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs in one process, WORLD_SIZE is 2; start it without"):
        recover_model(pair, RecoverySettings(**QUICK), tmp_path)


def test_an_output_head_with_zeros_is_not_trained(pair: Pair, tmp_path: Path) -> None:
    """Heads of models that were quantized once have zeros that nobody pruned."""
    head = pair.student.lm_head.weight
    with torch.no_grad():
        head[::3] = 0
    before = head.clone()
    done = recover_model(pair, RecoverySettings(**QUICK), tmp_path)
    assert "lm_head" not in done.linears and torch.equal(pair.student.lm_head.weight, before)


def test_a_short_run_takes_the_usual_rate_and_a_longer_one_probes(
    pair: Pair, tmp_path: Path
) -> None:
    assert usual_rate(128) == usual_rate(576) == 3e-4 and usual_rate(4096) == 4.2e-5
    short = RecoverySettings(**{**QUICK, "learning_rate": None, "samples": 8})
    again = copy.deepcopy(pair.student)
    assert recover_model(pair, short, tmp_path / "short").rate == usual_rate(128)
    assert json.loads((tmp_path / "short" / PROBE_FILE).read_text())["losses"] == {}
    pair.student = again
    long = RecoverySettings(**{**QUICK, "learning_rate": None, "samples": 480})
    done = recover_model(pair, long, tmp_path / "long")
    found = json.loads((tmp_path / "long" / PROBE_FILE).read_text())
    assert done.rate == found["rate"] == usual_rate(128) and len(found["losses"]) == 1


def test_a_rate_that_diverges_gives_way_to_a_lower_one(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "FACTORS", (1e38, 1.0))
    settings = RecoverySettings(**{**QUICK, "learning_rate": None, "samples": 480})
    done = recover_model(pair, settings, tmp_path)
    assert done.rate == usual_rate(128) and done.best < done.before


@pytest.mark.parametrize(
    ("factors", "tried"), [((1e6, 1.0, 1 / 3), 2), ((1e7, 1e6), 2), ((1.0, 1 / 3), 1)]
)
def test_the_probe_takes_the_highest_rate_that_does_no_harm(
    factors: tuple[float, ...], tried: int
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    weight = model.weight.detach().clone()
    batches = [{"x": torch.randn(16, 8)} for _ in range(4)]

    def loss_of(batch: Any) -> torch.Tensor:
        return (model(batch["x"]) - batch["x"]).square().mean()

    rates = [1e-3 * factor for factor in factors]
    found = probe(model, loss_of, batches, batches[:2], rates)
    assert len(found.losses) == tried and torch.equal(model.weight, weight)
    good = [rate for rate, loss in found.losses.items() if loss < found.before]
    assert found.rate == (good[0] if good else min(found.losses, key=found.losses.__getitem__))


def test_time_goes_by_the_clock_that_is_given(pair: Pair, tmp_path: Path) -> None:
    ticks = iter(range(10**6))
    settings = RecoverySettings(**{**QUICK, "samples": None, "minutes": 0.2})
    done = recover_model(pair, settings, tmp_path, clock=lambda: float(next(ticks)))
    assert done.curve[-1]["seconds"] >= 12 and done.reason == "0.2 minutes are over"


def test_what_cannot_be_recovered_is_refused(pair: Pair, tmp_path: Path) -> None:
    few = Pair(pair.student, pair.teacher, pair.processor, pair.samples[:1], {})
    with pytest.raises(DataError, match="needs 2 samples or more"):
        recover_model(few, RecoverySettings(**QUICK), tmp_path)
    dense = Pair(pair.teacher, pair.teacher, pair.processor, pair.samples, {})
    with pytest.raises(ValueError, match="no pruned Linear, so there is nothing to recover"):
        recover_model(dense, RecoverySettings(**QUICK), tmp_path)
