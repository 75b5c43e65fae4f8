"""docs/checkpoint-marker.md: its fields, rules and examples are those of the code."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tamp_modifier import cli
from tamp_modifier.checkpoint.marker import (
    CONFIG_FORMAT,
    CONFIG_KEY,
    LAYOUTS,
    config_marker,
    mark_dense,
    mark_packed,
    read_marker,
)
from tamp_modifier.sparse.serialization import FORMAT_VERSION

PAGE = (Path(__file__).parents[2] / "docs" / "checkpoint-marker.md").read_text()
FIELDS = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", PAGE, re.M))
DENSE, PACKED, OVER = map(json.loads, re.findall(r"^```json\n(.*?)^```", PAGE, re.M | re.S))


def test_the_page_has_every_field() -> None:
    assert list(FIELDS) == ["format", "version", *inspect.signature(config_marker).parameters]
    assert FIELDS["format"] == f'`"{CONFIG_FORMAT}"`'
    assert FIELDS["version"] == str(FORMAT_VERSION)
    assert FIELDS["layout"] == ", ".join(f'`"{layout}"`' for layout in LAYOUTS)


def test_the_examples_are_what_is_written(tmp_path: Path) -> None:
    assert DENSE == {CONFIG_KEY: config_marker("dense")}
    tensors = {
        "model.layers.0.mlp.up_proj.weight": torch.tensor([[0, 1.5, 0], [-2, 0, 3]]),
        "model.norm.weight": torch.ones(3),
    }
    (tmp_path / "dense").mkdir()
    save_file(tensors, tmp_path / "dense" / "model.safetensors")
    (tmp_path / "dense" / "config.json").write_text(json.dumps(DENSE))
    cli.main(["pack", str(tmp_path / "dense"), str(tmp_path / "packed")])
    assert json.loads((tmp_path / "packed" / "config.json").read_text()) == PACKED


def test_a_quantization_comes_back_after_packing() -> None:
    before = {"quantization_config": OVER["quantization_config"]["packed_over"]}
    packed = mark_packed(before, {})
    assert packed["quantization_config"] == OVER["quantization_config"]
    assert mark_dense(packed, None)["quantization_config"] == before["quantization_config"]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": None},  # absent
        {"layout": "sparse"},
        {"layout": None},
        {"layout": "packed"},  # without linears
        {"linears": ["a"]},
        {"linears": {"a": -1}},
        {"linears": {"a": 0.5}},
        {"linears": {"a": True}},
        {"tensors": -1},
        {"tensors": "2"},
        {"activations": "fp8"},
    ],
)
def test_what_breaks_a_rule_of_the_page_is_refused(change: dict[str, Any]) -> None:
    marker = {**DENSE[CONFIG_KEY], **change}
    marker = {name: value for name, value in marker.items() if value is not None}
    with pytest.raises(ValueError, match=f"config.json, {CONFIG_KEY}: "):
        read_marker({CONFIG_KEY: marker})


def test_the_message_of_the_page_is_the_code_s_and_other_markers_are_ignored() -> None:
    (message,) = re.findall(r"`(config\.json, .*?)`", PAGE)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_marker({CONFIG_KEY: {**DENSE[CONFIG_KEY], "layout": "sparse"}})
    assert read_marker({CONFIG_KEY: {**DENSE[CONFIG_KEY], "format": "another"}}) is None
    assert read_marker({}) is None
