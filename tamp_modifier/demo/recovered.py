"""Recovery of the demo model: a short training by the dense one, which is there, too."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamp_modifier.demo.evaluation import Sample, encode, load_model
from tamp_modifier.demo.methods import MINUTES
from tamp_modifier.demo.questions import (
    PICTURE_TASKS,
    TEXT_TASKS,
    balance_keys,
    balanced_picture_question,
    text_question,
)

if TYPE_CHECKING:
    from tamp_modifier.data import Encoded
    from tamp_modifier.recovery.run import Recovered

SAMPLES = 800
"""More than a minute of one core reads."""


def training_samples(processor: Any, count: int = SAMPLES, seed: int = 0) -> list[Encoded]:
    """Make questions of all tasks in turn, half of them with a new picture each.

    Args:
        processor: of the demo model.
        count: how many.
        seed: which ones; calibration and evaluation draw from other streams. There are few
            questions without a picture, so some of these are evaluated, too.
    """
    from tamp_modifier.data import Encoded

    found = []
    for index in range(count):
        rng = random.Random(f"recovery/{seed}/{index}")
        kinds = TEXT_TASKS if index % 2 else PICTURE_TASKS
        task = kinds[index // 2 % len(kinds)]
        if index % 2:
            sample = Sample(text_question(task, rng), None)
        else:
            scene, question = balanced_picture_question(task, rng, rng.choice(balance_keys(task)))
            sample = Sample(question, scene)
        found.append(Encoded(f"{task} {index}", encode([sample], processor)))
    return found


def recover(
    model: Any,
    processor: Any,
    minutes: float = MINUTES,
    count: int = SAMPLES,
    seed: int = 0,
    step: Callable[[str, int, int], None] = lambda *_: None,
    **settings: Any,
) -> Recovered:
    """Train what a pruned demo model has kept; the dense one teaches, zeros stay.

    Args:
        model: the demo model after pruning; trained in place.
        processor: of `load_processor`.
        minutes: of training; about a fifth more goes by with all around it.
        count: samples that are made.
        seed: of samples and their order.
        step: called with (phase, done, total).
        settings: further fields of `RecoverySettings`, such as ``scheme``; ``samples`` or
            ``tokens`` in the place of minutes.

    Returns:
        The held-out divergence before and after, and what else is known.

    Raises:
        ValueError: the model has no zeros, or a setting that is not allowed.
    """
    from tamp_modifier.recovery.run import Pair, recover_model
    from tamp_modifier.recovery.settings import RecoverySettings
    from tamp_modifier.tokens import modality_token_ids

    length: dict[str, Any] = {} if {"samples", "tokens"} & settings.keys() else {"minutes": minutes}
    asked = RecoverySettings(seed=seed, **length, **{"accumulation": 1, **settings})
    pair = Pair(
        model,
        load_model(dtype=model.dtype),
        processor,
        training_samples(processor, count, seed),
        modality_token_ids(model.config),
    )
    with tempfile.TemporaryDirectory() as folder:
        return recover_model(pair, asked, Path(folder), step)
