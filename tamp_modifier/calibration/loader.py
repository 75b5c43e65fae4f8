"""A DataLoader that gives the same batches in every pass."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader


class RepeatableLoader:
    """A loader that shows the same batches in the same order every time it is iterated.

    llm-compressor's own sampler is random and draws anew in every pass, from torch's global
    generator. Every iteration starts from the random state at construction, which `rewind`
    brings back for the pass that iterates the loader itself.
    """

    def __init__(self, loader: DataLoader) -> None:
        owners = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
        generators = [getattr(owner, "generator", None) for owner in owners]
        self._loader = loader
        self._generators = [
            (g, g.get_state()) for g in generators if isinstance(g, torch.Generator)
        ]
        self._state = torch.get_rng_state(), random.getstate(), np.random.get_state()

    def rewind(self) -> None:
        """Bring the random state at construction back."""
        torch.set_rng_state(self._state[0])
        random.setstate(self._state[1])
        np.random.set_state(self._state[2])
        for generator, state in self._generators:
            generator.set_state(state)

    def __iter__(self) -> Iterator[Any]:
        self.rewind()
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)
