"""The order of input columns in which an N:4 pattern costs least.

With N:4 the weights of four neighbouring columns compete. Where the layers before can give their
outputs in another order, it is free which columns are neighbours, and it matters: four columns that
are all important lose as much as four that are not. The order sought here keeps the most of Wanda's
metric |W_ij| sqrt(s_j).

The start is RIA's (arXiv 2402.00071): columns sorted by importance are dealt out to the groups in
turn. Then pairs of groups share their eight columns anew, a small exhaustive search as in Pool and
Yu (NeurIPS 2021): all 35 ways are compared and the best is taken, for all pairs of a random
matching at once. No round loses anything, and the search ends when rounds no longer gain.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

GROUP = 4
MOST_ROWS = 1024  # rows that are looked at, drawn at random; more change the choice little
MOST_ROUNDS = 200
PATIENCE = 10  # rounds over which the gain is measured
LEAST_GAIN = 1e-4  # of what the pattern removes

# Two groups of four out of eight columns, the first one always in the first group.
SPLITS = [
    (left, tuple(sorted(set(range(8)) - set(left))))
    for left in itertools.combinations(range(8), GROUP)
    if left[0] == 0
]


@torch.no_grad()
def kept_metric(metric: Tensor, prune_n: int) -> float:
    """Sum of the metric [rows, columns] that stays when N of every 4 columns go, in fp64."""
    groups = metric.reshape(len(metric), -1, GROUP)
    return float(groups.topk(GROUP - prune_n, dim=-1).values.sum(dtype=torch.float64))


@torch.no_grad()
def best_order(metric: Tensor, prune_n: int, seed: int = 0) -> Tensor:
    """Return the order of columns that keeps the most, as far as the search finds it.

    Args:
        metric: [rows, columns], not negative, columns divisible by 4.
        prune_n: N of N:4.
        seed: which groups meet in which round; the same seed gives the same order.

    Returns:
        int64 [columns] on the CPU: `metric[:, order]` keeps at least as much as `metric` of the
        rows that are looked at.

    Raises:
        ValueError: a shape or an N that does not fit.
    """
    rows, columns = metric.shape
    if not 0 < prune_n < GROUP or columns % GROUP:
        raise ValueError(
            f"N:4 with 0 < N < 4 and columns divisible by 4 can be permuted, got {prune_n}:4 and "
            f"{columns} columns"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(rows, generator=generator)[:MOST_ROWS].sort().values
    seen = metric[drawn.to(metric.device)].float().t().contiguous()  # [columns, rows]
    groups = _start(seen, prune_n)
    score = _kept(seen, groups, prune_n)
    total, history = float(seen.sum(dtype=torch.float64)), [score]
    for _ in range(MOST_ROUNDS if len(groups) > 1 else 0):
        shuffled = groups[torch.randperm(len(groups), generator=generator)]
        paired = len(groups) // 2 * 2
        pairs, rest = shuffled[:paired].view(-1, 2 * GROUP), shuffled[paired:]
        regrouped = _split_anew(seen, pairs, prune_n)
        groups = torch.cat([regrouped, rest])
        score = _kept(seen, groups, prune_n)
        history.append(score)
        lost = max(total - score, 1e-30)
        if len(history) > PATIENCE and score - history[-1 - PATIENCE] < LEAST_GAIN * lost:
            break
    return groups.flatten()


def _start(metric: Tensor, prune_n: int) -> Tensor:
    """Group [columns / 4, 4]: as they are, or dealt out by importance, whichever keeps more."""
    columns = metric.shape[0]
    as_they_are = torch.arange(columns).view(-1, GROUP)
    ranked = metric.sum(1).cpu().argsort(descending=True, stable=True)
    dealt = ranked.view(GROUP, -1).t().contiguous()
    return max((as_they_are, dealt), key=lambda groups: _kept(metric, groups, prune_n))


def _kept(metric: Tensor, groups: Tensor, prune_n: int) -> float:
    return float(_kept_of_four([metric[c] for c in groups.to(metric.device).t()], prune_n).sum())


def _split_anew(metric: Tensor, pairs: Tensor, prune_n: int) -> Tensor:
    """Return the best two groups of four out of each eight columns.

    Args:
        metric: [columns, rows].
        pairs: int64 [pairs, 8], the columns of two groups each.
        prune_n: N of N:4.

    Returns:
        int64 [2 * pairs, 4].
    """
    columns = [metric[c] for c in pairs.to(metric.device).t()]  # eight of [pairs, rows]
    kept = torch.stack(
        [
            _kept_of_four([columns[i] for i in left], prune_n)
            + _kept_of_four([columns[i] for i in right], prune_n)
            for left, right in SPLITS
        ]
    )  # [35, pairs]
    best = torch.tensor([left + right for left, right in SPLITS])[kept.argmax(0).cpu()]
    return pairs.gather(1, best).view(-1, GROUP)


def _kept_of_four(columns: list[Tensor], prune_n: int) -> Tensor:
    """Sum what stays of four columns [groups, rows] each over the rows: [groups], fp64."""
    a, b, c, d = columns
    if prune_n == 2:  # the largest of the six sums of two
        high = torch.maximum(a, b) + torch.maximum(c, d)
        kept = torch.maximum(high, torch.maximum(a + b, c + d))
    elif prune_n == 3:
        kept = torch.maximum(torch.maximum(a, b), torch.maximum(c, d))
    else:
        kept = a + b + c + d - torch.minimum(torch.minimum(a, b), torch.minimum(c, d))
    return kept.sum(1, dtype=torch.float64)
