"""DAS similarities and importance against plain loops over all pairs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tamp_modifier.diversity import DiversityTracker, importance, mean_similarities


def slow_similarities(
    outputs: Tensor, types: list[int], positive_only: bool = False
) -> dict[tuple[int, int], float]:
    """The definition, one pair of tokens at a time, in fp64."""
    rows = [[float(x) for x in row] for row in outputs.double()]

    def cosine(a: list[float], b: list[float]) -> float:
        norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0

    values: dict[tuple[int, int], list[float]] = {}
    for i, j in itertools.combinations(range(len(rows)), 2):
        pair = (min(types[i], types[j]), max(types[i], types[j]))
        values.setdefault(pair, []).append(cosine(rows[i], rows[j]))
    if positive_only:
        for pair in values:
            if pair[0] == pair[1]:
                values[pair] = [v for v in values[pair] if v > 0] or [0.0]
    return {pair: sum(v) / len(v) for pair, v in sorted(values.items())}


def sample(tokens: int, features: int, modalities: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    types = torch.randint(modalities, (tokens,), generator=generator)
    outputs = torch.randn(tokens, features, generator=generator)
    centres = torch.randn(modalities, features, generator=generator)
    return outputs + centres[types], types


@pytest.mark.parametrize("positive_only", [False, True])
@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
@pytest.mark.parametrize("tokens", [2, 5, 40])
def test_equals_the_mean_over_all_pairs(tokens: int, modalities: int, positive_only: bool) -> None:
    outputs, types = sample(tokens, 16, modalities, seed=tokens + modalities)
    found = mean_similarities(outputs, types, positive_only)
    assert found == pytest.approx(
        slow_similarities(outputs, types.tolist(), positive_only), abs=1e-6
    )


def test_keeps_precision_where_terms_nearly_cancel() -> None:
    # 4000 tokens around 0: |s|^2 and N agree to 3 digits, and their difference is the result.
    outputs = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    outputs -= outputs.mean(0)
    unit = torch.nn.functional.normalize(outputs.double(), dim=1)
    cosines = unit @ unit.T
    exact = float(cosines.sum() - cosines.trace()) / (4000 * 3999)
    found = mean_similarities(outputs, torch.zeros(4000, dtype=torch.int64))[0, 0]
    assert found == pytest.approx(exact, abs=1e-8)


def test_needs_no_matrix_of_all_pairs() -> None:
    # A matrix of all pairs would take 360 GB.
    outputs, types = sample(300_000, 4, 2, seed=0)
    assert set(mean_similarities(outputs, types)) == {(0, 0), (0, 1), (1, 1)}


def test_text_only_has_one_term() -> None:
    outputs, _ = sample(9, 8, 1, seed=1)
    assert set(mean_similarities(outputs, torch.zeros(9, dtype=torch.int64))) == {(0, 0)}


def test_modality_with_one_token_has_no_term_of_its_own() -> None:
    outputs, _ = sample(6, 8, 1, seed=1)
    types = torch.tensor([1, 1, 1, 0, 1, 3])
    found = mean_similarities(outputs, types)
    assert set(found) == {(0, 1), (0, 3), (1, 1), (1, 3)}
    assert found == pytest.approx(slow_similarities(outputs, types.tolist()), abs=1e-6)


@pytest.mark.parametrize("positive_only", [False, True])
@pytest.mark.parametrize("tokens", [0, 1])
def test_without_two_tokens_there_is_no_term(tokens: int, positive_only: bool) -> None:
    found = mean_similarities(
        torch.ones(tokens, 8), torch.zeros(tokens, dtype=torch.int64), positive_only
    )
    assert found == {}
    assert importance(found) == 0.0


@pytest.mark.parametrize("positive_only", [False, True])
def test_zero_vector_is_similar_to_nothing(positive_only: bool) -> None:
    outputs, types = sample(12, 8, 2, seed=2)
    outputs[3] = outputs[7] = 0.0
    found = mean_similarities(outputs, types, positive_only)
    assert found == pytest.approx(
        slow_similarities(outputs, types.tolist(), positive_only), abs=1e-6
    )


def test_positive_only_without_positive_pairs_is_zero() -> None:
    outputs = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    found = mean_similarities(outputs, torch.tensor([0, 0, 1]), positive_only=True)
    assert found == {(0, 0): 0.0, (0, 1): 0.0}


def test_identical_tokens_have_no_diversity() -> None:
    outputs = torch.randn(1, 32).expand(50, 32)
    found = mean_similarities(outputs, torch.arange(50) % 2)
    assert all(value == pytest.approx(1.0, abs=1e-6) and value <= 1.0 for value in found.values())
    assert 0.0 <= importance(found) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(dtype: torch.dtype) -> None:
    outputs, types = sample(60, 32, 2, seed=3)
    outputs = (outputs * 300).to(dtype)  # squares overflow fp16
    assert mean_similarities(outputs, types) == mean_similarities(outputs.float(), types)


@pytest.mark.parametrize("positive_only", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_not_finite_give_nan(bad: float, positive_only: bool) -> None:
    outputs, types = sample(10, 8, 2, seed=4)
    outputs[5, 2] = bad
    tracker = DiversityTracker(positive_only)
    tracker.update(outputs, types)
    assert math.isnan(tracker.importance)


def test_shapes_that_do_not_agree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"token_types \[tokens\]"):
        mean_similarities(torch.ones(4, 8), torch.zeros(3, dtype=torch.int64))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 4), st.integers(0, 10_000))
def test_order_and_length_of_tokens_do_not_matter(tokens: int, modalities: int, seed: int) -> None:
    outputs, types = sample(tokens, 8, modalities, seed)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    lengths = torch.rand(tokens, 1, generator=torch.Generator().manual_seed(seed)) + 0.1
    found = mean_similarities((outputs * lengths)[order], types[order])
    assert found == pytest.approx(mean_similarities(outputs, types), abs=1e-6)


def test_importance_is_the_sum_of_the_terms() -> None:
    assert importance({(0, 0): 0.5, (0, 1): -0.25, (1, 1): 1.0}) == pytest.approx(0.5 + 1.25)


def test_tracker_averages_over_samples_and_over_samples_with_the_pair() -> None:
    text, _ = sample(7, 8, 1, seed=5)
    mixed, types = sample(20, 8, 2, seed=6)
    tracker = DiversityTracker()
    tracker.update(text, torch.zeros(7, dtype=torch.int64))
    tracker.update(mixed, types)
    one, two = (
        slow_similarities(text, [0] * 7),
        slow_similarities(mixed, types.tolist()),
    )
    assert tracker.samples == 2
    assert tracker.importance == pytest.approx((importance(one) + importance(two)) / 2, abs=1e-6)
    assert tracker.similarities == pytest.approx(
        {(0, 0): (one[0, 0] + two[0, 0]) / 2, (0, 1): two[0, 1], (1, 1): two[1, 1]}, abs=1e-6
    )


def test_tracker_can_be_read_between_samples() -> None:
    first, types = sample(20, 8, 2, seed=7)
    tracker = DiversityTracker()
    assert (tracker.importance, tracker.similarities, tracker.samples) == (0.0, {}, 0)
    tracker.update(first, types)
    assert tracker.similarities == mean_similarities(first, types)
    tracker.update(first, types)
    assert tracker.similarities == pytest.approx(mean_similarities(first, types))


def test_sample_of_one_token_does_not_dilute_the_mean() -> None:
    outputs, types = sample(20, 8, 2, seed=8)
    tracker = DiversityTracker()
    tracker.update(outputs, types)
    before = tracker.importance
    tracker.update(outputs[:1], types[:1])
    assert tracker.importance == before
    assert tracker.samples == 2


def test_tracker_keeps_no_graph() -> None:
    outputs, types = sample(20, 8, 2, seed=9)
    tracker = DiversityTracker()
    tracker.update(outputs.requires_grad_(), types)
    assert tracker.importance > 0
    assert mean_similarities(outputs, types) == tracker.similarities
