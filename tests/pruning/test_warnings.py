"""What would do nothing, or not what it seems to, is told once."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from tamp_modifier import TAMPModifier
from tests.architectures.models import build
from tests.running import prune


def test_a_sparsity_that_the_model_has_already_is_told(tmp_path: Path, logged: list[str]) -> None:
    model, batches, _ = build("llava_llama")
    prune(model, batches, TAMPModifier(sparsity=0.6, selection="all"), tmp_path)
    del model.config.compression_config
    logged.clear()
    prune(model, batches, TAMPModifier(sparsity=0.3, selection="all"), tmp_path)
    assert sum("sparsity 0.3 asks for no more zeros than the 60" in line for line in logged) == 1


def test_a_second_pruning_is_told(tmp_path: Path, logged: list[str]) -> None:
    model, batches, _ = build("llava_llama")
    prune(model, batches, TAMPModifier(sparsity=0.3, selection="all"), tmp_path)
    assert not any("was pruned before" in line for line in logged)
    prune(model, batches, TAMPModifier(sparsity=0.6, selection="all"), tmp_path)
    assert sum("was pruned before: its zeros stay" in line for line in logged) == 1


def test_a_number_of_samples_beside_a_loader_is_told(tmp_path: Path, logged: list[str]) -> None:
    model, batches, _ = build("llava_llama")
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    recipe = TAMPModifier(sparsity=0.5, selection="all")
    prune(model, loader, recipe, tmp_path, num_calibration_samples=2)
    assert sum("num_calibration_samples=2 is not used" in line for line in logged) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 1.5}, "sparsity must be between 0 and 1, got 1.5"),
        ({"sparsity": "half"}, "sparsity: Input should be a valid number, .*, got 'half'"),
        ({"sparsty": 0.5}, "TAMPModifier has no field 'sparsty'"),
        ({"selection": "best"}, "selection must be one of "),
    ],
)
def test_a_bad_field_is_one_line_without_a_frame(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TAMPModifier(**fields)
    text = str(caught.value)
    assert "validation error" not in text and "\n" not in text and "pydantic" not in text
