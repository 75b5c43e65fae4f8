"""Pieces of messages."""

from __future__ import annotations

from collections.abc import Sequence


def some(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def duration(seconds: float) -> str:
    """Seconds as a reader likes them: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
