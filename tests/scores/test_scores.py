"""Scores compare some rows at a time, and prune as if they compared the whole weight."""

from __future__ import annotations

import pytest
import torch

from tamp_modifier.masks import magnitude_mask, wanda_mask
from tamp_modifier.scores import get_score, rowwise


@pytest.mark.parametrize("at_once", [1, 48, 100, 1 << 22])
@pytest.mark.parametrize(("sparsity", "structure"), [(0.37, "0:0"), (0.5, "2:4")])
def test_rows_at_a_time_give_the_mask_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, at_once: int, sparsity: float, structure: str
) -> None:
    monkeypatch.setattr(rowwise, "AT_ONCE", at_once)
    weight, inputs = torch.randn(23, 24).bfloat16(), torch.randn(9, 24)
    wanda, magnitude = get_score("wanda"), get_score("magnitude")
    statistics = wanda.statistics(24)
    statistics.update(inputs)
    keep = wanda_mask(weight, inputs.square().mean(0), sparsity, structure)
    pruned = wanda.prune(weight.clone(), statistics, sparsity, structure)
    assert torch.equal(pruned, weight.masked_fill(~keep, 0))
    keep = magnitude_mask(weight, sparsity, structure)
    pruned = magnitude.prune(weight.clone(), magnitude.statistics(24), sparsity, structure)
    assert torch.equal(pruned, weight.masked_fill(~keep, 0))
