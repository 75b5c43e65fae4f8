"""Fields of TAMPModifier 0.1 that are options of rules now; accepted until 0.3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED: dict[str, tuple[Any, dict[str, tuple[str, ...]]]] = {
    "num_neighbors": (3, {"selection": ("amia",)}),
    "threshold": (0.1, {"selection": ("amia",)}),
    "positive_only": (False, {"selection": ("amia",), "allocation": ("das", "das_numel")}),
}
"""Field -> its default, and the rules that have an option of its name now."""

DEFAULTS = {"selection": "amia", "allocation": "das"}


def renamed_in(fields: Mapping[str, Any]) -> list[str]:
    """Return the fields of 0.1 among those that are given."""
    return [name for name in RENAMED if name in fields]


def with_new_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with those of 0.1 as options of their rules; the meaning is the same.

    A value that was the default is left out, as recipes that were saved by 0.1 give all of them.

    Raises:
        ValueError: a field that the chosen selection never had, or one that is also an option.
    """
    found = {name: value for name, value in fields.items() if name not in RENAMED}
    for name in renamed_in(fields):
        default, owners = RENAMED[name]
        value = fields[name]
        if value == default:
            continue
        kinds = [kind for kind in owners if _chosen(fields, kind) in owners[kind]]
        if not kinds and list(owners) == ["selection"]:
            raise ValueError(
                f"{name} is for selection {owners['selection'][0]!r}, got {value} with "
                f"{_chosen(fields, 'selection')!r}"
            )
        for kind in kinds:
            options = found.get(f"{kind}_options") or {}
            if name in options:
                raise ValueError(f"{name} is given twice: by itself and in {kind}_options")
            found[f"{kind}_options"] = {**options, name: value}
    return found


def _chosen(fields: Mapping[str, Any], kind: str) -> Any:
    return fields.get(kind, DEFAULTS[kind])
