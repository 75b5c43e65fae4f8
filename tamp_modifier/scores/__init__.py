"""Which weights of a Linear go, and what the others become."""

from tamp_modifier.scores.base import Score
from tamp_modifier.scores.registry import SCORES, get_score

__all__ = ["SCORES", "Score", "get_score"]
