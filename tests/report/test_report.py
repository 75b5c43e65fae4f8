"""The pruning report: files, table, figures."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from tamp_modifier.files import write_json
from tamp_modifier.report.figures import draw_report, sparsity_figure
from tamp_modifier.report.model import (
    LinearReport,
    PruningReport,
    ReportError,
    layer_index,
    linear_type,
    pair_name,
    weighted_sparsity,
)
from tamp_modifier.report.table import report_table

TYPES = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")


def make_report(
    layers: int = 4, types: tuple[str, ...] = TYPES, audio: bool = False
) -> PruningReport:
    """A report whose numbers differ per Linear, so that a mixed-up field shows."""
    modalities = (0, 1, 3) if audio else (0, 1)
    token_types = [[0] * 3 + [1] * 20 + [3] * 10 * audio + [0] * (5 + s) for s in range(3)]
    linears = {}
    for layer in range(layers):
        for position, kind in enumerate(types):
            step = (layer * len(types) + position) / (layers * len(types))
            pairs = [(a, b) for a in modalities for b in modalities if a <= b]
            similarities = {pair_name(pair): 0.8 * step - 0.1 for pair in pairs}
            linears[f"model.layers.{layer}.{kind}"] = LinearReport(
                shape=(16, 32 + 16 * position),
                numel=16 * (32 + 16 * position),
                importance=sum(1 - value for value in similarities.values()),
                similarities=similarities,
                allocated=0.3 + 0.3 * step,
                pattern="0:0",
                reached=0.31 + 0.3 * step,
                tokens_seen=12 + position,
                selected=[[0, 5, 7, len(types_) - 1] for types_ in token_types],
                layer=f"model.layers.{layer}",
            )
    return PruningReport(
        requested_sparsity=0.5,
        reached_sparsity=weighted_sparsity(linears.values()),
        mask_structure="0:0",
        settings={"sparsity": 0.5, "ignore": ["lm_head"], "max_sparsity": None},
        versions={"torch": "2.13.0"},
        seed=7,
        samples=3,
        tokens={"text": 27, "image": 60, **({"audio": 30} if audio else {})},
        timings={"diversity": 1.5},
        linears=linears,
        token_types=token_types,
    )


def rendered(report: PruningReport, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))
    console.print(report_table(report))
    return console.export_text()


def mixed_report() -> PruningReport:
    """One Linear type that stays dense, and one whose N rises with depth."""
    report = make_report(types=("mlp.up_proj", "mlp.down_proj"))
    report.mask_structure = "n:8"
    for name, linear in report.linears.items():
        n = 0 if "up_proj" in name else 2 + int(name.split(".")[2])
        linear.allocated = linear.reached = n / 8
        linear.pattern = f"{n}:8" if n else "dense"
    return report


def test_patterns_that_differ_are_in_the_table_and_in_the_figure(tmp_path: Path) -> None:
    report = mixed_report()
    text = rendered(report, width=120)
    assert "patterns" in text and "1 dense, 1 3:8" in text
    assert "4 dense, 1 2:8, 1 3:8, 1 4:8, 1 5:8" in " ".join(text.split())
    assert "patterns" not in rendered(make_report())
    labels = [label.get_text() for label in sparsity_figure(report).axes[0].texts]
    assert labels == ["dense"] * 4 + ["2:8", "3:8", "4:8", "5:8"]
    assert not any(
        ":" in label.get_text() for label in sparsity_figure(make_report()).axes[0].texts
    )
    path = report.save(tmp_path / "report.json")
    assert PruningReport.load(path) == report


def edit(path: Path, **changes: object) -> Path:
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps(data))
    return path


def test_a_saved_report_loads_as_it_was(tmp_path: Path) -> None:
    report = make_report(audio=True)
    path = report.save(tmp_path / "new" / "folder" / "report.json")
    assert PruningReport.load(path) == report


def test_saving_replaces_whole_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    make_report().save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
    assert PruningReport.load(path).samples == 3


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = make_report().save(tmp_path / "report.json")
    before = path.read_bytes()
    broken = make_report()
    broken.linears["model.layers.0.mlp.down_proj"].importance = math.nan
    with pytest.raises(ReportError, match=r"linears\.model\.layers\.0\.mlp\.down_proj\.importance"):
        broken.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_values_that_json_cannot_hold_are_named(tmp_path: Path) -> None:
    report = make_report()
    report.settings["token_types_fn"] = len
    with pytest.raises(ReportError, match=r"report\.settings\.token_types_fn is a builtin"):
        report.save(tmp_path / "report.json")
    report.settings = {"modality_token_ids": {0: "text"}}
    with pytest.raises(ReportError, match="the key 0, which is not a string"):
        report.save(tmp_path / "report.json")


def test_json_is_strict_and_holds_one_line_a_token_list(tmp_path: Path) -> None:
    text = make_report().save(tmp_path / "report.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
    assert "[ 0, 5, 7, 27 ]" in text
    odd = {"text": "[ 1,  2]\n[  3 ]", "numbers": [1, 2]}
    assert json.loads(write_json(tmp_path / "odd.json", odd).read_text()) == odd


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a JSON file"),
        ("{", "is not a JSON file"),
        ("[]", "is not a pruning report"),
        ('{"format": "other"}', "is not a pruning report"),
        ('{"format": NaN}', "holds NaN"),
        ('{"format": "tamp-pruning-report", "format_version": 99}', "version 99.* reads version 2"),
        ('{"format": "tamp-pruning-report", "format_version": 2}', "the report lacks attention"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ReportError, match=message):
        PruningReport.load(path)


def test_binary_files_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ReportError, match="is not a JSON file"):
        PruningReport.load(path)
    with pytest.raises(FileNotFoundError):
        PruningReport.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": "3"}, "samples is '3', expected int"),
        ({"samples": -1}, "samples is -1"),
        ({"samples": True}, "samples is True, expected int"),
        ({"requested_sparsity": 1.5}, "requested_sparsity is 1.5, expected 0 to 1"),
        ({"seed": 1.5}, "seed is 1.5, expected int or null"),
        ({"tokens": ["text"]}, "tokens is .*expected dict"),
        ({"linears": {"a": {}}}, "linears.a lacks allocated"),
        ({"token_types": [[[9, 1]]]}, r"token_types\[0\] holds \[9, 1\]"),
        ({"token_types": [[[0]]]}, r"token_types\[0\] holds \[0\]"),
        ({"colour": "red"}, "the report has unknown colour"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = edit(make_report().save(tmp_path / "report.json"), **changes)
    with pytest.raises(ReportError, match=message):
        PruningReport.load(path)


def test_wrong_values_of_a_linear_are_named(tmp_path: Path) -> None:
    path = make_report().save(tmp_path / "report.json")
    data = json.loads(path.read_text())
    data["linears"]["model.layers.1.mlp.down_proj"]["reached"] = None
    path.write_text(json.dumps(data))
    with pytest.raises(ReportError, match=r"layers\.1\.mlp\.down_proj\.reached is None"):
        PruningReport.load(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.self_attn.q_proj", "q_proj"),
        ("model.layers.3.mlp.experts.17.up_proj", "experts.up_proj"),
        ("model.layers.3.mlp.shared_expert.up_proj", "shared_expert.up_proj"),
        ("q_proj", "q_proj"),
    ],
)
def test_linear_types_are_the_same_at_every_depth(name: str, kind: str) -> None:
    assert linear_type(name) == kind


def test_depth_is_the_last_number_of_a_layer_name() -> None:
    assert layer_index("thinker.model.layers.11") == 11
    assert layer_index("model.blocks.2.layers.0") == 0
    assert layer_index("decoder2") is None


def test_weighted_sparsity_counts_weights_not_linears() -> None:
    linears = make_report(layers=1).linears.values()
    total = sum(linear.numel for linear in linears)
    assert weighted_sparsity(linears) == sum(x.numel * x.reached for x in linears) / total
    assert weighted_sparsity([]) == 0.0


def test_the_table_shows_every_layer_of_a_small_model_and_the_total_last() -> None:
    text = rendered(make_report())
    assert all(f"layer {index} " in text for index in range(4))
    last_row = [line for line in text.splitlines() if "total" in line][-1]
    assert "50.00 %" in last_row and "12" in last_row
    assert text.index("down_proj") < text.index("total")


def test_the_table_of_a_deep_model_stays_readable() -> None:
    text = rendered(make_report(layers=80), width=80)
    assert len(text.splitlines()) < 30
    assert "layers 0-4" in text and "layers 75-79" in text
    assert "…" not in text


def test_figures_are_drawn_for_what_was_measured(tmp_path: Path) -> None:
    paths = draw_report(make_report(layers=33, audio=True), tmp_path / "figures")
    assert [path.name for path in paths] == ["sparsity.png", "diversity.png", "selected_tokens.png"]
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 200
            colours = picture.convert("RGB").getcolors(1 << 24)
            assert colours is not None and len(colours) > 20


def test_figures_leave_out_what_was_not_measured(tmp_path: Path) -> None:
    report = make_report(layers=1)
    for linear in report.linears.values():
        linear.importance, linear.similarities, linear.selected = None, {}, []
    assert [path.name for path in draw_report(report, tmp_path)] == ["sparsity.png"]
    report.linears = {}
    with pytest.raises(ReportError, match="no pruned Linear"):
        draw_report(report, tmp_path)
