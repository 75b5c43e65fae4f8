"""Parity with the official TAMP code, on arrays that it produced in fp32.

`data/amia_das_cases.npz` holds random tokens with the official similarities, selected tokens and
row scalars; `data/allocation_cases.json` holds scores with the official sparsities.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tamp_modifier.allocation import allocate_sparsity
from tamp_modifier.diversity import DiversityTracker, mean_similarities
from tamp_modifier.selection.amia import select_amia
from tamp_modifier.statistics import RowScalars

DATA = Path(__file__).parent
ARRAYS = np.load(DATA / "amia_das_cases.npz")
CASES = sorted({key.split("_")[0] for key in ARRAYS.files})
ALLOCATIONS = json.loads((DATA / "allocation_cases.json").read_text())

# The order of the official terms; 0 text, 1 image or video, 2 audio.
TWO_MODALITIES = [(1, 1), (0, 0), (0, 1)]
THREE_MODALITIES = [(1, 1), (2, 2), (0, 0), (0, 1), (0, 2), (1, 2)]


class Case:
    def __init__(self, name: str) -> None:
        def tensor(key: str) -> torch.Tensor:
            return torch.from_numpy(ARRAYS[f"{name}_{key}"])

        self.inputs = tensor("inputs")
        self.outputs = self.inputs @ tensor("weight").T
        self.types = tensor("modality").long()
        self.attention = tensor("attention")
        self.similarities = tensor("similarities").tolist()
        self.selected = tensor("selected").tolist()
        self.row_scalars = tensor("row_scalars")
        self.pairs = TWO_MODALITIES if len(self.similarities) == 3 else THREE_MODALITIES


def test_all_cases_are_there() -> None:
    assert CASES == [f"av{i}" for i in range(4)] + [f"vl{i}" for i in range(8)]
    assert len(ALLOCATIONS) == 6


@pytest.mark.parametrize("name", CASES)
def test_similarities(name: str) -> None:
    case = Case(name)
    official = dict(zip(case.pairs, case.similarities, strict=True))
    found = mean_similarities(case.outputs, case.types, positive_only=True)
    assert found == pytest.approx(official, abs=1e-5)
    tracker = DiversityTracker(positive_only=True)
    tracker.update(case.outputs, case.types)
    assert tracker.importance == pytest.approx(
        sum(1 - value for value in case.similarities), abs=1e-5
    )


@pytest.mark.parametrize("name", CASES)
def test_selected_tokens(name: str) -> None:
    case = Case(name)
    found = select_amia(case.outputs, case.types, case.attention, positive_only=True)
    assert found.tolist() == case.selected


@pytest.mark.parametrize("name", CASES)
def test_row_scalars(name: str) -> None:
    case = Case(name)
    scalars = RowScalars(case.inputs.shape[1])
    scalars.update(
        case.inputs[select_amia(case.outputs, case.types, case.attention, positive_only=True)]
    )
    torch.testing.assert_close(scalars.result(), case.row_scalars, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ALLOCATIONS, ids=lambda case: f"{case['sparsity']}")
def test_allocation(case: dict) -> None:
    numel = {name: rows * columns for name, (rows, columns) in case["shapes"].items()}
    found = allocate_sparsity(case["scores"], numel, case["sparsity"], case["max_sparsity"])
    assert found == pytest.approx(case["official"], abs=2e-3)
    # The official loop overshoots; here the budget is met.
    pruned = sum(numel[name] * value for name, value in found.items())
    assert pruned == pytest.approx(case["sparsity"] * sum(numel.values()), rel=1e-12)
