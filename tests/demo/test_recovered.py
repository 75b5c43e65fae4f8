"""The pruned demo model learns again what pruning took, and keeps its zeros."""

from __future__ import annotations

import pytest
import torch

from tamp_modifier.demo.evaluation import evaluate, load_model, load_processor
from tamp_modifier.demo.recovered import recover, training_samples
from tamp_modifier.demo.run import decoder_linears

pytestmark = pytest.mark.slow


def test_samples_are_half_pictures_and_the_same_each_time() -> None:
    processor = load_processor()
    first, again = (training_samples(processor, 6, seed=3) for _ in range(2))
    assert [("pixel_values" in sample.inputs) for sample in first] == [True, False] * 3
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.inputs["input_ids"], other.inputs["input_ids"])
    others = training_samples(processor, 6, seed=4)
    assert any(a.name != b.name or len(a) != len(b) for a, b in zip(first, others, strict=True))


def test_a_few_steps_bring_answers_back() -> None:
    model, processor = load_model(dtype=torch.bfloat16), load_processor()
    linears = decoder_linears(model)
    with torch.no_grad():
        for linear in linears.values():
            level = linear.weight.abs().float().flatten().kthvalue(8 * linear.weight.numel() // 10)
            linear.weight[linear.weight.abs() <= level.values] = 0
    zeros = {name: linear.weight == 0 for name, linear in linears.items()}
    before = evaluate(model, processor, 4)
    done = recover(model, processor, count=120, samples=160, batch_size=8)
    after = evaluate(model, processor, 4)
    assert done.best < 0.7 * done.before
    assert after.text_nll + after.picture_nll < before.text_nll + before.picture_nll
    for name, linear in decoder_linears(model).items():
        assert linear.weight.dtype == torch.bfloat16
        assert not linear.weight[zeros[name]].any(), name
