"""The plan of a dry run counts what the run would do, and refuses what it would refuse."""

from __future__ import annotations

from typing import Any

import pytest

from tamp_modifier import TAMPModifier
from tamp_modifier.demo.evaluation import MODEL_FOLDER
from tamp_modifier.workflows.plan import plan
from tamp_modifier.workflows.samples import Prepared, Sampling, prepare
from tests.data.files import asked, jsonl, picture


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("data")
    picture(folder / "0.png", (60, 50), 70)
    data = jsonl(folder / "data.jsonl", [asked(("image", "0.png"))])
    return prepare(str(MODEL_FOLDER), Sampling(data))


def planned(prepared: Prepared, **fields: Any) -> dict[str, Any]:
    return plan(prepared, [TAMPModifier(**fields)])["estimate"]


@pytest.mark.slow
def test_permuting_columns_takes_a_pass_more(prepared: Prepared) -> None:
    plain = planned(prepared, mask_structure="2:4", selection="text")
    permuted = planned(prepared, mask_structure="2:4", selection="text", permute_columns=True)
    assert permuted["operations"] == 1.5 * plain["operations"]
    assert permuted["moved"] > plain["moved"]


@pytest.mark.slow
def test_magnitude_is_not_charged_for_a_selection(prepared: Prepared) -> None:
    found = [
        planned(prepared, score="magnitude", selection=name)["operations"]
        for name in ("amia", "text")
    ]
    assert found[0] == found[1]
    assert found[0] < planned(prepared, selection="amia")["operations"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": ["re:.*no_such"]}, "match no Linear"),
        ({"allocation": {"model.nothing": 0.5}}, "allocation gives no sparsity for"),
        ({"allocation": "atp", "allocation_options": {"beta": 0.9}}, "beta must be at most"),
        (
            {"mask_structure": "2:4", "permute_columns": True, "targets": ["re:.*q_proj"]},
            "no Linear whose columns may change places",
        ),
    ],
)
def test_what_a_run_would_refuse_is_refused(
    prepared: Prepared, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        planned(prepared, **fields)
