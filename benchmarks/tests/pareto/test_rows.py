"""Rows, table and figure follow from cells and speeds; files of speeds are checked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pareto import speed
from benchmarks.pareto.__main__ import main
from benchmarks.pareto.figure import draw
from benchmarks.pareto.formats import FORMATS
from benchmarks.pareto.rows import front, rows, with_bf16
from benchmarks.pareto.sizes import SIZES, ModelSize, bits_a_weight
from benchmarks.pareto.speed import Speed, SpeedError
from benchmarks.pareto.table import markdown
from benchmarks.quality import cells as files
from benchmarks.quality.cells import Cell, ResultError
from benchmarks.tests.quality.examples import example

FAST = Speed(
    model="1b",
    bits=8,
    setting="50",
    threads=1,
    machine="a processor",
    date="2026-01-01",
    versions={"torch": "2"},
    decode={1: 20.0, 4: 60.0, 16: 100.5},
    prefill={1: 100, 4: 110, 16: 120},
    mib=900,
)


def cells() -> list[Cell]:
    named = (("dense", "0", 0.0), ("dense_int8", "0", 0.01), ("best_int8", "50", 0.55))
    return [
        example(method, setting, model="smollm2", reached=zeros) for method, setting, zeros in named
    ]


def test_bits_count_mask_values_and_scales() -> None:
    size = ModelSize(weights=1000, rows=10, others=0)
    assert bits_a_weight(FORMATS["bf16"], 0.5, size) == pytest.approx(9)
    assert bits_a_weight(FORMATS["bf16"], 0.0, size) == 16  # no mask where it does not pay
    assert bits_a_weight(FORMATS["int8"], 0.5, size) == pytest.approx(5 + 0.16)
    assert bits_a_weight(FORMATS["int4_gptq"], 0.5, size) == pytest.approx(3 + 0.25)
    assert bits_a_weight(FORMATS["int4_gptq"], 0.14, size) == pytest.approx(4 + 0.25)
    assert ModelSize(8 << 20, 1, 1 << 20).mib(4) == pytest.approx(4 + 2)


def test_sizes_are_those_of_the_models() -> None:
    assert SIZES["smollm2"].weights + SIZES["smollm2"].others == 134_515_008
    assert SIZES["smolav"].weights + SIZES["smolav"].others == 158_653_568


def test_the_front_is_what_nothing_beats() -> None:
    assert front([(16, 1.0), (9, 1.2), (8, 1.1), (5, 1.3), (5, 1.3)]) == [0, 2, 3, 4]


def test_a_row_joins_cells_with_the_speed_of_their_bits() -> None:
    found = rows(cells(), [FAST, replace(FAST, bits=4)])
    assert [row.title for row in found] == ["dense, bf16", "dense, W8A8", "50 %, W8A8"]
    assert [row.speed for row in found] == [{}, {}, {"1b": FAST}]
    text = markdown(found)
    assert "20.0 / 60.0 / 100.5" in text
    assert "| 50 %, W8A8 | 4.6" in text
    failed = replace(FAST, decode={}, prefill={}, mib=0.0, error="status 1")
    assert "status 1" in markdown(rows(cells(), [failed]))


def test_cells_of_bf16_come_from_the_quality_tables() -> None:
    same: dict[str, Any] = {"model": "smollm2"}
    borrowed = [
        example("best", "50", **same),
        example("best", "60", seed=1, **same),
        example("best", "70", identity="other", **same),
        example("sparsegpt", "50", **same),
        example("wanda", "20", **same),
        example("dense", "0", cpu_seconds=9.0, **same),
    ]
    found = with_bf16(cells(), borrowed)
    assert [cell.key[1:3] for cell in found] == [
        ("best_bf16", "50"),
        ("best_int8", "50"),
        ("dense", "0"),
        ("dense_int8", "0"),
    ]
    assert found[2].cpu_seconds != 9.0


def test_cells_without_dense_or_point_are_refused() -> None:
    with pytest.raises(ResultError, match="no dense cell of smollm2"):
        rows(cells()[1:], [])
    with pytest.raises(ResultError, match="no point 'other'"):
        rows([*cells(), example("other", "50", model="smollm2")], [])


def test_the_command_shows_draws_and_packs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for cell in cells():
        files.save(tmp_path / "in" / "quality", cell)
    speed.save(tmp_path / "in" / "speed", FAST)
    figure, packed = tmp_path / "pareto.png", tmp_path / "out"
    options = ["--figure", str(figure), "--pack", str(packed)]
    assert main(["--table", str(tmp_path / "in"), *options]) == 0
    assert figure.stat().st_size > 1000
    assert files.load_folder(packed / "quality") == files.load_folder(tmp_path / "in" / "quality")
    assert "50 %, W8A8" in capsys.readouterr().out
    assert draw(rows(cells(), []), figure) == figure
    assert main(["--table", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", json.dumps({"format": speed.FORMAT, "format_version": 99})]
)
def test_what_is_no_speed_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(SpeedError, match=r"a\.json"):
        speed.load(path)


def test_a_speed_comes_back_and_is_not_measured_again(tmp_path: Path) -> None:
    path = speed.save(tmp_path, FAST)
    assert speed.load(path) == FAST
    left = speed.missing(tmp_path, ["1b"], 1)
    assert FAST.path not in {found.path for found in left}
    assert len(left) == len(speed.SETTINGS) * len(speed.STORED) - 1
    # What failed is tried again.
    speed.save(tmp_path, replace(FAST, error="status 1"))
    assert len(speed.missing(tmp_path, ["1b"], 1)) == len(left) + 1
