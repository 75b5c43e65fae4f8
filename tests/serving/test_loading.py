"""Loading: how much memory it takes, and what is refused with one clear message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tamp_modifier.checkpoint.marker import CONFIG_KEY
from tamp_modifier.checkpoint.pack import pack_checkpoint
from tests.serving import models
from tests.serving.conftest import FORCED, TEXTS
from tests.serving.harness import run_jobs

LINEAR = "model.layers.1.mlp.down_proj"
MIB = 1 << 20


@pytest.fixture(scope="module")
def large(work: Path) -> Path:
    """A Llama whose layers are large against the noise of a memory measurement."""
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 8}
    return models.llama(work / "large", num_hidden_layers=6, initializer_range=0.02, **sizes)


@pytest.fixture(scope="module")
def loaded(large: Path, work: Path) -> dict[str, dict[str, Any]]:
    """The model loaded from both layouts, and with a --quantization flag instead of a marker."""
    pack_checkpoint(large, work / "large-packed")
    unmarked = shutil.copytree(large, work / "large-unmarked")
    models.edit_config(unmarked, lambda config: config.pop(CONFIG_KEY))
    jobs = [
        {"model": str(large), "prompts": TEXTS},
        {"model": str(work / "large-packed"), "prompts": TEXTS},
        {"model": str(unmarked), "prompts": TEXTS, "options": {"quantization": "tamp_sparse"}},
    ]
    results = run_jobs(jobs, work / "loading")
    return dict(zip(("dense", "packed", "unmarked"), results, strict=True))


def dense_layer_bytes(folder: Path) -> int:
    """Bytes of the Linears of one decoder layer, dense."""
    return sum(t.nbytes for name, t in models.read(folder).items() if ".layers.0." in name)


def sparse_bytes(result: dict[str, Any]) -> int:
    """Bytes of all packed Linears."""
    return sum(size for _, size in result["linears"].values())


@pytest.mark.parametrize("layout", ["dense", "packed"])
def test_peak_is_the_sparse_model_and_two_dense_layers(
    layout: str, large: Path, loaded: dict[str, dict[str, Any]]
) -> None:
    result = loaded[layout]
    assert "error" not in result, result["error"]
    total = 6 * dense_layer_bytes(large)
    assert sparse_bytes(result) < 0.6 * total
    others = 16 * MIB  # embeddings, norms, and what the measurement itself takes
    limit = sparse_bytes(result) + 2 * dense_layer_bytes(large) + others
    assert 0 < result["peak"] <= limit
    assert result["kept"] <= sparse_bytes(result) + others


def test_without_a_marker_the_flag_is_enough(loaded: dict[str, dict[str, Any]]) -> None:
    assert loaded["unmarked"]["linears"] == loaded["dense"]["linears"]
    assert loaded["unmarked"]["outputs"] == loaded["dense"]["outputs"]


@pytest.fixture(scope="module")
def quantized(large: Path, work: Path) -> dict[str, dict[str, Any]]:
    """The large model in INT8 and INT4, with sparse kernels."""
    folders = [
        models.int8(large, work / "large-int8"),
        models.int4(large, work / "large-int4", size=128),
    ]
    jobs = [{"model": str(folder), "prompts": TEXTS[:1]} for folder in folders]
    return dict(zip(("int8", "int4"), run_jobs(jobs, work / "large", environ=FORCED), strict=True))


@pytest.mark.parametrize(("name", "bits", "share"), [("int8", 8, 0.66), ("int4", 4.125, 0.8)])
def test_half_of_a_quantized_weight_takes_less_than_the_dense_one(
    name: str, bits: float, share: float, quantized: dict[str, dict[str, Any]]
) -> None:
    result = quantized[name]
    assert "error" not in result, result["error"]
    _, size = result["linears"]["model.layers.0.self_attn.o_proj"]  # 1024 x 1024, half zeros
    assert size <= share * 1024 * 1024 * bits / 8
    assert result["kept"] <= sparse_bytes(result) + 16 * MIB
    assert result["peak"] <= sparse_bytes(result) + 32 * MIB


# -- refusals --------------------------------------------------------------------------------------


def _tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = models.read(folder)
        change(tensors)
        models.write(folder, tensors)

    return edit


def _marker(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: models.edit_config(folder, lambda config: change(config[CONFIG_KEY]))


def _shards(folder: Path) -> None:
    """Split into two shards with an index, then lose one."""
    tensors = models.read(folder)
    (folder / models.WEIGHTS).unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in shards.items():
        models.save_file({n: tensors[n] for n in members}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, members in shards.items() for name in members}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "b.safetensors").unlink()


def _forget(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(marker: dict[str, Any]) -> None:
        for key in keys:
            marker.pop(key, None)

    return change


def _both(*edits: Callable[[Path], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)

    return edit


def _flip(tensors: dict[str, Tensor]) -> None:
    values = tensors[f"{LINEAR}.weight.tamp_values"].view(torch.int16)
    values[7] ^= 64


REFUSED: dict[str, tuple[str, Callable[[Path], None], dict[str, Any], str]] = {
    # name: (checkpoint, what is done to it, options, part of the message)
    "shard": ("llama", _shards, {}, "the index names missing files: b.safetensors"),
    "linear": (
        "llama",
        _tensors(lambda tensors: tensors.pop(f"{LINEAR}.weight")),
        {},
        f"it lacks {LINEAR}",
    ),
    "linear-unlisted": (
        "llama",
        _both(
            _tensors(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight")),
            _marker(_forget("linears", "tensors")),
        ),
        {},
        "model.layers.1.mlp.gate_up_proj: the checkpoint brought",
    ),
    "norm": (
        "llama",
        _tensors(lambda tensors: tensors.pop("model.norm.weight")),
        {},
        "tensors, config.json says",
    ),
    "part": (
        "llama-packed",
        _tensors(lambda tensors: tensors.pop(f"{LINEAR}.weight.tamp_mask")),
        {},
        f"{LINEAR}.weight: the packed checkpoint lacks {LINEAR}.weight.tamp_mask",
    ),
    "dense": (
        "llama-packed",
        _tensors(lambda tensors: tensors["model.norm.weight"][3].add_(1)),
        {},
        "model.norm.weight is damaged or was changed after packing",
    ),
    "renamed": (
        "llama-packed",
        _tensors(lambda tensors: tensors.update(norm=tensors.pop("model.norm.weight"))),
        {},
        "config.json names weights that are missing: model.norm.weight",
    ),
    "damaged": ("llama-packed", _tensors(_flip), {}, f"{LINEAR}.weight"),
    "mask": (
        "llama",
        _tensors(lambda tensors: tensors[f"{LINEAR}.weight"][3].fill_(0.5)),
        {},
        f"{LINEAR}: the weight has",
    ),
    "version": ("llama", _marker(lambda marker: marker.update(version=9)), {}, "version is 9"),
    "dtype": (
        "llama",
        _tensors(
            lambda tensors: tensors.update(
                {f"{LINEAR}.weight": tensors[f"{LINEAR}.weight"].to(torch.float8_e4m3fn)}
            )
        ),
        {},
        f"{LINEAR}: the checkpoint's weight has dtype float8_e4m3fn",
    ),
}


@pytest.fixture(scope="module")
def refused(checkpoints: dict[str, Path], work: Path) -> dict[str, dict[str, Any]]:
    """What comes of each broken checkpoint."""
    jobs = []
    for name, (source, edit, options, _) in REFUSED.items():
        folder = shutil.copytree(checkpoints[source], work / "refused" / name)
        edit(folder)
        jobs.append({"model": str(folder), "prompts": TEXTS, "options": options})
    return dict(zip(REFUSED, run_jobs(jobs, work / "refusals"), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_one_clear_message(name: str, refused: dict[str, dict[str, Any]]) -> None:
    assert "error" in refused[name], "the engine started"
    assert REFUSED[name][3] in refused[name]["error"]
