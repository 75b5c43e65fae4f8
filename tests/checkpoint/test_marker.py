"""A pruned model carries the marker by which it is served sparse, and stays an ordinary model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from tamp_modifier import TAMPModifier
from tamp_modifier.checkpoint.marker import read_marker
from tamp_modifier.checkpoint.pack import is_packed, pack_checkpoint, read_config
from tests.architectures.models import build
from tests.running import prune


def test_a_saved_model_is_marked_and_loads_dense_in_transformers(tmp_path: Path) -> None:
    model, batches, _ = build("llava_llama")
    prune(model, batches, TAMPModifier(sparsity=0.5), tmp_path)
    model.save_pretrained(tmp_path / "pruned")
    marker = read_marker(read_config(tmp_path / "pruned"))
    assert marker is not None and marker["layout"] == "dense"
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "pruned")
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    loaded.save_pretrained(tmp_path / "again")
    assert read_marker(read_config(tmp_path / "again")) == marker


def test_a_saved_model_can_be_packed(tmp_path: Path) -> None:
    model, batches, expected = build("llava_llama")
    prune(model, batches, TAMPModifier(sparsity=0.5), tmp_path)
    model.save_pretrained(tmp_path / "pruned")
    stats = pack_checkpoint(tmp_path / "pruned", tmp_path / "packed", min_sparsity=0.01)
    assert len(stats.linears) == len(expected.targets)
    assert is_packed(tmp_path / "packed")
