"""Cells of the demo model: pruned, trained, quantized, asked, and shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.models import BoxModel
from benchmarks.recovery import models, results
from benchmarks.recovery.__main__ import main
from benchmarks.tests.quality.examples import SmallBox
from tamp_modifier.data import Encoded

pytestmark = pytest.mark.slow


class RecoveryBox(SmallBox):
    """With two dozen samples to train on."""

    per_task = 8
    told = "questions of calibration seed 100"

    def load(self) -> Any:
        return super().load().float()

    def load_stored(self) -> Any:
        return BoxModel.load(self)

    def training_samples(self) -> Sequence[Encoded]:
        return [Encoded(f"{i}", batch) for i, batch in enumerate(self.batches(100, 24))]

    def placeholders(self) -> dict[str, list[int]]:
        return {"image": [BoxModel.load(self).config.image_token_id]}


models.MODELS["box"] = RecoveryBox  # type: ignore[assignment]  # also in processes that import this


def run(output: Path, *more: str) -> int:
    common = ["--models", "box", "--settings", "50", "--output", str(output)]
    return main([*common, "--learning-rate", "1e-4", *more])


def test_cells_are_trained_once_stored_in_all_formats_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.recovery.stages._process", lambda f, *given: f(*given))
    formats = ["--stored", "bf16", "int8"]
    assert run(tmp_path, "--minutes", "0") == 0
    assert run(tmp_path, "--tokens", "2000", "--quantized", "W8A8", *formats) == 0
    shown = capsys.readouterr().out
    assert shown.count("training") == 2, "the formats share one training, the grid has its own"
    found = {r.cell.method: r for r in results.load_folder(tmp_path / "cells")}
    names = {"bf16", "int8", "trained_int8"}
    assert found.keys() == {"dense", "best_0min_bf16", *(f"best_2000tok_{n}" for n in names)}
    for name in names:
        done = found[f"best_2000tok_{name}"]
        assert done.training is not None
        assert done.training.tokens >= 2000 and done.training.told > 0
        assert done.training.curve[0]["loss"] > min(e["loss"] for e in done.training.curve)
        assert 0.499 < done.cell.reached < 0.53
        assert done.cell.recipe["recovery"]["tokens"] == 2000
    assert "| best 2000tok trained int8 | 2," in shown
    assert run(tmp_path, "--tokens", "2000", "--quantized", "W8A8", *formats) == 0
    assert "4 cells, 0 are missing" in capsys.readouterr().out


def test_results_of_other_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.recovery.stages._process", lambda f, *given: f(*given))
    assert run(tmp_path, "--tokens", "500") == 0
    assert run(tmp_path, "--tokens", "500", "--batch-size", "1") == 2
    assert "was measured otherwise" in capsys.readouterr().err
