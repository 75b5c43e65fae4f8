"""What `mask_structure` asks for, and the pattern that each Linear gets from it.

========== ============ =============================================================
structure  sparsity     every Linear is
========== ============ =============================================================
"0:0"      any          unstructured, at the sparsity of the allocation
"N:M"      N / M        N:M
"N:M"      below N / M  N:M or dense, as the allocation decides
"n:M"      any          n:M with an n of its own, 0 <= n < M, as the allocation decides
========== ============ =============================================================

A pattern is the mask structure of one Linear: "0:0" or "N:M" as in `masks`, or "dense".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tamp_modifier.allocation.budget import round_to_budget
from tamp_modifier.allocation.nearest import Steps, nearest_steps
from tamp_modifier.masks import NUMBER, parse_mask_structure
from tamp_modifier.messages import some

DENSE = "dense"
UNSTRUCTURED = "0:0"
EPSILON = 1e-6  # shares of a step that come from rounding


@dataclass(frozen=True)
class Structure:
    """A mask structure together with the sparsity that it shall reach.

    Attributes:
        prune_n: N of "N:M"; None where every Linear has its own; 0 for unstructured.
        prune_m: M; 0 for unstructured.
        sparsity: share of all weights that is pruned.
        max_sparsity: cap of a single Linear that the user gives, or None.
    """

    prune_n: int | None
    prune_m: int
    sparsity: float
    max_sparsity: float | None = None

    @classmethod
    def parse(cls, text: str, sparsity: float, max_sparsity: float | None = None) -> Structure:
        """Read `mask_structure`.

        Raises:
            ValueError: no mask structure, or one that does not reach the sparsity.
        """
        free = re.fullmatch(rf"\s*n\s*:\s*{NUMBER}\s*", text)
        prune_n, prune_m = (None, int(free[1])) if free else parse_mask_structure(text)
        if free and prune_m < 2:
            raise ValueError(f"mask_structure 'n:M' needs M of at least 2, got {text!r}")
        structure = cls(prune_n, prune_m, sparsity, max_sparsity)
        structure._check(text)
        return structure

    @property
    def is_fixed(self) -> bool:
        """Whether all Linears get the same pattern, so that there is no budget to share out."""
        return bool(self.prune_n) and self.sparsity > self._highest - EPSILON

    def cap(self, default: float) -> float:
        """Highest sparsity that the allocation rule may give a Linear.

        Args:
            default: the rule's own cap.
        """
        cap = default if self.max_sparsity is None else self.max_sparsity
        if not self.prune_m:
            return cap
        # Between dense and N:M there is room up to N:M, whatever the rule's habit is.
        return self._highest if self.prune_n else max(min(cap, self._highest), self.sparsity)

    def choose(
        self,
        sparsities: Mapping[str, float],
        shapes: Mapping[str, tuple[int, int]],
        cap: float,
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Sparsities that every Linear can have, and their patterns.

        Args:
            sparsities: Linear -> what the allocation rule gave it; they sum up to the budget.
            shapes: Linear -> (rows, columns); columns divisible by M.
            cap: the rule's cap, as from `cap`.

        Returns:
            Linear -> sparsity and Linear -> pattern. Unstructured, see `round_to_budget`; otherwise
            see `steps` for how near the budget is met.
        """
        if not self.prune_m:
            rounded = round_to_budget(sparsities, shapes)
            return rounded, dict.fromkeys(rounded, UNSTRUCTURED)
        if self.is_fixed:
            taken = dict.fromkeys(sparsities, 1)
        else:
            numel = {name: shapes[name][0] * shapes[name][1] for name in sparsities}
            share = self._step / self.prune_m
            steps = {
                name: Steps(
                    numel[name] * self._step // self.prune_m, self._most(cap), value / share
                )
                for name, value in sparsities.items()
            }
            budget = math.fsum(numel[name] * value for name, value in sparsities.items())
            taken = nearest_steps(steps, budget)
        return self._patterns({name: count * self._step for name, count in taken.items()})

    def check_given(
        self, sparsities: Mapping[str, float]
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Like `choose`, for sparsities that the user gives and that N:M must reach exactly.

        Raises:
            ValueError: naming the Linears whose sparsity no pattern has.
        """
        counts = {name: value * self.prune_m / self._step for name, value in sparsities.items()}
        most = self.prune_m - 1 if self.prune_n is None else 1
        bad = [
            name
            for name, count in counts.items()
            if abs(count - round(count)) > EPSILON or round(count) > most
        ]
        if bad:
            allowed = (
                f"0 or {self._highest:g}"
                if self.prune_n
                else f"a multiple of 1 / {self.prune_m} below 1"
            )
            raise ValueError(
                f"allocation gives {bad[0]!r} the sparsity {sparsities[bad[0]]:g}, but with this "
                f"mask_structure it must be {allowed}, for {some(bad)}"
            )
        return self._patterns({name: round(count) * self._step for name, count in counts.items()})

    @property
    def _step(self) -> int:
        """Weights of every M that one step prunes."""
        return self.prune_n or 1

    @property
    def _highest(self) -> float:
        """Sparsity of the sparsest pattern."""
        return (self.prune_m - 1 if self.prune_n is None else self.prune_n) / self.prune_m

    def _most(self, cap: float) -> int:
        """Return steps of one Linear: a cap of the user's is kept, the rule's own is rounded up."""
        if self.prune_n:
            return 1
        exact = min(cap, self._highest) * self.prune_m
        if self.max_sparsity is not None:
            return math.floor(exact + EPSILON)
        return math.ceil(exact - EPSILON)

    def _patterns(self, pruned: Mapping[str, int]) -> tuple[dict[str, float], dict[str, str]]:
        return (
            {name: n / self.prune_m for name, n in pruned.items()},
            {name: f"{n}:{self.prune_m}" if n else DENSE for name, n in pruned.items()},
        )

    def _check(self, text: str) -> None:
        if not self.prune_m:
            return
        if self.sparsity > self._highest + EPSILON:
            raise ValueError(
                f"sparsity must be at most {self._highest:g} with mask_structure {text!r}, got "
                f"{self.sparsity}"
            )
        if self.max_sparsity is None or self.is_fixed:
            return
        reach = self._most(self.max_sparsity) / self.prune_m
        if self.prune_n and self.max_sparsity < self._highest - EPSILON:
            raise ValueError(
                f"max_sparsity must be at least {self._highest:g} with mask_structure {text!r}: a "
                f"Linear is {text} or dense, got {self.max_sparsity}"
            )
        if self.prune_n is None and reach < self.sparsity - EPSILON:
            raise ValueError(
                f"max_sparsity {self.max_sparsity} lets at most {reach:g} of a Linear go with "
                f"mask_structure {text!r}, which is less than sparsity {self.sparsity}"
            )
