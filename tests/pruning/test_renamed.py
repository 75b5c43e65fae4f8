"""Fields of release 0.1 mean what they meant."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tamp_modifier import TAMPModifier
from tests.architectures.models import build
from tests.running import linear_weights, prune

AMIA = {"num_neighbors": 5, "threshold": 0.3, "positive_only": True}


def of_old(**fields: Any) -> TAMPModifier:
    """A modifier from fields of 0.1, which must warn once."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        modifier = TAMPModifier(**fields)
    assert [w.category for w in found] == [DeprecationWarning]
    return modifier


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (AMIA, {"selection_options": AMIA, "allocation_options": {"positive_only": True}}),
        ({"num_neighbors": 5, "allocation": "owl"}, {"selection_options": {"num_neighbors": 5}}),
        (
            {"positive_only": True, "selection": "all", "allocation": "das_numel"},
            {"allocation_options": {"positive_only": True}},
        ),
        (
            {"positive_only": True, "allocation": "uniform"},
            {"selection_options": {"positive_only": True}},
        ),
        ({"positive_only": True, "selection": "text", "allocation": {"a": 0.5}}, {}),
        ({"positive_only": True, "preset": "best", "sparsity": 0.6}, {}),
        (
            {"threshold": 0.2, "preset": "best", "selection": "amia"},
            {"selection_options": {"threshold": 0.2}},
        ),
        # All fields at their defaults, as a recipe saved by 0.1 has them.
        ({"num_neighbors": 3, "threshold": 0.1, "positive_only": False, "selection": "drift"}, {}),
    ],
)
def test_old_fields_become_options(old: dict[str, Any], new: dict[str, Any]) -> None:
    rest = {name: value for name, value in old.items() if name not in AMIA}
    assert of_old(**old).model_dump() == TAMPModifier(**rest, **new).model_dump()


def test_old_and_new_fields_prune_to_the_same_bits(tmp_path: Path) -> None:
    old = of_old(**AMIA)
    new = TAMPModifier(
        selection_options=AMIA, allocation_options={"positive_only": True}, preset=None
    )
    found = []
    for modifier in (old, new, TAMPModifier()):
        model, batches, expected = build("llava_llama")
        prune(model, batches, modifier, tmp_path)
        found.append(linear_weights(model, expected.targets))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not all(torch.equal(found[0][name], found[2][name]) for name in found[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_neighbors": 5, "selection": "all"}, "num_neighbors is for selection .amia., got 5"),
        ({"threshold": 0.7, "preset": "best"}, "threshold is for selection .amia., got 0.7"),
        ({"num_neighbors": True}, "num_neighbors of selection 'amia' must be a number, got True"),
        ({"num_neighbors": 0}, "num_neighbors must be an integer >= 1, got 0"),
        ({"threshold": -1.0}, "threshold must be finite and >= 0"),
        (
            {"threshold": 0.2, "selection_options": {"threshold": 0.3}},
            "threshold is given twice: by itself and in selection_options",
        ),
    ],
)
def test_what_was_refused_still_is(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TAMPModifier(**fields)


def test_fields_of_today_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = TAMPModifier(**TAMPModifier(selection_options=AMIA).model_dump())
    assert again.selection_options == AMIA
