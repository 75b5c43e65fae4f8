"""The distances between a student and its teacher, against slow formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tamp_modifier.recovery.losses import (
    POSITIONS,
    counted_positions,
    divergence,
    divergence_of_top,
    hidden_error,
)


def slow_divergence(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    for mine, theirs in zip(student.double(), teacher.double(), strict=True):
        p = torch.softmax(theirs / temperature, -1)
        q = torch.softmax(mine / temperature, -1)
        total += float((p * (p / q).log()).sum())
    return total / len(student) * temperature**2


@given(
    positions=st.sampled_from([1, 3, POSITIONS, POSITIONS + 5]),
    vocabulary=st.integers(2, 40),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_divergence_is_the_formula_and_all_tokens_as_top_give_the_same(
    positions: int, vocabulary: int, temperature: float, seed: int
) -> None:
    torch.manual_seed(seed)
    student = torch.randn(positions, vocabulary, requires_grad=True)
    teacher = torch.randn(positions, vocabulary)
    found = divergence(student, teacher, temperature)
    assert float(found) == pytest.approx(slow_divergence(student, teacher, temperature), abs=1e-5)
    (gradient,) = torch.autograd.grad(found, student)
    wanted = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    torch.testing.assert_close(gradient, wanted * temperature / positions, atol=1e-6, rtol=1e-3)

    top = (teacher / temperature).log_softmax(-1).topk(vocabulary)
    again = divergence_of_top(student, top.indices, top.values, temperature)
    assert float(again) == pytest.approx(float(found), abs=1e-4)
    few = (teacher / temperature).log_softmax(-1).topk(max(1, vocabulary // 2))
    assert float(divergence_of_top(student, few.indices, few.values, temperature)) <= (
        float(found) + 1e-4
    )


def test_no_divergence_between_the_same() -> None:
    logits = torch.randn(7, 11)
    assert float(divergence(logits, logits)) == pytest.approx(0, abs=1e-6)
    top = logits.log_softmax(-1).topk(3)
    assert float(divergence_of_top(logits, top.indices, top.values)) == pytest.approx(0, abs=1e-6)
    assert float(divergence(logits[:0], logits[:0])) == 0


def test_logits_of_other_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match=r"student logits \[2, 5\], teacher \[2, 6\]"):
        divergence(torch.zeros(2, 5), torch.zeros(2, 6))


def test_padding_and_media_are_predicted_by_nobody() -> None:
    ids = torch.tensor([[1, 9, 9, 5, 6, 0], [1, 2, 3, 4, 5, 6]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]])
    counted = counted_positions(ids, mask, [9])
    assert counted.tolist() == [
        [False, False, True, True, False],
        [False, True, True, True, True],
    ]
    assert counted_positions(ids, mask, []).sum() == 8


def test_the_error_of_hidden_states_is_relative_to_the_teachers() -> None:
    teacher = [torch.randn(2, 5, 4), torch.randn(2, 5, 4)]
    counted = torch.rand(2, 5) < 0.7
    assert float(hidden_error(teacher, teacher, counted)) == 0
    scaled = [1.5 * states for states in teacher]
    assert float(hidden_error(scaled, teacher, counted)) == pytest.approx(0.25)
