"""How sparse each Linear gets, under one global budget."""

from typing import Any

from tamp_modifier import moved
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


def __getattr__(name: str) -> Any:
    return moved.look_up(__name__, moved.PARTS["allocation"], name)
