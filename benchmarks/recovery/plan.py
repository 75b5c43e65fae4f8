"""Which cells there are: pruned so, trained so long, stored so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from benchmarks.pareto.formats import FORMATS, Format
from benchmarks.quality.cells import DENSE, parse_setting
from benchmarks.quality.methods import METHODS, applies
from tamp_modifier.recovery.settings import SCHEMES, RecoverySettings

TRAINED_AS = {"W8A8": "int8", "W4A16": "int4_rtn"}
"""Scheme of training -> the format that rounds weights in the same way."""


@dataclass(frozen=True)
class Amount:
    """How long is trained.

    Attributes:
        kind: "minutes", "tokens" or "samples"; none of them with 0.
        number: of them; 0 trains nothing.
    """

    kind: str
    number: float

    @property
    def name(self) -> str:
        """For names of cells."""
        if self.kind == "minutes" and self.number % 1:
            return f"{round(60 * self.number)}sec"
        return f"{self.number:g}{self.kind[:3]}"

    @property
    def title(self) -> str:
        """For tables."""
        return f"{self.number:g} {self.kind}" if self.number else "not trained"


@dataclass(frozen=True)
class Way:
    """One way from the dense model to what is evaluated.

    Attributes:
        pruning: a name of `METHODS`, or "dense", which only trains against a grid.
        setting: sparsity in percent or N:M; "0" for "dense".
        amount: of training.
        scheme: grid that is trained against; None trains the weights as they are.
        stored: a name of `FORMATS`.
        seed: of calibration.
    """

    pruning: str
    setting: str
    amount: Amount
    scheme: str | None
    stored: str
    seed: int

    @property
    def method(self) -> str:
        """Name of its cells."""
        parts = [self.pruning, self.amount.name]
        if self.scheme is not None:
            parts.append("trained")
        return "_".join([*parts, self.stored])

    @property
    def format(self) -> Format:
        """How weights are stored."""
        return FORMATS[self.stored]

    @property
    def title(self) -> str:
        """For tables."""
        pruning = DENSE if self.pruning == DENSE else METHODS[self.pruning].title
        how = f", trained as {self.scheme}" if self.scheme is not None else ""
        return f"{pruning}, {self.amount.title}{how}, {self.format.title}"

    def settings(self, options: dict[str, Any]) -> RecoverySettings:
        """Return the settings of its training.

        Args:
            options: further fields.
        """
        limit: dict[str, Any] = {self.amount.kind: self.amount.number}
        group: dict[str, Any] = {"group": self.format.group} if self.scheme == "W4A16" else {}
        return RecoverySettings(**limit, scheme=self.scheme, **group, **options)


def plan(
    pruning: Sequence[str],
    settings: Sequence[str],
    amounts: Sequence[Amount],
    quantized: Sequence[str],
    stored: Sequence[str],
    seeds: Sequence[int],
) -> list[Way]:
    """All ways, the dense model first.

    Args:
        pruning: names of `METHODS`, or "dense".
        settings: sparsities in percent or N:M.
        amounts: of training.
        quantized: schemes that are trained against, besides training as it is.
        stored: names of `FORMATS`, after training as it is.
        seeds: of calibration.

    Raises:
        ValueError: a name that is not known.
    """
    for kind, names, known in (
        ("pruning", pruning, [DENSE, *METHODS]),
        ("scheme", quantized, SCHEMES),
        ("format", stored, list(FORMATS)),
    ):
        for name in names:
            if name not in known:
                raise ValueError(f"unknown {kind} {name!r}; known are {', '.join(known)}")
    for setting in settings:
        parse_setting(setting)
    ways = [Way(DENSE, "0", Amount("minutes", 0), None, "bf16", 0)]
    for seed, name, setting, amount in product(seeds, pruning, settings, amounts):
        if name == DENSE:
            setting = "0"
        elif not applies(METHODS[name], setting):
            continue
        for form in stored:
            if name != DENSE or not amount.number:  # as it is, the dense model has learnt it all
                ways.append(Way(name, setting, amount, None, form, seed))
        if amount.number:
            ways += [Way(name, setting, amount, s, TRAINED_AS[s], seed) for s in quantized]
    return list(dict.fromkeys(ways))
