"""What a run decided and reached: plain data, and how it is shown."""

from typing import Any

from tamp_modifier import moved
from tamp_modifier.report.model import LinearReport, PruningReport, ReportError, linear_type

__all__ = ["LinearReport", "PruningReport", "ReportError", "linear_type"]


def __getattr__(name: str) -> Any:
    return moved.look_up(__name__, moved.PARTS["report"], name)
