"""Which weights of a Linear go, and what the others become."""

from typing import Any

from tamp_modifier import moved
from tamp_modifier.scores.base import Score
from tamp_modifier.scores.registry import SCORES, get_score

__all__ = ["SCORES", "Score", "get_score"]


def __getattr__(name: str) -> Any:
    return moved.look_up(__name__, moved.PARTS["scores"], name)
