"""Options of a rule, given by name: numbers, and yes or no."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

Rule = TypeVar("Rule")


def check_options(label: str, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse options that a rule does not have, or of another kind than its own.

    Args:
        label: what to call the rule in an error.
        defaults: option -> its default; True and False tell the options that are yes or no.
        options: option -> value.

    Raises:
        ValueError: with the first such option.
    """
    for name, value in options.items():
        if name not in defaults:
            has = f"its options are {', '.join(defaults)}" if defaults else "it has none"
            raise ValueError(f"{label} has no option {name!r}; {has}")
        is_flag = isinstance(defaults[name], bool)
        if is_flag != isinstance(value, bool) or not isinstance(value, (int, float)):
            allowed = "true or false" if is_flag else "a number"
            raise ValueError(f"option {name} of {label} must be {allowed}, got {value!r}")


def with_options(rule: Rule, label: str, options: Mapping[str, Any]) -> Rule:
    """Return the same rule with other options.

    Args:
        rule: a frozen dataclass; its fields are the options.
        label: what to call the rule in an error.
        options: field -> value.

    Raises:
        ValueError: an option that the rule does not have, of another kind, or out of range.
    """
    defaults = {field.name: field.default for field in fields(rule)}  # type: ignore[arg-type]
    check_options(label, defaults, options)
    try:
        return replace(rule, **options)  # type: ignore[type-var]
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None
