"""Whole checkpoint folders: packed, unpacked, interrupted and damaged."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tamp_modifier import sparse
from tamp_modifier.checkpoint import pack as checkpoint
from tamp_modifier.checkpoint.inspection import inspect_checkpoint
from tamp_modifier.checkpoint.pack import (
    is_packed,
    iter_dense,
    pack_checkpoint,
    unpack_checkpoint,
)
from tests.sparse.test_serialization import legacy_24, legacy_bitmask, weight_24

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"


def tensors_of_a_model(sparsity: float = 0.5) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)

    def pruned(*shape: int) -> torch.Tensor:
        weight = torch.randn(shape)
        weight[torch.rand(shape) < sparsity] = 0
        return weight.bfloat16()

    embedding = torch.randn(50, 64).bfloat16()
    embedding[:30] = 0
    return {
        UP: pruned(129, 64),
        DOWN: pruned(64, 129),
        "model.embed_tokens.weight": embedding,
        "model.layers.0.self_attn.q_proj.weight": torch.randn(64, 64).bfloat16(),
        "model.layers.0.input_layernorm.weight": torch.ones(64).bfloat16(),
        "model.position_ids": torch.arange(5),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of two shards with an index."""
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = tensors_of_a_model()
    parts = [dict(list(tensors.items())[:2]), dict(list(tensors.items())[2:])]
    weight_map = {}
    for number, part in enumerate(parts):
        name = f"model-0000{number + 1}-of-00002.safetensors"
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / checkpoint.INDEX_FILE).write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie": True}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "extra").mkdir()
    (folder / "extra" / "note.txt").write_text("note")
    return folder


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    return dict(iter_dense(checkpoint.shards(folder)))


def test_pack_and_unpack_give_back_every_bit(model, tmp_path):
    packed, dense = tmp_path / "packed", tmp_path / "dense"
    stats = pack_checkpoint(model, packed)
    assert set(stats.linears) == {UP.removesuffix(".weight"), DOWN.removesuffix(".weight")}
    assert is_packed(packed) and not is_packed(model)
    unpack_checkpoint(packed, dense)
    assert not is_packed(dense)
    original = tensors_of_a_model()
    for folder in (packed, dense):
        tensors = read_all(folder)
        assert tensors.keys() == original.keys()
        for name, tensor in original.items():
            assert tensors[name].dtype == tensor.dtype
            assert torch.equal(tensors[name], tensor), name
    for file in checkpoint.shards(dense):
        assert load_file(file).keys() == load_file(model / file.name).keys()


def test_the_packed_folder_is_complete(model, tmp_path):
    stats = pack_checkpoint(model, tmp_path / "packed")
    packed = tmp_path / "packed"
    config = json.loads((packed / "config.json").read_text())
    assert config["model_type"] == "llama" and config["tie"] is True
    marker = sparse.read_marker(config)
    assert marker["layout"] == "packed" and marker["linears"] == stats.linears
    kept = int((tensors_of_a_model()[UP] != 0).sum())
    assert marker["linears"][UP.removesuffix(".weight")] == kept
    index = json.loads((packed / checkpoint.INDEX_FILE).read_text())
    stored = {}
    for file in checkpoint.shards(packed):
        with safe_open(file, framework="pt") as handle:
            assert handle.metadata() == {"format": "pt"}
            stored.update(dict.fromkeys(handle.keys(), file.name))
    assert index["weight_map"] == stored
    assert index["metadata"]["total_size"] == stats.total_bytes
    assert (packed / "tokenizer.json").exists()
    assert (packed / "extra" / "note.txt").read_text() == "note"
    assert {UP + suffix for suffix in sparse.PACKED_SUFFIXES} <= stored.keys()


