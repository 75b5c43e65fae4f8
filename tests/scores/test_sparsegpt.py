"""SparseGPT with our solver: exact counts, damping, and agreement with upstream."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight
from torch import Tensor

from tamp_modifier.masks import pruned_columns, wanda_mask
from tamp_modifier.scores import get_score
from tamp_modifier.scores.damping import damp, oas
from tamp_modifier.scores.sparsegpt import sparsegpt_weight
from tamp_modifier.statistics import Hessian, NonFiniteError, RowScalars


def tokens_of(count: int, features: int, seed: int = 0) -> Tensor:
    """Tokens whose features are correlated and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=torch.Generator().manual_seed(99))
    mixing *= torch.logspace(0, -2, features)[:, None]
    return torch.randn(count, features, generator=generator) @ mixing


def hessian_of(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs / len(inputs)


def slow_sparsegpt(weight: Tensor, hessian: Tensor, pruned: int) -> Tensor:
    """Algorithm 1 of the paper for one block: mask first, then column after column."""
    work = weight.double()
    inverse = torch.linalg.inv(hessian.double())
    factor = torch.linalg.cholesky(inverse, upper=True)
    metric = work.square() / factor.diagonal().square()
    mask = torch.ones_like(work, dtype=torch.bool).flatten()
    mask[metric.flatten().argsort()[:pruned]] = False
    mask = mask.view_as(work)
    for j in range(work.shape[1]):
        error = (work[:, j] * ~mask[:, j]) / factor[j, j]
        work[:, j:] -= error[:, None] * factor[j, j:]
    return work * mask


def test_one_block_is_the_algorithm_of_the_paper() -> None:
    weight, inputs = torch.randn(24, 32), tokens_of(200, 32)
    damped = damp(hessian_of(inputs), 200, 0.05)
    found = sparsegpt_weight(weight, hessian_of(inputs), 200, 0.5, damping=0.05)
    torch.testing.assert_close(
        found, slow_sparsegpt(weight, damped, 24 * 16).float(), rtol=1e-3, atol=1e-4
    )


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.sampled_from([8, 100, 128, 130, 300]),
    sparsity=st.floats(0.0, 1.0),
    tokens=st.integers(1, 50),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_linear_has_exactly_as_many_zeros_as_with_wanda(
    rows: int, columns: int, sparsity: float, tokens: int, dtype: torch.dtype
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    inputs = tokens_of(tokens, columns)
    inputs[:, :3] = 0  # features that were never active
    before = weight.clone()
    found = sparsegpt_weight(weight, hessian_of(inputs), tokens, sparsity)
    wanda = wanda_mask(weight, inputs.square().mean(0), sparsity)
    assert (
        int((found == 0).sum()) == int((~wanda).sum()) == rows * pruned_columns(columns, sparsity)
    )
    assert found.dtype == dtype and bool(found.isfinite().all())
    assert torch.equal(weight, before)


def test_weights_that_tie_do_not_go_together() -> None:
    # bf16 weights take few values, and upstream prunes all that equal the last one.
    weight = torch.randint(1, 4, (64, 256)).to(torch.bfloat16)
    found = sparsegpt_weight(weight, torch.eye(256), 10**6, 0.5)
    assert int((found == 0).sum()) == 64 * 128


def test_zeros_of_the_dense_weight_stay_and_count() -> None:
    weight = torch.randn(32, 256) * (torch.rand(32, 256) > 0.4)
    hessian = hessian_of(tokens_of(300, 256))
    found = sparsegpt_weight(weight, hessian.clone(), 300, 0.5)
    assert int((found == 0).sum()) == 32 * 128
    already = int((weight == 0).sum())
    fewer = sparsegpt_weight(weight, hessian, 300, 0.1)
    assert int((fewer == 0).sum()) == already


def test_rows_may_differ_but_their_mean_does_not() -> None:
    weight = torch.randn(32, 128) * torch.linspace(0.2, 2, 32)[:, None]
    found = sparsegpt_weight(weight, hessian_of(tokens_of(500, 128)), 500, 0.5)
    zeros = (found == 0).sum(1)
    assert len(set(zeros.tolist())) > 1
    assert int(zeros.sum()) == 32 * 64


@pytest.mark.parametrize("structure", ["2:4", "4:8", "1:4", "3:6"])
def test_every_group_has_its_zeros(structure: str) -> None:
    n, m = map(int, structure.split(":"))
    weight = torch.randn(16, 45 * m)
    found = sparsegpt_weight(weight, hessian_of(tokens_of(64, 45 * m)), 64, n / m, structure)
    assert bool(((found == 0).view(-1, m).sum(1) == n).all())


@pytest.mark.parametrize("structure", ["0:0", "2:4"])
def test_with_many_tokens_it_is_upstream_with_a_relative_damping(structure: str) -> None:
    weight, inputs = torch.randn(48, 320), tokens_of(20_000, 320)
    n, m = map(int, structure.split(":"))
    linear = torch.nn.Linear(320, 48, bias=False)
    linear.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    hessian = hessian_of(inputs)
    hessian = 0.9 * hessian + 0.1 * torch.diag(hessian.diagonal())
    _, theirs = sparsify_weight(linear, {linear: hessian}, 0.5, n, m, 128, 0.0, False)
    ours = sparsegpt_weight(weight, hessian_of(inputs), 20_000, 0.5, structure, damping=0.1)
    assert float(((ours == 0) == (theirs == 0)).double().mean()) > 0.999
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05


def test_with_one_token_weights_stay_and_the_metric_is_wandas() -> None:
    weight, inputs = torch.randn(1, 64), tokens_of(1, 64)
    assert oas(64.0**2, 64, 1) == 1.0
    found = sparsegpt_weight(weight, hessian_of(inputs), 1, 0.5)
    mask = wanda_mask(weight, inputs.square().mean(0), 0.5)
    assert torch.equal(found != 0, mask)
    torch.testing.assert_close(found, weight * mask, rtol=1e-4, atol=0)


@pytest.mark.parametrize("tokens", [8, 32, 2000])
def test_new_tokens_are_reproduced_better_than_by_wanda(tokens: int) -> None:
    weight, inputs, new = torch.randn(64, 128), tokens_of(tokens, 128), tokens_of(500, 128, seed=1)

    def error(pruned: Tensor) -> float:
        return float((new @ (weight - pruned).T).norm() / (new @ weight.T).norm())

    ours = error(sparsegpt_weight(weight, hessian_of(inputs), tokens, 0.6))
    # What SparseGPT does without regard to the number of tokens.
    raw = hessian_of(inputs)
    raw += 1e-4 * torch.diag(raw.diagonal())
    linear = torch.nn.Linear(128, 64, bias=False)
    linear.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    undamped = error(sparsify_weight(linear, {linear: raw}, 0.6, 0, 0, 128, 0.0, False)[1])
    wanda = error(weight * wanda_mask(weight, inputs.square().mean(0), 0.6))
    assert ours <= 1.02 * wanda
    assert ours <= 1.05 * undamped
    if tokens < 128:
        assert ours < undamped


def test_shrinkage_is_the_published_formula_and_falls_with_the_tokens() -> None:
    inputs = tokens_of(50, 40)
    size = inputs.square().mean(0).sqrt()
    correlation = hessian_of(inputs) / size / size[:, None]
    trace, squared = float(correlation.trace()), float((correlation @ correlation).trace())
    # Equation 23 of arXiv 0907.4698, with p = 40 features and n = 50 samples.
    above = (1 - 2 / 40) * squared + trace**2
    below = (50 + 1 - 2 / 40) * (squared - trace**2 / 40)
    assert oas(squared, 40, 50) == pytest.approx(min(1.0, above / below), rel=1e-5)
    shares = [oas(squared, 40, count) for count in (1, 10, 100, 10_000)]
    assert shares == sorted(shares, reverse=True) and shares[-1] < 0.01
    assert oas(40.0, 40, 10) == 1.0  # nothing to shrink


def test_damping_shrinks_correlations_and_leaves_the_diagonal() -> None:
    inputs = tokens_of(30, 16)
    before = hessian_of(inputs)
    after = damp(before.clone(), 30, 0.3) * before.diagonal().mean()
    torch.testing.assert_close(after.diagonal(), before.diagonal())
    ratio = (after / before)[~torch.eye(16, dtype=torch.bool)]
    assert float(ratio.max() - ratio.min()) < 1e-4
    assert float(ratio.mean()) <= 0.7 + 1e-4


def test_a_hessian_of_nothing_is_the_identity() -> None:
    assert torch.equal(damp(torch.zeros(5, 5), 3, 0.05), torch.eye(5))
    weight = torch.randn(4, 10)
    found = sparsegpt_weight(weight, torch.zeros(10, 10), 3, 0.5)
    kept = weight.flatten().abs().argsort(descending=True)[:20].sort().values
    assert torch.equal((found.flatten() != 0).nonzero().flatten(), kept)


def test_the_diagonal_of_the_hessian_is_the_row_scalars() -> None:
    hessian, scalars = Hessian(12), RowScalars(12)
    parts = [tokens_of(count, 12, seed=count) for count in (3, 1, 20)]
    for part in parts:
        hessian.update(part)
        scalars.update(part)
    assert hessian.tokens == scalars.tokens == 24
    everything = torch.cat(parts).double()
    found = hessian.result()
    torch.testing.assert_close(found.double(), everything.T @ everything / 24, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.diagonal(), scalars.result())


def test_a_hessian_refuses_what_row_scalars_refuse() -> None:
    with pytest.raises(ValueError, match=r"inputs must be \[tokens, 3\]"):
        Hessian(3).update(torch.ones(2, 4))
    with pytest.raises(ValueError, match="no calibration token"):
        Hessian(3).result()
    for bad in (math.nan, math.inf):
        hessian = Hessian(3)
        hessian.update(torch.tensor([[1.0, bad, 0.0]]))
        assert not hessian.is_finite()
        with pytest.raises(NonFiniteError):
            hessian.result()


def test_scores_and_their_options_are_checked() -> None:
    with pytest.raises(ValueError, match="wanda, .*, wanda_refit, got 'hessian'"):
        get_score("hessian")
    with pytest.raises(ValueError, match="score 'wanda' has no option 'damping'; it has none"):
        get_score("wanda", damping=0.1)
    with pytest.raises(ValueError, match=r"damping must be in \(0, 1\], got 0"):
        get_score("sparsegpt", damping=0)
    weight = torch.full((2, 4), math.nan)
    statistics = get_score("sparsegpt").statistics(4)
    statistics.update(torch.ones(2, 4))
    with pytest.raises(ValueError, match="weights are not finite"):
        get_score("sparsegpt").prune(weight, statistics, 0.5, "0:0")


def test_magnitude_looks_at_no_token() -> None:
    score = get_score("magnitude")
    assert not score.needs_tokens
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5], [-0.1, 0.2, 0.3, -0.4]])
    found = score.prune(weight.clone(), score.statistics(4), 0.5, "0:0")
    assert found.tolist() == [[0, -3, 2, 0], [0, 0, pytest.approx(0.3), pytest.approx(-0.4)]]
