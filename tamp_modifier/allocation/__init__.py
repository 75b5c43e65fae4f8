"""How sparse each Linear gets, under one global budget."""

from tamp_modifier.allocation.base import Allocation
from tamp_modifier.allocation.budget import round_to_budget
from tamp_modifier.allocation.registry import (
    ALLOCATIONS,
    allocate_sparsity,
    explicit_allocation,
    get_allocation,
)

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "allocate_sparsity",
    "explicit_allocation",
    "get_allocation",
    "round_to_budget",
]