def test_half_sparse_linears_take_at_most_60_percent(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    weight = torch.randn(512, 512).bfloat16() * (torch.rand(512, 512) > 0.5)
    save_file({UP: weight}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    stats = pack_checkpoint(folder, tmp_path / "packed")
    assert stats.ratio <= 0.60
    size = (tmp_path / "packed" / "model.safetensors").stat().st_size
    assert size <= 0.60 * weight.nbytes + 1000


def test_float8_and_int8_weights_are_packed_as_bytes(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    weight = torch.randn(64, 96) * (torch.rand(64, 96) > 0.6)
    tensors = {"a.weight": weight.to(torch.float8_e4m3fn), "b.weight": (weight * 20).to(torch.int8)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    pack_checkpoint(folder, tmp_path / "packed")
    for name, tensor in read_all(tmp_path / "packed").items():
        expected = tensors[name].view(torch.int8)
        expected = torch.where(expected == -128, 0, expected) if name == "a.weight" else expected
        assert torch.equal(tensor.view(torch.int8), expected.to(torch.int8))


def test_legacy_checkpoints_become_dense_or_packed(tmp_path):
    folder = tmp_path / "legacy"
    folder.mkdir()
    weight = weight_24()
    first, second = legacy_bitmask(weight), legacy_24(weight)
    renamed = {key.replace("up_proj", "gate_proj"): tensor for key, tensor in second.items()}
    tensors = {key: tensor.contiguous() for key, tensor in {**first, **renamed}.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    expected = {"model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"}
    unpack_checkpoint(folder, tmp_path / "dense")
    pack_checkpoint(folder, tmp_path / "packed")
    for out in ("dense", "packed"):
        found = read_all(tmp_path / out)
        assert found.keys() == expected
        assert all(torch.equal(tensor, weight) for tensor in found.values())


def test_progress_names_every_tensor(model, tmp_path):
    seen = []
    pack_checkpoint(model, tmp_path / "packed", progress=lambda *step: seen.append(step))
    assert {name for name, _, _ in seen} == tensors_of_a_model().keys()
    assert {total for _, _, total in seen} == {2}


def test_an_interrupted_run_leaves_nothing(model, tmp_path):
    def stop(name, shard, shards):
        if shard == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_checkpoint(model, tmp_path / "packed", progress=stop)
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_a_full_target_is_refused(model, tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "mine").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        pack_checkpoint(model, tmp_path / "packed")


def test_a_dense_model_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({UP: torch.ones(8, 8)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="prune the model first"):
        pack_checkpoint(folder, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("min_sparsity", [0, -1, 1.5, float("nan")])
def test_a_bad_threshold_is_refused(model, tmp_path, min_sparsity):
    with pytest.raises(ValueError, match="min_sparsity"):
        pack_checkpoint(model, tmp_path / "packed", min_sparsity=min_sparsity)


def test_missing_and_broken_files_are_named(model, tmp_path):
    out = tmp_path / "packed"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pack_checkpoint(tmp_path / "nowhere", out)
    shard = model / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=shard.name):
        pack_checkpoint(model, out)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        pack_checkpoint(model, out)
    (model / checkpoint.INDEX_FILE).write_text('{"weight_map": {"a": "../a.safetensors"}}')
    with pytest.raises(ValueError, match="not a file name"):
        pack_checkpoint(model, out)
    (model / checkpoint.INDEX_FILE).write_text("[]")
    with pytest.raises(ValueError, match="index"):
        pack_checkpoint(model, out)
    (model / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json"):
        is_packed(model)


def test_a_flipped_bit_in_the_file_names_the_tensor(model, tmp_path):
    packed = tmp_path / "packed"
    pack_checkpoint(model, packed)
    file = packed / "model-00001-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    header = int.from_bytes(content[:8], "little")
    places = json.loads(content[8 : 8 + header])
    for suffix in (".tamp_values", ".tamp_mask", ".tamp_header"):
        damaged = content.copy()
        damaged[8 + header + places[DOWN + suffix]["data_offsets"][0] + 3] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=DOWN):
            unpack_checkpoint(packed, tmp_path / "dense")


def test_a_config_that_does_not_fit_the_weights_is_refused(model, tmp_path):
    packed = tmp_path / "packed"
    pack_checkpoint(model, packed)
    file = packed / "config.json"
    config = json.loads(file.read_text())
    linears = config[sparse.CONFIG_KEY]["linears"]
    for change, message in (({UP.removesuffix(".weight"): 7}, UP), ({"gone": 7}, "gone")):
        config[sparse.CONFIG_KEY]["linears"] = {**linears, **change}
        file.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            unpack_checkpoint(packed, tmp_path / "dense")


def test_a_folder_that_is_not_ours_is_left_alone(model, tmp_path):
    (tmp_path / "packed.partial").mkdir()
    (tmp_path / "packed.partial" / "thesis.txt").write_text("mine")
    pack_checkpoint(model, tmp_path / "packed")
    assert (tmp_path / "packed.partial" / "thesis.txt").read_text() == "mine"
    assert {item.name for item in tmp_path.iterdir()} == {"model", "packed", "packed.partial"}


def test_a_terminated_run_leaves_nothing(model, tmp_path):
    def stop(name, shard, shards):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        pack_checkpoint(model, tmp_path / "packed", progress=stop)
    assert end.value.code == 143 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_places_that_cannot_be_written_are_refused(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="lies inside"):
        pack_checkpoint(model, model / "packed")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="the current folder"):
        pack_checkpoint(model, ".")


READERS = {
    "pack": lambda model: pack_checkpoint(model, model.parent / "out"),
    "unpack": lambda model: unpack_checkpoint(model, model.parent / "out"),
    "inspect": inspect_checkpoint,
}


@pytest.mark.parametrize("command", READERS)
def test_half_a_model_is_refused(model, command):
    read, index = READERS[command], model / checkpoint.INDEX_FILE
    content = json.loads(index.read_text())
    first, second = sorted(set(content["weight_map"].values()))

    def refused(weight_map, message, kind=ValueError):
        index.write_text(json.dumps({**content, "weight_map": weight_map}))
        with pytest.raises(kind, match=message):
            read(model)

    weight_map = content["weight_map"]
    refused({UP: second, **{k: v for k, v in weight_map.items() if k != UP}}, UP)
    refused({k: v for k, v in weight_map.items() if k != UP}, f"{first} holds {UP}, which")
    refused({**weight_map, "lost.weight": first}, f"{first} lacks lost.weight, which")
    only = {k: v for k, v in weight_map.items() if v == first}
    refused(only, second, FileNotFoundError)
    refused(list(weight_map), "is not a safetensors index")
    index.unlink()
    (model / second).unlink()
    with pytest.raises(FileNotFoundError, match=second):
        read(model)


@pytest.mark.parametrize("command", ["pack", "inspect"])
def test_the_marker_of_a_dense_checkpoint_is_checked(model, command):
    linear, kept = UP.removesuffix(".weight"), int((tensors_of_a_model()[UP] != 0).sum())

    def read(linears, tensors):
        marker = {**sparse.config_marker("dense", linears), "tensors": tensors}
        (model / "config.json").write_text(json.dumps({sparse.CONFIG_KEY: marker}))
        return READERS[command](model)

    with pytest.raises(ValueError, match=f"keeps {kept} values, config.json says 7"):
        read({linear: 7}, 6)
    with pytest.raises(ValueError, match="missing: gone"):
        read({"gone": 7}, 6)
    with pytest.raises(ValueError, match="6 tensors, config.json says 7"):
        read({linear: kept}, 7)
    with pytest.raises(ValueError, match="tensors must be a number, got '6'"):
        read({linear: kept}, "6")
    read({linear: kept}, 6)


def test_a_lost_tensor_of_a_packed_checkpoint_is_noticed(model, tmp_path):
    packed = tmp_path / "packed"
    pack_checkpoint(model, packed)
    assert sparse.read_marker(checkpoint.read_config(packed))["tensors"] == 6
    file = packed / "model-00002-of-00002.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.input_layernorm.weight"]
    save_file(tensors, file)
    (packed / checkpoint.INDEX_FILE).unlink()
    for command in ("unpack", "inspect"):
        with pytest.raises(ValueError, match="5 tensors, config.json says 6"):
            READERS[command](packed)


def test_there_must_be_something_to_do(model, tmp_path):
    with pytest.raises(ValueError, match="nothing is packed"):
        unpack_checkpoint(model, tmp_path / "dense")
    pack_checkpoint(model, tmp_path / "packed")
    with pytest.raises(ValueError, match="is packed already"):
        pack_checkpoint(tmp_path / "packed", tmp_path / "again")


def test_a_dtype_that_cannot_be_packed_is_named(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({UP: torch.eye(8, dtype=torch.float64)}, folder / "model.safetensors")
    marker = sparse.config_marker("dense")
    (folder / "config.json").write_text(json.dumps({sparse.CONFIG_KEY: marker}))
    with pytest.raises(ValueError, match="float64 weights cannot be packed"):
        pack_checkpoint(folder, tmp_path / "packed")
    (linear,) = inspect_checkpoint(folder).linears
    assert linear.why == "float64 without quantization_config is not served packed"
