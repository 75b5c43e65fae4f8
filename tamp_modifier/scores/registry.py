"""The scores by name: which weights of one Linear go, and what the others become."""

from __future__ import annotations

from typing import Any

from tamp_modifier.options import with_options
from tamp_modifier.scores.base import Score
from tamp_modifier.scores.refitted import OBS, WandaRefit
from tamp_modifier.scores.rowwise import Magnitude, Wanda
from tamp_modifier.scores.sparsegpt import SparseGPT

SCORES: dict[str, Score] = {
    score.name: score for score in (Wanda(), SparseGPT(), Magnitude(), OBS(), WandaRefit())
}


def get_score(name: str, **options: Any) -> Score:
    """Return the score called `name`, with its own options.

    Raises:
        ValueError: an unknown name, an option that the score does not have or that is out of range.
    """
    if name not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {name!r}")
    return with_options(SCORES[name], f"score {name!r}", options)
