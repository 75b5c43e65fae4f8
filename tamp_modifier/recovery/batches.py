"""Samples for the trainer: which are held out, and how they are joined."""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import Dataset

from tamp_modifier.data import Collator, DataError, Encoded

MOST_HELD_OUT = 32
"""Samples; comparing on more would take longer than it tells."""

NUMBERS = "sample_numbers"
"""Key of a batch with the number of each sample, by which the teacher finds what it has said."""


class Numbered(Dataset[tuple[int, Encoded]]):
    """Encoded samples with their numbers.

    Args:
        samples: all of them.
        numbers: those in this set.
    """

    def __init__(self, samples: Sequence[Encoded], numbers: Sequence[int]) -> None:
        self.samples = samples
        self.numbers = list(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[int, Encoded]:
        number = self.numbers[index]
        return number, self.samples[number]


class NumberedCollator:
    """Join numbered samples; the numbers go along as a list under NUMBERS.

    Args:
        collator: joins the samples; pads on the right, so that token i of a sample is at i.
    """

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[tuple[int, Encoded]]) -> dict[str, Tensor | list[int]]:
        """Join some samples."""
        batch: dict[str, Tensor | list[int]] = dict(self.collator([sample for _, sample in rows]))
        batch[NUMBERS] = [number for number, _ in rows]
        return batch


def split(samples: Sequence[Encoded], held_out: float, seed: int) -> tuple[Numbered, Numbered]:
    """Draw samples that are held out; the others are trained on.

    Args:
        samples: all of them.
        held_out: share that is held out, at least one sample and `MOST_HELD_OUT` at most.
        seed: of the draw.

    Returns:
        The samples for training, and those held out.

    Raises:
        DataError: fewer than two samples.
    """
    if len(samples) < 2:
        raise DataError(
            f"recovery needs 2 samples or more, one to train on and one to compare on, the data "
            f"have {len(samples)}"
        )
    numbers = list(range(len(samples)))
    random.Random(seed).shuffle(numbers)
    count = max(1, round(held_out * len(numbers)))
    count = min(count, len(numbers) - 1, MOST_HELD_OUT)
    return Numbered(samples, sorted(numbers[count:])), Numbered(samples, sorted(numbers[:count]))
