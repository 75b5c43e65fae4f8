"""Experts that no calibration token was routed to: what they are pruned by, or why not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import torch
from loguru import logger

from tamp_modifier.calibration.targets import Target
from tamp_modifier.messages import some
from tamp_modifier.statistics import Statistics

POOLED, MAGNITUDE, ERROR = "pooled", "magnitude", "error"

REACHED = 0.5
"""Share of a layer's experts that must be reached before the rest is pruned unasked."""


def unreached_experts(targets: Sequence[Target], reached: Collection[str]) -> dict[str, list[str]]:
    """Find the experts' Linears without a routed token, in layers where others have some.

    Args:
        targets: the Linears.
        reached: names of those that a routed token has passed through.

    Returns:
        Name of such a Linear to the same projections of its layer's experts that were reached.
    """
    peers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for target in targets:
        if target.name in reached:
            peers[_place(target)].append(target.name)
    return {
        target.name: peers[_place(target)]
        for target in targets
        if target.expert is not None and target.name not in reached and peers[_place(target)]
    }


def why_not(targets: Sequence[Target], reached: Collection[str], choice: str | None) -> str | None:
    """Return why experts without a token may not be pruned; None where they may.

    Args:
        targets: the Linears.
        reached: names of those that a routed token has passed through.
        choice: "pooled", "magnitude", "error", or None: "pooled" where at least `REACHED` of a
            layer's experts were reached.
    """
    missed = unreached_experts(targets, reached)
    if choice == ERROR and missed:
        return f"no calibration token reached {_named(missed)}; give more samples"
    if choice is not None:
        return None
    experts: dict[str, dict[int, bool]] = defaultdict(dict)
    for target in targets:
        if target.experts is not None and target.expert is not None:
            own = experts[target.experts]
            own[target.expert] = own.get(target.expert, False) or target.name in reached
    for name, own in experts.items():
        count = sum(own.values())
        if 0 < count < REACHED * len(own):
            return (
                f"calibration tokens reached {count} of {len(own)} experts of {name} only, nothing "
                "was pruned; give more samples, or set unreached_experts to 'pooled' (by what the "
                "other experts saw) or 'magnitude'"
            )
    return None


def told(names: Iterable[str], choice: str | None) -> list[str]:
    """Warn of experts that were pruned without a token of their own.

    Args:
        names: their Linears.
        choice: see `why_not`.

    Returns:
        What the report says, with every expert; empty where there is none.
    """
    experts = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    if not experts:
        return []
    how = "by magnitude" if choice == MAGNITUDE else "by the tokens of their layer's other experts"
    start = f"{len(experts)} experts were reached by no calibration token and pruned {how}: "
    logger.warning(start + some(experts))
    return [start + ", ".join(experts)]


def add_up(pool: Statistics, parts: Iterable[Statistics], device: torch.device | str) -> None:
    """Add statistics of other Linears, which stay as they are, to those of one."""
    for part in parts:
        for total, sums in zip(pool.sums(device), part.sums(device), strict=True):
            total += sums.to(total)
        pool.tokens += part.tokens


def take_all_the_same(statistics: Statistics, width: int, device: torch.device | str) -> None:
    """Put in one token per feature, by which every score prunes by magnitude."""
    for first in range(0, width, 256):
        rows = torch.zeros(min(256, width - first), width, device=device)
        rows[torch.arange(len(rows)), first + torch.arange(len(rows))] = 1
        statistics.update(rows)


def _place(target: Target) -> tuple[str, str]:
    """Container and projection."""
    return target.experts or "", target.name.rpartition(".")[2]


def _named(names: Iterable[str]) -> str:
    experts = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    return f"{len(experts)} experts: {some(experts)}"
