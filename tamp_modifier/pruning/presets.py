"""Presets: named sets of field values of TAMPModifier."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "best": {
        "score": "sparsegpt",
        "score_options": {"per_row": 0.5, "damping": 0.2, "refit": 8},
        "selection": "balanced",
        "selection_options": {"modalities": 1.0, "samples": 1.0},
        "allocation": "atp",
        "allocation_options": {"rise": 0.75},
    },
}
"""How they were found and what they are ahead of: docs/quality.md.

All options are written out, so that a report or a recipe that names them stays true where the
default of a rule changes.
"""

RULES = {"score_options": "score", "selection_options": "selection"} | dict.fromkeys(
    ("allocation_options", "max_sparsity"), "allocation"
)
"""Field -> the rule that it belongs to."""


def with_preset(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with what the preset named in them adds; fields that are given win.

    Options of a rule come with the rule: where the user gives another rule, the preset's options
    for its own one are left out. Where score or selection are the preset's, options that are given
    win one by one: ``score_options={"damping": 0.1}`` leaves the refit as it is. Options of an
    allocation may exclude each other, so those that are given replace the preset's. No options,
    ``{}``, are the same as none given.

    Raises:
        ValueError: an unknown preset.
    """
    name = fields.get("preset")
    if name is None:
        return dict(fields)
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    preset = PRESETS[name]
    # Another rule than the preset's.
    replaced = {rule for rule in RULES.values() if fields.get(rule, preset[rule]) != preset[rule]}
    # The values are nobody's to change.
    added = deepcopy({f: value for f, value in preset.items() if RULES.get(f) not in replaced})
    together = {**added, **{f: v for f, v in fields.items() if not (f in added and v == {})}}
    for field in ("score_options", "selection_options"):
        ours, given = added.get(field), fields.get(field)
        if isinstance(ours, Mapping) and isinstance(given, Mapping):
            together[field] = {**ours, **given}
    return together
