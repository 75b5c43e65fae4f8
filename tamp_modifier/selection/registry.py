"""The selection rules by name: which tokens of a sample enter the statistics of one Linear."""

from __future__ import annotations

import inspect
from typing import Any

from tamp_modifier.options import check_options
from tamp_modifier.selection.amia import AMIASelection
from tamp_modifier.selection.base import Selection
from tamp_modifier.selection.by_modality import AllTokens, BalancedTokens, TextTokens
from tamp_modifier.selection.drift import DriftSelection

SELECTIONS: dict[str, type[Selection]] = {
    "amia": AMIASelection,
    "all": AllTokens,
    "text": TextTokens,
    "balanced": BalancedTokens,
    "drift": DriftSelection,
}


def get_selection(name: str, **options: Any) -> Selection:
    """Return the selection rule called `name`, with its own options.

    Raises:
        ValueError: an unknown name, an option that the rule does not have or that is out of range.
    """
    if name not in SELECTIONS:
        raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got {name!r}")
    rule = SELECTIONS[name]
    parameters = inspect.signature(rule).parameters
    defaults = {option: parameter.default for option, parameter in parameters.items()}
    check_options(f"selection {name!r}", defaults, options)
    try:
        return rule(**options)
    except ValueError as error:
        raise ValueError(f"selection {name!r}: {error}") from None
