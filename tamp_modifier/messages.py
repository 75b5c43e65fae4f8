"""Pieces of messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def some(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def duration(seconds: float) -> str:
    """Seconds as a reader likes them: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size_text(size: float) -> str:
    """Return a number of bytes in the unit that gives it one to three digits before the point."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return (
                f"{size / unit:.3g} {name}" if size < 100 * unit else f"{size / unit:,.0f} {name}"
            )
    return f"{size:.0f} bytes"


class FieldError(ValueError):
    """A field that has no such value, or a field that there is not."""


def refusals(error: Any) -> str:
    """Return what pydantic refused, in one line without its frame.

    Args:
        error: a `pydantic.ValidationError`.
    """
    found = []
    for refusal in error.errors():
        message = refusal["msg"].removeprefix("Value error, ")
        place = ".".join(str(part) for part in refusal["loc"])
        if refusal["type"] == "extra_forbidden":
            message = f"{error.title} has no field {place!r}"
        elif place and not message.startswith(place) and refusal["type"] != "value_error":
            message = f"{place}: {message}, got {refusal.get('input')!r}"
        found.append(message)
    return "; ".join(found)
