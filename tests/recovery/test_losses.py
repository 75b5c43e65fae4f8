"""The distances between a student and its teacher, against slow formulas."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tamp_modifier.recovery.losses import (
    POSITIONS,
    counted_positions,
    divergence,
    divergence_of_top,
    hidden_error,
    logits_at,
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


class _Head(nn.Module):
    """A model of transformers' shape: an embedding as hidden states, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10)
        self.shapes: list[torch.Size] = []

    def answer(self, states: Tensor, hidden: bool) -> Any:
        logits = self.head(states)
        self.shapes.append(logits.shape)
        return SimpleNamespace(logits=logits, hidden_states=(states,) if hidden else None)


class _Whole(_Head):
    def forward(
        self, input_ids: Tensor, use_cache: bool = True, output_hidden_states: bool = False
    ) -> Any:
        return self.answer(self.embed(input_ids), output_hidden_states)


class _Placed(_Head):
    def forward(
        self,
        input_ids: Tensor,
        use_cache: bool = True,
        output_hidden_states: bool = False,
        logits_to_keep: Tensor | int = 0,
    ) -> Any:
        return self.answer(self.embed(input_ids)[:, logits_to_keep], output_hidden_states)


@pytest.mark.parametrize("counted", [[[1, 1, 0, 1], [1, 1, 0, 1]], [[1, 0, 0, 1], [0, 1, 0, 0]]])
@pytest.mark.parametrize("kind", [_Whole, _Placed])
def test_logits_are_those_that_count_and_the_head_does_not_run_on_others(
    kind: type[_Head], counted: list[list[int]]
) -> None:
    torch.manual_seed(0)
    model, mask = kind(), torch.tensor(counted).bool()
    ids = torch.randint(10, (2, 5))
    wanted = model.head(model.embed(ids))[:, :-1][mask]
    found, hidden = logits_at(model, {"input_ids": ids}, mask, hidden=True)
    torch.testing.assert_close(found, wanted)
    assert hidden is not None and logits_at(model, {"input_ids": ids}, mask)[1] is None
    assert model.shapes[0][1] == (3 if kind is _Placed else 5)
