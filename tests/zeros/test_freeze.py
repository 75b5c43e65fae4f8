"""Frozen zeros stay through every optimizer, and the rest learns."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from llmcompressor import oneshot
from torch import nn

from tamp_modifier import TAMPModifier
from tamp_modifier.demo.evaluation import (
    Sample,
    calibration_dataloader,
    encode,
    evaluate,
    load_model,
    load_processor,
)
from tamp_modifier.demo.processing import ASSISTANT
from tamp_modifier.demo.questions import TEXT_TASKS, text_question
from tamp_modifier.demo.run import decoder_linears
from tamp_modifier.masks import apply_mask, freeze, magnitude_mask

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "Adam, decay in the gradient": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "AdamW, one by one": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "SGD, Nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8, bias=False))
    for index in (0, 2):
        apply_mask(model[index].weight.data, magnitude_mask(model[index].weight, 0.5))
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> float:
    random_inputs = torch.Generator().manual_seed(seed)
    inputs = torch.randn(32, 16, generator=random_inputs)
    wanted = torch.randn(32, 8, generator=random_inputs)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (model(inputs) - wanted).square().mean()
        value.backward()
        return value

    return float(optimizer.step(loss).detach())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_and_the_rest_learns(name: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = OPTIMIZERS[name](model.parameters())
    with freeze(model) as frozen:
        assert frozen.names == ["0", "2"]
        losses = [step(model, optimizer) for _ in range(8)]
    assert losses[-1] < losses[0]
    for key in ("0.weight", "2.weight"):
        after = model.state_dict()[key]
        assert torch.equal(after == 0, before[key] == 0)
        assert not torch.equal(after, before[key])
    assert frozen.count == sum(int((before[key] == 0).sum()) for key in before if key != "0.bias")
    assert list(model.state_dict()) == list(before)


def test_momentum_from_before_does_not_move_zeros() -> None:
    model = network()
    zeros = model[0].weight == 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    saved = copy.deepcopy(model.state_dict())
    step(model, optimizer)
    model.load_state_dict(saved)
    moved = optimizer.state[model[0].weight]["momentum_buffer"][zeros]
    assert bool((moved != 0).any())
    with freeze(model):
        step(model, optimizer)
    assert int(model[0].weight[zeros].count_nonzero()) == 0


def test_moments_and_gradients_of_zeros_stay_zero() -> None:
    model = network()
    zeros = model[0].weight == 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with freeze(model):
        step(model, optimizer)
        assert int(model[0].weight.grad[zeros].count_nonzero()) == 0
    for moment in ("exp_avg", "exp_avg_sq"):
        assert int(optimizer.state[model[0].weight][moment][zeros].count_nonzero()) == 0


def test_removing_lets_the_weights_go() -> None:
    model = network()
    zeros = model[0].weight == 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    frozen = freeze(model)
    frozen.remove()
    frozen.remove()
    step(model, optimizer)
    assert bool((model[0].weight[zeros] != 0).any())


def test_an_adapter_that_begins_with_zeros_can_learn() -> None:
    model = network()
    model.add_module("adapter", nn.Linear(8, 8, bias=False))
    nn.init.zeros_(model.adapter.weight)
    with freeze(model) as frozen:
        assert frozen.names == ["0", "2"]


def test_other_models_train_as_ever() -> None:
    frozen, other = network(), network()
    zeros = other[0].weight == 0
    with freeze(frozen):
        step(other, torch.optim.SGD(other.parameters(), lr=0.01))
    assert bool((other[0].weight[zeros] != 0).all())


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Linear(4, 4), ValueError, "Linear has no zeros to keep"),
        ("model", TypeError, "must be a torch.nn.Module, got str"),
    ],
)
def test_nothing_to_freeze_is_refused(model: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        freeze(model)


def _answers_only(batch: dict[str, torch.Tensor], assistant: int) -> torch.Tensor:
    ids = batch["input_ids"]
    answer = ((ids == assistant).cumsum(1) > 0) & (ids != assistant)
    return ids.masked_fill(~(answer & batch["attention_mask"].bool()), -100)


@pytest.mark.slow
def test_short_training_raises_accuracy_after_70_percent() -> None:
    model, processor = load_model(), load_processor()
    recipe = TAMPModifier(sparsity=0.7, selection="all", allocation="das")
    oneshot(model=model, dataset=calibration_dataloader(2, processor=processor), recipe=recipe)
    zeros = {name: m.weight == 0 for name, m in decoder_linears(model).items()}
    before = evaluate(model, processor, 15, tasks=TEXT_TASKS)

    assistant = processor.tokenizer.convert_tokens_to_ids(ASSISTANT)
    rng = random.Random("train/frozen")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    model.train()
    with freeze(model) as frozen:
        for _ in range(24):
            questions = [text_question(task, rng) for task in TEXT_TASKS for _ in range(4)]
            batch = encode([Sample(question, None) for question in questions], processor)
            model(**batch, labels=_answers_only(batch, assistant)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    after = evaluate(model.eval(), processor, 15, tasks=TEXT_TASKS)
    assert len(frozen.names) == len(zeros)
    assert after.text > before.text + 0.1
    for name, linear in decoder_linears(model).items():
        assert torch.equal(linear.weight == 0, zeros[name]), name
