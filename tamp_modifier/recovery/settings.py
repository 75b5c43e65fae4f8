"""What a recovery run is asked to do."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

TRAINED = ("kept", "lora", "norms")
"""What can be trained: all kept weights, a low-rank update of them, or norms and biases alone."""

SCHEMES = ("W8A8", "W4A16")
"""Quantization schemes of compressed-tensors whose grids can be trained on."""

MINUTES = 10.0
"""Length of a run by default."""


@dataclass(frozen=True)
class RecoverySettings:
    """A recovery run.

    One of `minutes`, `tokens` and `samples` ends the run; minutes where none is given.

    Attributes:
        minutes: wall time of the training itself.
        tokens: tokens that the student reads in training, padding not counted.
        samples: samples that it reads; more than there are means several passes.
        train: one of TRAINED.
        rank: of the low-rank update, for ``lora``.
        learning_rate: highest rate of the schedule; None takes the usual one, or a
            lower one where a short probe says so.
        batch_size: samples of one forward pass.
        accumulation: forward passes of one step.
        temperature: of both distributions, as in Hinton et al. (arXiv 1503.02531).
        top_k: the teacher runs once, and its `top_k` most likely tokens and the rest as one are
            kept on disk; None has the teacher run beside the student.
        hidden: weight of the normalised error of the hidden states (SquareHead, arXiv 2310.06927).
        scheme: one of SCHEMES; trains against weights rounded by it. None trains them as they are.
        group: columns that share a scale in W4A16; the weights must have a multiple of them.
        held_out: share of the samples, up to 32 of them, on which the student is compared and never
            trained.
        checkpointing: recomputes activations in the backward pass: less memory, more time.
        seed: of the order of samples and of what is held out.

    Raises:
        ValueError: a value that is not allowed; names the field.
    """

    minutes: float | None = None
    tokens: int | None = None
    samples: int | None = None
    train: str = "kept"
    rank: int = 16
    learning_rate: float | None = None
    batch_size: int = 4
    accumulation: int = 2
    temperature: float = 1.0
    top_k: int | None = None
    hidden: float = 0.0
    scheme: str | None = None
    group: int = 128
    held_out: float = 0.1
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        given = [name for name in ("minutes", "tokens", "samples") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}, each would end the run")
        for name in ("minutes", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf):
                raise ValueError(f"{name} must be a positive number, got {value}")
        for name in ("tokens", "samples", "rank", "batch_size", "accumulation", "top_k", "group"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if self.train not in TRAINED:
            raise ValueError(f"train is {self.train!r}, allowed are {', '.join(TRAINED)}")
        if self.scheme is not None and self.scheme not in SCHEMES:
            raise ValueError(f"scheme is {self.scheme!r}, allowed are {', '.join(SCHEMES)}")
        if self.scheme is not None and self.train != "kept":
            raise ValueError(f"train is {self.train!r}; with a scheme all kept weights are trained")
        if not 0 < self.temperature <= 100:
            raise ValueError(f"temperature must be above 0, up to 100, got {self.temperature}")
        if not 0 <= self.hidden < math.inf:
            raise ValueError(f"hidden must be 0 or more, got {self.hidden}")
        if self.hidden and self.top_k is not None:
            raise ValueError("hidden needs the teacher beside the student, leave out top_k")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be between 0 and 1, got {self.held_out}")

    @property
    def limit(self) -> tuple[str, float]:
        """What ends the run ("minutes", "tokens" or "samples"), and how much of it there is."""
        for name in ("tokens", "samples"):
            value = getattr(self, name)
            if value is not None:
                return name, float(value)
        return "minutes", MINUTES if self.minutes is None else self.minutes

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)
