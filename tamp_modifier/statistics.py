"""Activation statistics of the selected tokens."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

STRIP = 512
"""Columns of a symmetric matrix that are computed at once: few enough to save almost half of it,
enough for the product to be a fast one."""


class NonFiniteError(ValueError):
    """Activations that are NaN or infinite."""


class Statistics(Protocol):
    """What a score keeps of the selected tokens of one Linear."""

    tokens: int

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """Add the selected tokens of one sample.

        Args:
            inputs: [n, in_features], any floating dtype.
            weights: [n], how much each token counts; only their ratios matter. None is 1 for all.
        """

    def is_finite(self) -> bool:
        """Whether the statistics so far are finite."""

    def sums(self, device: torch.device | str) -> list[Tensor]:
        """Return the tensors that add up over processes, in place; zeros on `device` if none is
        there.
        """


class RowScalars:
    """Mean of x_j^2 over all selected tokens of all samples, the activation term of Wanda.

    Tokens are pooled: unless they come with weights, a sample weighs as much as it has selected
    tokens. So with all tokens selected the result is Wanda's up to a constant factor, and the masks
    are the same.

    Args:
        in_features: width of the input.
        device: where the sums are kept; that of the first update by default.
    """

    def __init__(self, in_features: int, device: torch.device | str | None = None) -> None:
        self.in_features = in_features
        self.tokens = 0
        self._device = device
        self._sums: Tensor | None = None  # fp64 [in_features]
        self._weight: Tensor | None = None  # fp64 scalar

    @torch.no_grad()
    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """Add the selected tokens of one sample, see `Statistics`."""
        _check_inputs(inputs, self.in_features)
        sums, weight = self.sums(inputs.device if self._device is None else self._device)
        squares = inputs.float().square()
        if weights is not None:
            squares *= weights.to(squares)[:, None]
        sums += squares.sum(0).to(sums)
        weight += len(inputs) if weights is None else weights.double().sum().to(weight)
        self.tokens += inputs.shape[0]

    def is_finite(self) -> bool:
        """Whether the sums so far are finite."""
        return self._sums is None or bool(torch.isfinite(self._sums.float()).all())

    def sums(self, device: torch.device | str) -> list[Tensor]:
        """Return the sum of x_j^2, fp64 [in_features], and that of the weights."""
        if self._sums is None or self._weight is None:
            self._sums = torch.zeros(self.in_features, dtype=torch.float64, device=device)
            self._weight = torch.zeros((), dtype=torch.float64, device=device)
        return [self._sums, self._weight]

    def result(self) -> Tensor:
        """Mean of x_j^2, fp32 [in_features].

        Raises:
            ValueError: no token was seen.
            NonFiniteError: the mean is not finite.
        """
        if self._sums is None or self._weight is None or not float(self._weight) > 0:
            raise ValueError("no calibration token was selected, or all weigh nothing")
        scalars = (self._sums / self._weight).float()
        if not bool(torch.isfinite(scalars).all()):
            raise NonFiniteError("activation statistics are not finite")
        return scalars


class Hessian:
    """Mean of x x^T over all selected tokens of all samples, what SparseGPT needs.

    Tokens are pooled as in `RowScalars`, whose result is the diagonal of this one. Takes
    in_features^2 fp32 numbers.

    Args:
        in_features: width of the input.
    """

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self.tokens = 0
        self._weights: Tensor | None = None  # fp64 [2]: their sum and that of their squares
        self._sums: Tensor | None = None  # fp32 [in_features, in_features]

    @torch.no_grad()
    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """Add the selected tokens of one sample, see `Statistics`."""
        _check_inputs(inputs, self.in_features)
        sums, totals = self.sums(inputs.device)
        vectors = inputs.to(sums)
        if weights is None:
            _add_products(sums, vectors, vectors)
            totals += len(vectors)
        else:
            weights = weights.to(vectors)
            _add_products(sums, vectors * weights[:, None], vectors)
            exact = weights.double()
            totals += torch.stack((exact.sum(), exact.square().sum()))
        self.tokens += inputs.shape[0]

    @property
    def effective_tokens(self) -> int:
        """As many equal tokens would say as much: (sum of weights)^2 / sum of squared weights."""
        total, squares = (0.0, 0.0) if self._weights is None else self._weights.tolist()
        return round(total**2 / squares) if squares > 0 else 0

    def is_finite(self) -> bool:
        """Whether the sums so far are finite; their diagonal tells, as nothing is larger."""
        return self._sums is None or bool(torch.isfinite(self._sums.diagonal()).all())

    def sums(self, device: torch.device | str) -> list[Tensor]:
        """Return the sum of x x^T, fp32 [in_features, in_features] with some of its lower half left
        out, and those of weights and squares.
        """
        if self._sums is None or self._weights is None:
            size = (self.in_features, self.in_features)
            self._sums = torch.zeros(size, dtype=torch.float32, device=device)
            self._weights = torch.zeros(2, dtype=torch.float64, device=device)
        return [self._sums, self._weights]

    def result(self) -> Tensor:
        """Mean of x x^T, fp32 [in_features, in_features]; the sums themselves are used up.

        Raises:
            ValueError: no token was seen.
            NonFiniteError: the mean is not finite.
        """
        if self._sums is None or self._weights is None or not float(self._weights[0]) > 0:
            raise ValueError("no calibration token was selected, or all weigh nothing")
        if not self.is_finite():
            raise NonFiniteError("activation statistics are not finite")
        sums, self._sums = self._sums, None
        for start in range(0, self.in_features, STRIP):
            end = start + STRIP
            sums[end:, start:end] = sums[start:end, end:].T
        return sums.div_(self._weights[0].to(sums))


def _add_products(sums: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right, which is symmetric, without what lies below the diagonal's blocks."""
    for start in range(0, len(sums), STRIP):
        strip = left[:, start : start + STRIP].T
        sums[start : start + STRIP, start:].addmm_(strip, right[:, start:])


class TokenCount:
    """No statistics, for scores that look at the weights only."""

    def __init__(self, in_features: int) -> None:
        self.tokens = 0

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """Add the selected tokens of one sample, [n, in_features]."""
        self.tokens += inputs.shape[0]

    def is_finite(self) -> bool:
        """Nothing that could be otherwise."""
        return True

    def sums(self, device: torch.device | str) -> list[Tensor]:
        """Nothing to add up but the tokens."""
        return []


def _check_inputs(inputs: Tensor, in_features: int) -> None:
    if inputs.ndim != 2 or inputs.shape[1] != in_features:
        raise ValueError(f"inputs must be [tokens, {in_features}], got {tuple(inputs.shape)}")
