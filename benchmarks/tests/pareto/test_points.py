"""Points prune once a setting, quantize the decoder alone, and hold what a checkpoint would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.pareto import points
from benchmarks.pareto.points import POINTS, plan
from benchmarks.quality.cells import load
from benchmarks.quality.methods import METHODS, Method
from benchmarks.quality.models import QualityModel
from benchmarks.quality.runner import conditions, measure, run
from benchmarks.tests.quality.examples import SmallBox


class FloatBox(SmallBox):
    """In fp32, as the models of this benchmark."""

    per_task = 2

    def load(self) -> Any:
        return super().load().float()


@pytest.fixture
def box() -> QualityModel:
    return FloatBox(Path())


def test_the_plan_has_every_point_and_names_what_decides(box: QualityModel) -> None:
    cells = plan([box], [0, 1])
    assert len(set(cells)) == len(cells)
    assert {method for _, method, _, _ in cells} == {"dense", *POINTS}
    assert [cell[1:3] for cell in cells].count(("dense", "0")) == 1
    for model, method, setting, seed in cells:
        found = conditions(model, method, setting, seed, POINTS).recipe
        assert ("sparsity" in found) == (setting != "0")
        assert method == "dense" or found["stored"] == POINTS[method].format.name


@pytest.mark.slow
def test_a_setting_is_pruned_once(
    box: QualityModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pruned = []
    prune = Method.run

    def watched(self: Method, job: points.Job) -> None:
        pruned.append(self)
        prune(self, job)

    monkeypatch.setattr(Method, "run", watched)
    monkeypatch.setattr(points, "_PRUNER", points.Pruner())
    names = ("best_bf16", "best_int8", "best_int4_gptq", "best_int4_fit")
    run(
        [(box, "dense", "0", 0), *((box, name, "50", 0) for name in names)], tmp_path, print, POINTS
    )
    assert pruned == [METHODS["best"]]
    cells = {name: load(tmp_path / "box" / f"{name}_50_0.json")[0] for name in names}
    # Few values are left in 4 bits, and some of them are zero.
    assert cells["best_bf16"].reached == pytest.approx(0.5, abs=1e-3)
    assert 0.5 < cells["best_int8"].reached < cells["best_int4_gptq"].reached < 0.65
    alone = measure(box, "best_int8", "50", 0, POINTS)
    assert alone.tasks == cells["best_int8"].tasks


@pytest.mark.parametrize("name", ["dense_int8", "dense_int4_gptq", "dense_int4_awq"])
def test_the_decoder_alone_is_quantized(name: str, box: QualityModel) -> None:
    dense, model = box.load(), box.load()
    job = points.Job(box, 0.0, "0:0", box.batches(0, 2), model)
    POINTS[name].run(job)
    linears = box.linears(model)
    stored = POINTS[name].format
    for linear in linears.values():
        group = stored.group or linear.in_features
        rows = linear.weight.detach().float().view(linear.out_features, -1, group)
        assert max(len(part.unique()) for row in rows[:4] for part in row) <= 2**stored.bits
    before = dense.state_dict()
    for key, tensor in model.state_dict().items():
        if key in before and "tower" in key:
            assert torch.equal(tensor, before[key])
