"""Checkpoints of 4-bit weights on disk: packed, and the same bits again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tamp_modifier.checkpoint.int4 import (
    group_sizes,
    pack_columns,
    pack_words,
    read_codes,
    unpack_columns,
    unpack_words,
)
from tamp_modifier.checkpoint.pack import pack_checkpoint, unpack_checkpoint
from tamp_modifier.sparse.int4 import validate_int4
from tamp_modifier.sparse.int4_serialization import from_tensors_int4, to_tensors_int4
from tamp_modifier.sparse.serialization import numbers_checksum, packed_checksum

LINEAR = "model.layers.0.mlp.up_proj"
WORDS = f"{LINEAR}.weight_packed"


def linear(
    rows: int, columns: int, group: int, symmetric: bool, sparsity: float, seed: int = 0
) -> dict[str, Tensor]:
    """The tensors that compressed-tensors writes for one Linear, without ``LINEAR.``."""
    torch.manual_seed(seed)
    groups = -(-columns // group)
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    zeros = torch.full((rows, groups), 8, dtype=torch.uint8)
    if not symmetric:
        zeros = torch.randint(0, 16, (rows, groups), dtype=torch.uint8)
    fill = zeros.repeat_interleave(group, 1)[:, :columns]
    codes = torch.where(torch.rand(rows, columns) < sparsity, fill, codes)
    found = {
        "weight_packed": pack_columns(codes),
        "weight_scale": torch.rand(rows, groups).bfloat16(),
        "weight_shape": torch.tensor([rows, columns]),
    }
    if not symmetric:
        found["weight_zero_point"] = pack_columns(zeros.t().contiguous()).t().contiguous()
    return found


def packed_of(tensors: dict[str, Tensor]) -> Any:
    named = {f"{LINEAR}.{name}": tensor for name, tensor in tensors.items()}
    return pack_words(WORDS, named[WORDS], named.get)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rows", [8, 20, 24])
def test_rows_are_packed_in_chunks_to_the_same_bytes(
    rows: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = linear(rows, 96, 32, symmetric, 0.5)
    whole = to_tensors_int4(packed_of(tensors), WORDS)
    monkeypatch.setattr("tamp_modifier.checkpoint.int4.CHUNK_BYTES", 1)  # 8 rows at a time
    packed = packed_of(tensors)
    validate_int4(packed)
    for name, tensor in to_tensors_int4(packed, WORDS).items():
        assert torch.equal(tensor, whole[name]), name
    assert torch.equal(unpack_words(packed), tensors["weight_packed"])


@pytest.mark.parametrize(
    ("named", "size"), [((), 96), ({128}, 128), ({96}, 96), ({64}, 96), ({96, 128}, 96)]
)
def test_the_size_of_groups_is_that_of_the_config(named: set[int], size: int) -> None:
    """160 columns in two groups: the number alone does not tell their size."""
    tensors = linear(8, 160, 128, False, 0.5)
    found = {f"{LINEAR}.{name}": tensor for name, tensor in tensors.items()}
    codes = read_codes(WORDS, found[WORDS], found.get, named)
    assert codes is not None and codes.group_size == size
    packed = pack_words(WORDS, found[WORDS], found.get, named)
    assert packed is not None and packed.group_size == size and packed.kept == codes.kept()
    header = to_tensors_int4(packed, WORDS)[f"{WORDS}.tamp_header"]
    assert int(header[4]) == size, "the file says it"
    assert torch.equal(unpack_words(packed), tensors["weight_packed"])


def test_group_sizes_are_read_from_the_config() -> None:
    def group(bits: int, strategy: str, size: int | None) -> dict[str, Any]:
        return {"weights": {"num_bits": bits, "strategy": strategy, "group_size": size}}

    config = {
        "a": group(4, "group", 128),
        "b": group(4, "channel", None),
        "c": group(8, "group", 32),
    }
    assert group_sizes({"config_groups": config}) == {128, -1}
    assert group_sizes({}) == set()


@given(
    rows=st.integers(1, 19),
    columns=st.sampled_from([8, 31, 32, 64, 96, 200]),
    group=st.sampled_from([32, 64]),
    symmetric=st.booleans(),
    sparsity=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_words_come_back_bit_by_bit(
    rows: int, columns: int, group: int, symmetric: bool, sparsity: float, seed: int
) -> None:
    tensors = linear(rows, columns, group, symmetric, sparsity, seed)
    packed = packed_of(tensors)
    stored = to_tensors_int4(packed, WORDS)
    again = from_tensors_int4(stored, WORDS)
    assert torch.equal(unpack_words(again), tensors["weight_packed"])
    assert again.kept == packed.kept and len(stored) == 3
    codes = unpack_columns(tensors["weight_packed"], columns)
    fill = torch.tensor(8) if symmetric else None
    if fill is not None:
        assert packed.kept == int((codes != 8).sum())


def test_what_would_not_come_back_stays_as_it_is() -> None:
    tensors = linear(8, 12, 32, True, 0.5)  # four codes fill the last word of a row up
    assert packed_of(tensors) is not None
    tensors["weight_packed"][:, -1] |= 3 << 28
    assert packed_of(tensors) is None
    without_shape = linear(8, 32, 32, True, 0.5)
    del without_shape["weight_shape"]
    assert packed_of(without_shape) is None
    ordered = linear(8, 64, 32, False, 0.5)
    ordered["weight_g_idx"] = torch.arange(64) % 2
    assert packed_of(ordered) is None


@pytest.mark.parametrize("part", [".tamp_mask", ".tamp_values", ".tamp_header"])
def test_damage_is_found(part: str) -> None:
    stored = to_tensors_int4(packed_of(linear(8, 64, 32, False, 0.5)), WORDS)
    for place in range(stored[WORDS + part].numel()):
        broken = {name: tensor.clone() for name, tensor in stored.items()}
        broken[WORDS + part].view(-1)[place] ^= 1
        with pytest.raises(ValueError, match=WORDS):
            from_tensors_int4(broken, WORDS)
    lacking = {name: tensor for name, tensor in stored.items() if not name.endswith(part)}
    with pytest.raises(ValueError, match="the file lacks"):
        from_tensors_int4(lacking, WORDS)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "dense"
    folder.mkdir()
    tensors: dict[str, Tensor] = {"lm_head.weight": torch.randn(8, 64)}
    for name, symmetric, sparsity in (("up_proj", True, 0.5), ("down_proj", False, 0.6)):
        for kind, tensor in linear(64, 256, 64, symmetric, sparsity).items():
            tensors[f"model.layers.0.mlp.{name}.{kind}"] = tensor
    for kind, tensor in linear(64, 256, 64, True, 0.05).items():
        tensors[f"model.layers.0.mlp.gate_proj.{kind}"] = tensor
    save_file(tensors, folder / "model.safetensors")
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    config = {"model_type": "llama", "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_checkpoint_is_packed_and_unpacked_to_the_same_bits(
    checkpoint: Path, tmp_path: Path
) -> None:
    stats = pack_checkpoint(checkpoint, tmp_path / "packed")
    assert set(stats.linears) == {f"model.layers.0.mlp.{name}" for name in ("up_proj", "down_proj")}
    assert stats.ratio < 0.80
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert config["compression_config"]["layout"] == "packed"
    stored = load_file(tmp_path / "packed" / "model.safetensors")
    header = stored[f"{WORDS}.tamp_header"]
    assert config["compression_config"]["checksums"][WORDS] == packed_checksum(header)
    assert WORDS not in stored and "model.layers.0.mlp.gate_proj.weight_packed" in stored

    unpack_checkpoint(tmp_path / "packed", tmp_path / "again")
    before = load_file(checkpoint / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (
        again["quantization_config"]
        == json.loads((checkpoint / "config.json").read_text())["quantization_config"]
    )


def test_zero_points_in_another_shard_are_found(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    words = {name: tensor for name, tensor in tensors.items() if name.endswith("_packed")}
    others = {name: tensor for name, tensor in tensors.items() if name not in words}
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file(words, checkpoint / names[0])
    save_file(others, checkpoint / names[1])
    index = dict.fromkeys(words, names[0]) | dict.fromkeys(others, names[1])
    content = {"metadata": {}, "weight_map": index}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(content))
    stats = pack_checkpoint(checkpoint, tmp_path / "packed")
    down = linear(64, 256, 64, False, 0.6)
    zeros = unpack_columns(down["weight_zero_point"].t(), 64).t().repeat_interleave(64, 1)
    codes = unpack_columns(down["weight_packed"], 256)
    assert stats.linears["model.layers.0.mlp.down_proj"] == int((codes != zeros).sum())


def test_shapes_that_are_no_integers_leave_the_weight_as_it_is() -> None:
    tensors = linear(8, 32, 32, True, 0.5)
    for shape in (torch.tensor([8.0, 32.0]), torch.tensor([8, 32, 1]), torch.tensor([-8, 32])):
        assert packed_of(tensors | {"weight_shape": shape}) is None


def test_a_negative_size_is_refused_by_name() -> None:
    stored = to_tensors_int4(packed_of(linear(8, 64, 32, True, 0.5)), WORDS)
    numbers = stored[f"{WORDS}.tamp_header"].tolist()
    numbers[1] = -3
    numbers[-1] = numbers_checksum(numbers[:-1])
    stored[f"{WORDS}.tamp_header"] = torch.tensor(numbers)
    with pytest.raises(ValueError, match=f"{WORDS}: a packed weight has"):
        from_tensors_int4(stored, WORDS)


def test_a_changed_count_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    pack_checkpoint(checkpoint, tmp_path / "packed")
    file = tmp_path / "packed" / "config.json"
    config = json.loads(file.read_text())
    config["compression_config"]["linears"][LINEAR] += 1
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{WORDS} keeps .* values, config.json says"):
        unpack_checkpoint(tmp_path / "packed", tmp_path / "again")
