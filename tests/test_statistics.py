"""Row scalars: a pooled mean of squares."""

from __future__ import annotations

import math

import pytest
import torch

from tamp_modifier.masks import wanda_mask
from tamp_modifier.statistics import RowScalars


def test_tokens_of_all_samples_are_pooled() -> None:
    samples = [torch.randn(n, 6, generator=torch.Generator().manual_seed(n)) for n in (3, 1, 40)]
    scalars = RowScalars(6)
    for sample in samples:
        scalars.update(sample)
    expected = torch.cat(samples).double().square().mean(0)
    assert scalars.tokens == 44
    assert scalars.result().dtype == torch.float32
    torch.testing.assert_close(scalars.result(), expected.float(), rtol=1e-6, atol=0)


def test_all_tokens_give_the_mask_of_wanda() -> None:
    # Wanda: the squared norm over all tokens divided by the number of samples.
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(50, 64, generator=generator) for _ in range(4)]
    weight = torch.randn(32, 64, generator=generator)
    scalars = RowScalars(64)
    for sample in samples:
        scalars.update(sample)
    wanda = torch.cat(samples).norm(dim=0).square() / len(samples)
    assert torch.equal(wanda_mask(weight, scalars.result(), 0.5), wanda_mask(weight, wanda, 0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_higher_precision(dtype: torch.dtype) -> None:
    inputs = torch.full((10_000, 2), 300.0, dtype=dtype)  # 300^2 overflows fp16
    scalars = RowScalars(2)
    scalars.update(inputs)
    assert scalars.result().tolist() == [90_000.0, 90_000.0]


def test_result_can_be_read_and_added_to() -> None:
    scalars = RowScalars(1)
    scalars.update(torch.tensor([[2.0]]))
    assert scalars.result().tolist() == [4.0]
    scalars.update(torch.tensor([[4.0], [4.0]]))
    assert scalars.result().tolist() == [12.0]


def test_a_sample_without_tokens_changes_nothing() -> None:
    scalars = RowScalars(3)
    scalars.update(torch.ones(2, 3))
    scalars.update(torch.ones(0, 3))
    assert scalars.tokens == 2
    assert scalars.result().tolist() == [1.0, 1.0, 1.0]


def test_no_graph_is_kept() -> None:
    scalars = RowScalars(3)
    scalars.update(torch.ones(2, 3, requires_grad=True))
    assert not scalars.result().requires_grad


def test_no_tokens_are_refused() -> None:
    scalars = RowScalars(3)
    with pytest.raises(ValueError, match="no calibration token"):
        scalars.result()
    scalars.update(torch.ones(0, 3))
    with pytest.raises(ValueError, match="no calibration token"):
        scalars.result()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_statistics_that_are_not_finite_are_refused(bad: float) -> None:
    scalars = RowScalars(3)
    inputs = torch.ones(2, 3)
    inputs[0, 1] = bad  # the square of 1e30 overflows
    scalars.update(inputs)
    with pytest.raises(ValueError, match="not finite"):
        scalars.result()


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[tokens, 3\], got \(2, 4\)"):
        RowScalars(3).update(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"\[tokens, 3\], got \(1, 2, 3\)"):
        RowScalars(3).update(torch.ones(1, 2, 3))
