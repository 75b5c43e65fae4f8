"""Options of a rule: its dataclass fields, given by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

Rule = TypeVar("Rule")


def with_options(rule: Rule, label: str, options: Mapping[str, Any]) -> Rule:
    """Return the same rule with other options.

    Args:
        rule: a frozen dataclass; its fields are the options.
        label: what to call the rule in an error.
        options: field -> number.

    Raises:
        ValueError: an option that the rule does not have, that is not a number, or out of range.
    """
    allowed = [field.name for field in fields(rule)]  # type: ignore[arg-type]
    for name, value in options.items():
        if name not in allowed:
            has = f"its options are {', '.join(allowed)}" if allowed else "it has none"
            raise ValueError(f"{label} has no option {name!r}; {has}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"option {name} of {label} must be a number, got {value!r}")
    try:
        return replace(rule, **options)  # type: ignore[type-var]
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None
