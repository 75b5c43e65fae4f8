"""The sequential solver: prunes columns one after the other, and the rest makes up for each.

With w a row of the weight, q the row that replaces it and H the Hessian of the inputs, the error of
the outputs is (w - q) H (w - q)^T. Let H = R R^T with R upper triangular. Then the error is the sum
over columns j of

    ((w - q) R)_j^2 = R_jj^2 (v_j - q_j)^2,    v_j = w_j + sum over i < j of (w_i - q_i) R_ij / R_jj

and v_j depends on the columns before j only. A weight that stays becomes v_j and costs nothing, one
that goes costs (R_jj v_j)^2: that is what the choice compares. These are the updates of optimal
brain surgery as in SparseGPT (Frantar and Alistarh, arXiv 2301.00774), which gets them from a
Cholesky factor of H^-1, U = R^-1. Working with R saves inverting H and factorising the inverse,
three quarters of the preparation.

Columns are taken in blocks of `BLOCK`. What all blocks before it did to a block is one matrix
product; within the block halves do the same to each other, down to single columns. All matrices
are kept transposed, so that a column of the weight lies in one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tamp_modifier.masks import keep_largest, parse_mask_structure, pruned_columns, wanda_mask

BLOCK = 128  # columns, as in the paper

Quantize = Callable[[Tensor, int], Tensor]
"""Rounds the weights [out] of one column, given its index; zero has to stay zero."""


@dataclass(frozen=True, eq=False)
class Factor:
    """A Hessian, made ready for `solve`; serves all weights that read the same inputs.

    Attributes:
        upper: fp32 [in, in], R above: upper triangular with a positive diagonal.
        order: int64 [in], the column of the weight that comes at each place, or None as they are.
    """

    upper: Tensor
    order: Tensor | None = None


@torch.no_grad()
def factorize(hessian: Tensor, order: Tensor | None = None) -> Factor:
    """Factorise a Hessian.

    Args:
        hessian: fp32 [in, in], positive definite: damped, see `damp`.
        order: int64 [in], in which the columns are pruned, see `loss_order`; as they are if None.

    Raises:
        ValueError: not square, not finite or not positive definite; no order of its columns.
    """
    columns = len(hessian)
    if hessian.shape != (columns, columns):
        raise ValueError(f"hessian must be [in, in], got {tuple(hessian.shape)}")
    if order is not None:
        if order.shape != (columns,) or not torch.equal(
            order.sort().values, torch.arange(columns, device=order.device)
        ):
            raise ValueError(f"order must hold every column of {columns} once")
        hessian = hessian[order][:, order]
    # Cholesky gives H = L L^T with L lower; from the last column to the first it gives R R^T.
    lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if int(failed) or not bool(torch.isfinite(lower.diagonal()).all()):
        raise ValueError("the Hessian is not positive definite in fp32; try a larger damping")
    return Factor(lower.flip(0, 1), order)


@torch.no_grad()
def solve(
    weight: Tensor,
    factor: Factor,
    sparsity: float,
    mask_structure: str = "0:0",
    *,
    per_row: float = 0.0,
    quantize: Quantize | None = None,
) -> Tensor:
    """Prune one Linear and adapt the weights that stay.

    Args:
        weight: [out, in], any floating dtype, finite.
        factor: of the Hessian of its inputs.
        sparsity: share of the weights that goes, in [0, 1]; with N:M the structure decides.
        mask_structure: "0:0" or "N:M"; groups are of M columns that lie side by side in `weight`.
        per_row: from 0, compare weights over all rows of a block, to 1, within each row, which
            gives all rows the same number of zeros; see `_relative`. N:M is within rows always.
        quantize: rounds what stays, column by column, so that the columns that follow make up for
            the rounding as well.

    Returns:
        fp32 [out, in]. `pruned_columns` weights of every row are zero, on average over rows if
        `per_row` is below 1; of equal weights those of the first columns and rows go. Weights that
        stay may be zero by chance or, with `quantize`, by rounding.

    Raises:
        ValueError: shapes that do not agree, columns not divisible by M, an order that tears groups
            of M apart, sparsity or `per_row` out of range.
    """
    rows, columns = weight.shape
    prune_n, prune_m = parse_mask_structure(mask_structure)
    _check(weight, factor, sparsity, mask_structure, per_row)
    upper, order = factor.upper, factor.order
    turned = weight.t() if order is None else weight.t()[order]
    # [in, out]; becomes weight minus result, block by block. A copy in any case.
    rest = torch.empty(turned.shape, dtype=torch.float32, device=weight.device).copy_(turned)
    result = torch.empty_like(rest)
    places = range(columns) if order is None else order.tolist()
    each = pruned_columns(columns, sparsity)
    size = _block_size(max(prune_m, 1))
    for start in range(0, columns, size):
        end = min(start + size, columns)
        within = upper[start:end, start:end]
        # What the columns before this block make up for in it; its own are not pruned yet.
        inverse = torch.linalg.solve_triangular(
            within, torch.eye(end - start, device=within.device), upper=True
        )
        pending = upper[:start, start:end].t() @ rest[:start]
        values = torch.addmm(rest[start:end], inverse.t(), pending)
        block = _Block(values, inverse, within.diagonal(), prune_n, prune_m)
        if quantize is not None:
            block.quantize, block.places = quantize, places[start:end]
        if not prune_m:
            scores = (values * block.diagonal[:, None]).square_()
            of_row = each * end // columns - each * start // columns
            if per_row == 1:
                block.drop = _smallest_by_row(scores, of_row)
            else:
                count = rows * each * end // columns - rows * each * start // columns
                block.drop = _smallest(_relative(scores, of_row, per_row), count)
        result[start:end] = block.run()
        rest[start:end] -= result[start:end]
    if order is not None:
        result = rest.index_copy_(0, order, result)
    return result.t().contiguous()


@dataclass(eq=False)
class _Block:
    """Some neighbouring columns, from their values before any of them is pruned to the result.

    Attributes:
        values: fp32 [columns, out].
        inverse: fp32 [columns, columns], inverse of their part of R.
        diagonal: fp32 [columns], of R.
        prune_n, prune_m: of N:M; 0 where `drop` is given.
        drop: bool [columns, out], the weights that go; with N:M found on the way.
        quantize, places: rounding, and the index that it knows each column by.
    """

    values: Tensor
    inverse: Tensor
    diagonal: Tensor
    prune_n: int
    prune_m: int
    drop: Tensor = field(init=False)
    quantize: Quantize | None = None
    places: range | list[int] = field(default_factory=list)

    def run(self) -> Tensor:
        """Prune all columns; returns `values`."""
        self._errors = torch.empty_like(self.values)  # times R_jj: what others make up for
        if self.prune_m:
            self.drop = torch.zeros_like(self.values, dtype=torch.bool)
            self._dropped = torch.zeros_like(self.values)
        else:
            self._dropped = self.drop * self.diagonal[:, None]
        self._prune(0, len(self.values))
        return self.values.masked_fill_(self.drop, 0.0)

    def _prune(self, start: int, end: int) -> None:
        """Prune columns that the ones before them have changed already."""
        if end - start == self.prune_m:
            scores = (self.values[start:end] * self.diagonal[start:end, None]).square_()
            self.drop[start:end] = _smallest_by_row(scores, self.prune_n)
            self._dropped[start:end] = self.drop[start:end] * self.diagonal[start:end, None]
        if end - start == 1:
            self._prune_column(start)
            return
        unit = self.prune_m if end - start > self.prune_m > 0 else 1
        middle = start + max((end - start) // 2 // unit, 1) * unit
        self._prune(start, middle)
        self.values[middle:end].addmm_(
            self.inverse[start:middle, middle:end].t(), self._errors[start:middle], alpha=-1.0
        )
        self._prune(middle, end)

    def _prune_column(self, column: int) -> None:
        value, error = self.values[column], self._errors[column]
        if self.quantize is None:
            torch.mul(value, self._dropped[column], out=error)
            return
        rounded = self.quantize(value, self.places[column])
        rounded = rounded.to(value).masked_fill(self.drop[column], 0.0)
        torch.sub(value, rounded, out=error).mul_(self.diagonal[column])
        value.copy_(rounded)


def _relative(scores: Tensor, count: int, power: float) -> Tensor:
    """Divide scores [columns, out] by a power of what a choice within their row would go by.

    A row's threshold is the largest score that goes where `count` of every row go. With power 0
    scores stay as they are, with 1 each row is compared with its own threshold, so about `count` of
    each go.
    """
    if power == 0 or count == 0:
        return scores
    thresholds = scores.kthvalue(count, dim=0).values
    return scores.div_(thresholds.clamp_min_(torch.finfo(scores.dtype).tiny).pow_(power))


def _smallest(scores: Tensor, count: int) -> Tensor:
    """Mask [columns, out] of the `count` smallest in all; of equal ones the first."""
    if count in (0, scores.numel()):
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    last = scores.flatten().kthvalue(count).values
    found = scores < last
    equal = (scores == last).flatten().nonzero().flatten()
    found.view(-1)[equal[: count - int(found.sum())]] = True
    return found


def _smallest_by_row(scores: Tensor, count: int) -> Tensor:
    """Mask [columns, out] of the `count` smallest of every row; of equal ones the first."""
    return keep_largest(scores.t(), count).logical_not_().t()


def activation_order(hessian: Tensor, prune_m: int = 0) -> Tensor:
    """Order of columns by their mean squared input, largest first, as GPTQ's act-order.

    Args:
        hessian: fp32 [in, in].
        prune_m: M of N:M, whose groups stay together; 0 without.

    Returns:
        int64 [in].
    """
    return _descending(hessian.diagonal(), max(prune_m, 1))


@torch.no_grad()
def loss_order(
    weight: Tensor, hessian: Tensor, sparsity: float, mask_structure: str = "0:0"
) -> Tensor:
    """Order of columns by what pruning them will cost, most first, so that many can make up for it.

    As ROSE has it (Su and Wang, arXiv 2603.05878): columns change places within their block, and
    whole blocks with each other; a last block that is not full stays last. What a column will cost
    is Wanda's metric, squared, of the weights that Wanda would prune.

    Args:
        weight: [out, in].
        hessian: fp32 [in, in], of its inputs.
        sparsity: share of the weights that goes; with N:M the structure decides.
        mask_structure: "0:0" or "N:M", whose groups stay together.

    Returns:
        int64 [in].
    """
    scalars, unit = hessian.diagonal(), max(parse_mask_structure(mask_structure)[1], 1)
    kept = wanda_mask(weight, scalars, sparsity, mask_structure)
    losses = weight.float().square().masked_fill_(kept, 0.0).sum(0) * scalars
    parts = losses.split(_block_size(unit))
    full = len(losses) // _block_size(unit)
    costs = [float(part.sum()) for part in parts]
    blocks = sorted(range(len(parts)), key=lambda block: (block >= full, -costs[block]))
    places = [block * _block_size(unit) + _descending(parts[block], unit) for block in blocks]
    return torch.cat(places)


def _descending(values: Tensor, unit: int) -> Tensor:
    """Places of `values`, the largest first; neighbours in units that stay together."""
    units = values.view(-1, unit).sum(1).argsort(descending=True, stable=True)
    return (units[:, None] * unit + torch.arange(unit, device=values.device)).flatten()


def _block_size(unit: int) -> int:
    """Columns of a block that holds whole units."""
    return max(BLOCK // unit, 1) * unit


def _check(
    weight: Tensor, factor: Factor, sparsity: float, mask_structure: str, per_row: float
) -> None:
    prune_m = parse_mask_structure(mask_structure)[1]
    if weight.ndim != 2 or weight.shape[1] != len(factor.upper):
        raise ValueError(
            f"weight must be [out, {len(factor.upper)}] as its Hessian, got {tuple(weight.shape)}"
        )
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must be in [0, 1], got {sparsity}")
    if not 0.0 <= per_row <= 1.0:
        raise ValueError(f"per_row must be in [0, 1], got {per_row}")
    if not prune_m:
        return
    columns = weight.shape[1]
    if columns % prune_m:
        raise ValueError(f"{mask_structure} needs columns divisible by {prune_m}, got {columns}")
    if factor.order is not None:
        groups = factor.order.view(-1, prune_m)
        first = groups[:, :1]
        together = first + torch.arange(prune_m, device=first.device)
        if bool((first % prune_m).any()) or not torch.equal(groups, together):
            raise ValueError(f"the order of columns tears groups of {prune_m} apart")
