"""AMIA against the paper's steps written as plain loops, and at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tamp_modifier.diversity import mean_similarities
from tamp_modifier.selection import SELECTIONS, get_selection
from tamp_modifier.selection.amia import TILE, pick_order, select_amia


def slow_amia(
    outputs: Tensor,
    types: Tensor,
    attention: Tensor,
    num_neighbors: int = 3,
    threshold: float = 0.1,
    positive_only: bool = False,
) -> list[int]:
    """The four steps, with every mean of the MMD taken over all pairs at every pick."""
    unit = torch.nn.functional.normalize(outputs.double(), dim=1)
    count = len(unit)
    cos = (unit @ unit.T).tolist()
    kernel = [
        [math.exp(-float((unit[i] - unit[j]).square().sum()) / 2) for j in range(count)]
        for i in range(count)
    ]
    near = [
        sorted((j for j in range(count) if j != i), key=lambda j, i=i: (-cos[i][j], j))
        for i in range(count)
    ]
    near = [neighbors[:num_neighbors] for neighbors in near]
    a = attention.tolist()
    score = [a[i] + sum(math.exp(cos[i][n] - 1) * a[n] for n in near[i]) for i in range(count)]
    terms = mean_similarities(outputs, types, positive_only).values()
    density = sum(terms) / len(terms) if terms else 0.0
    limit = threshold * math.sqrt(max(1 - density, 0.0))

    def mean_kernel(left: list[int], right: list[int]) -> float:
        return sum(kernel[i][j] for i in left for j in right) / (len(left) * len(right))

    everything = list(range(count))
    mean_all = mean_kernel(everything, everything)
    picked: list[int] = []
    while len(picked) < count:
        pick = max((i for i in everything if i not in picked), key=lambda i: (score[i], -i))
        gain = max(score[pick], 0.0)
        for n in near[pick]:
            score[n] -= math.exp(-0.2 * (1 - cos[pick][n])) * gain
        picked.append(pick)
        mmd = mean_all + mean_kernel(picked, picked) - 2 * mean_kernel(everything, picked)
        if mmd < limit:
            break
    return sorted(picked)


def sample(
    tokens: int, features: int, modalities: int, seed: int, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    types = torch.randint(modalities, (tokens,), generator=generator)
    centres = torch.randn(modalities, features, generator=generator)
    noise = torch.randn(tokens, features, generator=generator)
    attention = torch.randn(tokens, generator=generator).softmax(0)
    return centres[types] + spread * noise, types, attention


@pytest.mark.parametrize("positive_only", [False, True])
@pytest.mark.parametrize("num_neighbors", [1, 3, 7])
@pytest.mark.parametrize("tokens, threshold", [(5, 0.1), (30, 0.1), (60, 0.02), (90, 0.005)])
def test_picks_what_the_paper_picks(
    tokens: int, threshold: float, num_neighbors: int, positive_only: bool
) -> None:
    outputs, types, attention = sample(tokens, 24, 3, seed=tokens + num_neighbors)
    found = select_amia(
        outputs,
        types,
        attention,
        num_neighbors=num_neighbors,
        threshold=threshold,
        positive_only=positive_only,
    )
    assert found.tolist() == slow_amia(
        outputs, types, attention, num_neighbors, threshold, positive_only
    )


def test_picks_over_several_blocks_and_tiles() -> None:
    # More picks than the first block holds, and more tokens than one tile of the cosine matrix.
    outputs, types, attention = sample(TILE + 30, 48, 2, seed=3, spread=4.0)
    found = select_amia(outputs, types, attention, threshold=0.004).tolist()
    assert found == slow_amia(outputs, types, attention, threshold=0.004)
    assert 60 < len(found) < TILE + 30


def test_damping_at_distance_one_is_exp_of_minus_a_fifth() -> None:
    # After token 0, token 1 is left with 0.9 - 0.8187 = 0.0813, between tokens 2 and 3.
    scores, near = [1.0, 0.9, 0.083, 0.08], [[1], [0], [0], [0]]
    assert list(pick_order(scores, near, [[0.0]] * 4)) == [0, 2, 1, 3]


def test_negative_scores_do_not_raise_their_neighbors() -> None:
    scores, near = [-1.0, -2.0, -1.5], [[1], [0], [0]]
    assert list(pick_order(scores, near, [[1.0]] * 3)) == [0, 2, 1]


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40),
    features=st.integers(1, 12),
    modalities=st.integers(1, 4),
    threshold=st.sampled_from([0.0, 0.01, 0.1, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_always_ends_with_sorted_distinct_tokens(
    tokens: int, features: int, modalities: int, threshold: float, seed: int
) -> None:
    outputs, types, attention = sample(tokens, features, modalities, seed)
    found = select_amia(outputs, types, attention, threshold=threshold).tolist()
    assert 1 <= len(found) <= tokens
    assert found == sorted(set(found))
    assert set(found) <= set(range(tokens))
    assert found == select_amia(outputs, types, attention, threshold=threshold).tolist()


def test_zero_threshold_picks_every_token() -> None:
    outputs, types, attention = sample(500, 32, 2, seed=5)
    assert select_amia(outputs, types, attention, threshold=0.0).tolist() == list(range(500))


def test_a_larger_threshold_never_picks_more() -> None:
    outputs, types, attention = sample(120, 32, 2, seed=6)
    sizes = [
        len(select_amia(outputs, types, attention, threshold=t)) for t in (0.001, 0.01, 0.1, 1)
    ]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
def test_fewer_tokens_than_neighbors(tokens: int) -> None:
    outputs, types, attention = sample(tokens, 8, 2, seed=7)
    assert select_amia(outputs, types, attention).tolist() == slow_amia(outputs, types, attention)


@pytest.mark.parametrize("modality", [0, 1, 3])
def test_one_modality(modality: int) -> None:
    outputs, types, attention = sample(40, 8, 1, seed=8)
    types = types + modality
    assert select_amia(outputs, types, attention).tolist() == slow_amia(outputs, types, attention)


def test_identical_tokens_are_represented_by_the_most_attended() -> None:
    outputs = torch.randn(1, 16).expand(30, 16)
    attention = torch.full((30,), 0.02)
    attention[11] = 0.4
    # All neighbours are tied, and those of most tokens are the first three.
    assert select_amia(outputs, torch.zeros(30, dtype=torch.int64), attention).tolist() == [11]


def test_equal_scores_are_picked_by_index() -> None:
    # Four orthogonal tokens with the same attention: nothing tells them apart.
    outputs, types, attention = torch.eye(4), torch.zeros(4, dtype=torch.int64), torch.ones(4) / 4
    picks = [
        select_amia(outputs, types, attention, threshold=t).tolist() for t in (0.9, 0.25, 0.1, 0.0)
    ]
    assert [len(pick) for pick in picks] == sorted(len(pick) for pick in picks)
    assert all(pick == list(range(len(pick))) for pick in picks)


def test_attention_that_is_zero_everywhere() -> None:
    outputs, types, _ = sample(30, 8, 2, seed=9)
    found = select_amia(outputs, types, torch.zeros(30))
    assert found.tolist() == slow_amia(outputs, types, torch.zeros(30))


def test_zero_vectors_are_safe() -> None:
    outputs, types, attention = sample(30, 8, 2, seed=10)
    outputs[4:9] = 0.0
    found = select_amia(outputs, types, attention)
    assert 1 <= len(found) <= 30
    everything_zero = select_amia(torch.zeros(30, 8), types, attention)
    assert 1 <= len(everything_zero) <= 30


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_selected_in_fp32(dtype: torch.dtype) -> None:
    outputs, types, attention = sample(200, 32, 2, seed=11)
    outputs, attention = (outputs * 300).to(dtype), attention.to(dtype)
    found = select_amia(outputs, types, attention)
    assert found.tolist() == select_amia(outputs.float(), types, attention.float()).tolist()


def test_length_of_outputs_does_not_matter() -> None:
    outputs, types, attention = sample(80, 16, 2, seed=12)
    lengths = 2.0 ** torch.randint(-4, 5, (80, 1), generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        select_amia(outputs * lengths, types, attention), select_amia(outputs, types, attention)
    )


def test_inputs_are_left_alone() -> None:
    outputs, types, attention = sample(40, 16, 2, seed=13)
    copies = outputs.clone(), types.clone(), attention.clone()
    found = select_amia(outputs.requires_grad_(), types, attention)
    assert not found.requires_grad
    for before, after in zip(copies, (outputs.detach(), types, attention), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("where", ["outputs", "attention"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(where: str, bad: float) -> None:
    outputs, types, attention = sample(20, 8, 2, seed=14)
    if where == "outputs":
        outputs[3, 1] = bad
    else:
        attention[3] = bad
    with pytest.raises(ValueError, match="not finite"):
        select_amia(outputs, types, attention)


def test_shapes_that_do_not_agree_are_refused() -> None:
    outputs, types, attention = sample(20, 8, 2, seed=15)
    with pytest.raises(ValueError, match=r"outputs must be \[tokens > 0, features\]"):
        select_amia(outputs[:0], types[:0], attention[:0])
    with pytest.raises(ValueError, match="token_types must be"):
        select_amia(outputs, types[1:], attention)
    with pytest.raises(ValueError, match="attention must be"):
        select_amia(outputs, types, attention[1:])


def test_rules_have_their_names_and_needs() -> None:
    assert {name: rule.needs_attention for name, rule in SELECTIONS.items()} == {
        "amia": True,
        "all": False,
        "text": False,
        "drift": False,
        "balanced": False,
    }
    assert all(rule.name == name for name, rule in SELECTIONS.items())


def test_amia_rule_passes_its_options_on() -> None:
    outputs, types, attention = sample(60, 16, 2, seed=16)
    rule = get_selection("amia", num_neighbors=5, threshold=0.01, positive_only=True)
    assert rule.select(outputs, types, attention).tolist() == slow_amia(
        outputs, types, attention, 5, 0.01, True
    )
    with pytest.raises(ValueError, match="needs the attention"):
        rule.select(outputs, types, None)


def test_all_and_text_rules() -> None:
    outputs, types = torch.ones(5, 3), torch.tensor([1, 0, 2, 0, 3])
    assert get_selection("all").select(outputs, types, None).tolist() == [0, 1, 2, 3, 4]
    assert get_selection("text").select(outputs, types, None).tolist() == [1, 3]


def test_text_rule_takes_all_tokens_of_a_sample_without_text() -> None:
    found = get_selection("text").select(torch.ones(4, 3), torch.tensor([1, 1, 3, 2]), None)
    assert found.tolist() == [0, 1, 2, 3]


def test_unknown_rule_and_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="amia, all, text, balanced, drift, got 'best'"):
        get_selection("best")
    with pytest.raises(ValueError, match="num_neighbors must be an integer >= 1, got 0"):
        get_selection("amia", num_neighbors=0)
    with pytest.raises(ValueError, match="threshold must be finite and >= 0, got -1"):
        get_selection("amia", threshold=-1)
    with pytest.raises(ValueError, match="selection 'text' has no option 'threshold'; it has none"):
        get_selection("text", threshold=0.1)
