"""The allocation rules by name: measurements of the dense model -> sparsity per Linear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tamp_modifier.allocation.base import Allocation
from tamp_modifier.allocation.budget import round_to_budget
from tamp_modifier.allocation.das import DAS, DASNumel, Uniform
from tamp_modifier.allocation.layerwise import ATP, DLP, OWL
from tamp_modifier.messages import some
from tamp_modifier.options import with_options

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "allocate_sparsity",
    "explicit_allocation",
    "get_allocation",
    "round_to_budget",
]


ALLOCATIONS: dict[str, Allocation] = {
    rule.name: rule for rule in (DAS(), DASNumel(), Uniform(), OWL(), DLP(), ATP())
}


def get_allocation(name: str, **options: Any) -> Allocation:
    """Return the allocation rule called `name`, with its own options.

    Raises:
        ValueError: an unknown name, an option that the rule does not have or that is out of range.
    """
    if name not in ALLOCATIONS:
        raise ValueError(f"allocation must be one of {', '.join(ALLOCATIONS)}, got {name!r}")
    return with_options(ALLOCATIONS[name], f"allocation {name!r}", options)


def allocate_sparsity(
    importance: Mapping[str, float],
    numel: Mapping[str, int],
    sparsity: float,
    max_sparsity: float,
) -> dict[str, float]:
    """Share the sparsity out by DAS (TAMP, arXiv 2504.09897; the rule "das").

    Args:
        importance: Linear -> importance, not negative. If all are 0 every Linear gets `sparsity`.
        numel: Linear -> number of weights.
        sparsity: share of all weights that is pruned, in (0, 1).
        max_sparsity: cap of a single Linear, in [sparsity, 1].

    Returns:
        Linear -> sparsity in [0, max_sparsity]; numel x sparsity sums up to sparsity x total.

    Raises:
        ValueError: values out of range; importance missing, negative or not finite (with the name).
    """
    return ALLOCATIONS["das"](importance, numel, sparsity, max_sparsity)


def explicit_allocation(
    sparsities: Mapping[str, float], numel: Mapping[str, int]
) -> dict[str, float]:
    """Check sparsities that the user gives for every Linear by name.

    Raises:
        ValueError: a Linear without a sparsity, a name that is no target Linear, a value outside
            [0, 1).
    """
    missing = [name for name in numel if name not in sparsities]
    unknown = [name for name in sparsities if name not in numel]
    if missing:
        raise ValueError(f"allocation gives no sparsity for {some(missing)}")
    if unknown:
        raise ValueError(f"allocation names Linears that are not targets: {some(unknown)}")
    for name, value in sparsities.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"allocation[{name!r}] must be in [0, 1), got {value}")
    return {name: float(sparsities[name]) for name in numel}
