"""Which tokens of a sample enter the statistics of a Linear."""

from typing import Any

from tamp_modifier import moved
from tamp_modifier.selection.amia import select_amia
from tamp_modifier.selection.base import Selection
from tamp_modifier.selection.registry import SELECTIONS, get_selection

__all__ = ["SELECTIONS", "Selection", "get_selection", "select_amia"]


def __getattr__(name: str) -> Any:
    return moved.look_up(__name__, moved.PARTS["selection"], name)
