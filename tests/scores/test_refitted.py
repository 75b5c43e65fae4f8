"""Masks within rows, then the refit: scores obs, wanda_refit, and sparsegpt by rows."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tamp_modifier import TAMPModifier
from tamp_modifier.calibration.targets import Target
from tamp_modifier.masks import pruned_columns, wanda_mask
from tamp_modifier.pruning.pruner import Pruner
from tamp_modifier.scores import get_score, sparsegpt
from tamp_modifier.scores.damping import damp
from tamp_modifier.scores.solver import Factor, factorize
from tamp_modifier.statistics import Hessian

ROWS, COLUMNS, TOKENS = 32, 200, 900


def problem() -> tuple[Tensor, Tensor]:
    """A weight, and tokens whose features go together."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator)
    mixing *= torch.logspace(0, -2, COLUMNS)[:, None]
    inputs = torch.randn(TOKENS, COLUMNS, generator=generator) @ mixing
    return torch.randn(ROWS, COLUMNS, generator=generator), inputs


def pruned(name: str, sparsity: float = 0.5, structure: str = "0:0", **options: float) -> Tensor:
    weight, inputs = problem()
    score = get_score(name, **options)
    statistics = score.statistics(COLUMNS)
    statistics.update(inputs)
    return score.prune(weight, statistics, sparsity, structure)


def error(found: Tensor) -> float:
    """Of the outputs, relative."""
    weight, inputs = problem()
    return float((inputs @ (found - weight).T).norm() / (inputs @ weight.T).norm())


def by_wanda(weight: Tensor, hessian: Tensor) -> Tensor:
    return weight.square() * hessian.diagonal()


def by_obs(weight: Tensor, hessian: Tensor) -> Tensor:
    return weight.square() / torch.linalg.inv(hessian.double()).diagonal()


@pytest.mark.parametrize(("name", "metric"), [("wanda_refit", by_wanda), ("obs", by_obs)])
@pytest.mark.parametrize("sparsity", [0.3, 0.5])
def test_the_smallest_of_every_row_go(
    name: str, metric: Callable[[Tensor, Tensor], Tensor], sparsity: float
) -> None:
    weight, inputs = problem()
    hessian = damp(inputs.T @ inputs / TOKENS, TOKENS, 0.05)
    count = pruned_columns(COLUMNS, sparsity)
    gone = metric(weight, hessian).argsort(dim=1)[:, :count].sort(1).values
    for refit in (0, 8):
        zeros = pruned(name, sparsity, refit=refit) == 0
        assert torch.equal(zeros.nonzero()[:, 1].view(ROWS, count), gone)


def test_the_mask_of_wanda_refit_is_wandas() -> None:
    weight, inputs = problem()
    for structure in ("0:0", "2:4"):
        mask = wanda_mask(weight, inputs.square().mean(0), 0.5, structure)
        assert torch.equal(pruned("wanda_refit", structure=structure) != 0, mask)


def test_without_steps_the_weights_stay_and_with_steps_the_error_falls() -> None:
    weight, _ = problem()
    for name in ("wanda_refit", "obs"):
        plain = pruned(name, refit=0)
        assert torch.equal(plain, weight * (plain != 0))
        assert error(pruned(name)) < 0.8 * error(plain)
    assert error(pruned("obs")) < error(pruned("wanda_refit"))


def test_by_row_every_row_has_as_many_zeros() -> None:
    over_rows, within_rows = pruned("sparsegpt", 0.6), pruned("sparsegpt", 0.6, per_row=1)
    assert len(set((over_rows == 0).sum(1).tolist())) > 1
    assert (within_rows == 0).sum(1).tolist() == [120] * ROWS
    assert get_score("sparsegpt", per_row=1).by_row and not get_score("sparsegpt").by_row
    groups = (pruned("sparsegpt", structure="2:4", per_row=power) for power in (0, 1))
    assert torch.equal(*groups)


def test_options_of_the_modifier_reach_the_score() -> None:
    fields = TAMPModifier(score="sparsegpt", score_options={"per_row": 0.5, "refit": 4})
    assert get_score(fields.score, **fields.score_options) == get_score(
        "sparsegpt", per_row=0.5, refit=4
    )
    with pytest.raises(ValueError, match="per_row of score 'sparsegpt' must be a number"):
        get_score("sparsegpt", per_row=True)
    with pytest.raises(ValueError, match=r"per_row must be in \[0, 1\], got -1"):
        get_score("sparsegpt", per_row=-1)
    for name, option in (("obs", "damping"), ("wanda_refit", "refit")):
        with pytest.raises(ValueError, match=f"{option} of score '{name}' must be a number"):
            get_score(name, **{option: True})


def test_of_a_symmetric_sum_half_is_enough() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 1300, generator=generator)
    weights = torch.rand(40, generator=generator)
    plain, weighted = Hessian(1300), Hessian(1300)
    for part in (slice(0, 7), slice(7, 40)):
        plain.update(inputs[part])
        weighted.update(inputs[part], weights[part])
    found = plain.result()
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found, inputs.T @ inputs / 40, rtol=1e-4, atol=1e-5)
    wanted = (inputs.T * weights) @ inputs / weights.sum()
    torch.testing.assert_close(weighted.result(), wanted, rtol=1e-4, atol=1e-5)


def test_linears_that_read_the_same_inputs_share_one_factorisation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """q, k and v one, o its own; nothing is kept for the next layer."""
    made: list[Tensor] = []

    def counted(hessian: Tensor) -> Factor:
        made.append(hessian)
        return factorize(hessian)

    monkeypatch.setattr(sparsegpt, "factorize", counted)
    score = get_score("sparsegpt")
    inputs = dict.fromkeys("qkv", problem()[1]) | {"o": problem()[1].flip(0)[:500]}
    targets = [Target(name, nn.Linear(COLUMNS, ROWS), None) for name in inputs]
    statistics = {name: score.statistics(COLUMNS) for name in inputs}
    for name, seen in inputs.items():
        statistics[name].update(seen)
    one = dict.fromkeys(inputs, 0)
    pruner = Pruner(score, keep_removed=False)
    half, free = dict.fromkeys(inputs, 0.5), dict.fromkeys(inputs, "0:0")
    for layers in (1, 2):
        kept = {name: copy.deepcopy(each) for name, each in statistics.items()}
        pruner.prune_layer(targets, kept, half, free, one)
        assert len(made) == 2 * layers


def test_a_shared_factorisation_changes_nothing_and_is_freed() -> None:
    weight, inputs = problem()
    score = get_score("obs")

    def prune(weight: Tensor) -> Tensor:
        statistics = score.statistics(COLUMNS)
        statistics.update(inputs)
        return score.prune(weight, statistics, 0.5, "0:0")

    prune(weight.flip(0))
    assert torch.equal(prune(weight), pruned("obs"))
    score.forget()
    gc.collect()
    square = (COLUMNS, COLUMNS)
    assert not [t for t in gc.get_objects() if isinstance(t, Tensor) and t.shape == square]
