"""End a run in time, and say when the student is compared and kept."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tamp_modifier.files import write_json

BUDGET_FILE = "budget.json"
_STORED = ("seconds", "tokens", "samples", "curve")

COMPARISONS = 20
"""Comparisons on the held-out samples over a whole run, at most."""

TRAINING_PER_COMPARISON = 10.0
"""Seconds of training between comparisons, for each second that one takes: a tenth goes there."""

WARM_UP = 0.05
"""Share of a run in which the learning rate rises."""

PATIENCE = 6
"""Comparisons in a row without a better one that end a run."""


def schedule(fraction: float) -> float:
    """Return the learning rate at a fraction of the run, over the highest: a warmed-up cosine."""
    if fraction < WARM_UP:
        return max(fraction, 1e-3) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (fraction - WARM_UP) / (1 - WARM_UP))))


class Budget(TrainerCallback):
    """How much of a run is done: minutes, tokens or samples. Goes on where a killed run was.

    Args:
        kind: "minutes", "tokens" or "samples".
        limit: how much of it ends the run.
        clock: tells seconds; by default wall time.

    Attributes:
        seconds: time of training so far, by the clock; comparing and saving do not count.
        tokens: that were read so far.
        samples: that were read so far.
        curve: of each comparison the above and ``loss``, the held-out loss in nats.
        reason: why the run ended; "" while it goes on.
    """

    def __init__(
        self, kind: str, limit: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.kind, self.limit, self.clock = kind, limit, clock
        self.seconds = 0.0
        self.tokens = self.samples = 0
        self.curve: list[dict[str, float]] = []
        self.reason = ""
        self._since: float | None = None
        self._pause = 0.0

    @property
    def fraction(self) -> float:
        """Share of the run that is done, 0 to 1."""
        done = {"minutes": self.elapsed / 60, "tokens": self.tokens, "samples": self.samples}
        return min(1.0, done[self.kind] / self.limit)

    @property
    def elapsed(self) -> float:
        """Time of training so far, in seconds."""
        running = 0.0 if self._since is None else self.clock() - self._since
        return self.seconds + running

    @property
    def best(self) -> int:
        """Place of the best comparison in the curve; the first is that before any training."""
        return min(range(len(self.curve)), key=lambda place: self.curve[place]["loss"])

    def load(self, checkpoint: Path) -> None:
        """Go on from a state that was saved."""
        stored = json.loads((checkpoint / BUDGET_FILE).read_text())
        for name in _STORED:
            setattr(self, name, stored[name])

    def save(self, checkpoint: Path) -> None:
        """Write what `load` reads."""
        write_json(checkpoint / BUDGET_FILE, {name: getattr(self, name) for name in _STORED})

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Start the clock."""
        self._since = self.clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Ask for a comparison where one is due, and end the run where it is over."""
        self.seconds, self._since = self.elapsed, None
        over = self.fraction >= 1
        if over:
            self.reason = f"{self.limit:g} {self.kind} are over"
            control.should_training_stop = True
        rested = self.seconds - self.curve[-1]["seconds"] >= self._pause if self.curve else True
        if over or (rested and self.fraction * COMPARISONS >= len(self.curve)):
            control.should_evaluate = control.should_save = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **more: Any,
    ) -> None:
        """Note the comparison, and end the run where they do not get better any more."""
        assert metrics is not None
        self._pause = TRAINING_PER_COMPARISON * metrics.get("eval_runtime", 0.0)
        entry = {"seconds": self.seconds, "tokens": self.tokens, "samples": self.samples}
        self.curve.append({**entry, "loss": metrics["eval_loss"]})
        if len(self.curve) - 1 - self.best >= PATIENCE and not self.reason:
            self.reason = f"{PATIENCE} comparisons in a row were no better"
            control.should_training_stop = True
