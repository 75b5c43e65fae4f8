"""docs/sparse-format.md: its reader, which is Python alone, reads what the package writes."""

from __future__ import annotations

import doctest
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tamp_modifier import cli, sparse
from tamp_modifier.sparse.format import STORAGE_DTYPES

PAGE = (Path(__file__).parents[2] / "docs" / "sparse-format.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = "model.layers.0.mlp.up_proj.weight"
SHAPES = [(1, 1), (2, 3), (4, 32), (5, 33), (11, 70), (0, 8), (8, 0)]


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(PAGE) if kind == language]


@pytest.fixture(scope="module")
def read_weight() -> Callable[[Path, str], list[bytes]]:
    """The reader of the page."""
    names: dict[str, Any] = {}
    (code,) = blocks("python")
    exec(code, names)
    return names["read_weight"]


def random_weight(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Random bits, a half of them zero; no -0, which is not kept."""
    generator = torch.Generator().manual_seed(0)
    info = torch.iinfo(STORAGE_DTYPES[dtype])
    bits = torch.randint(info.min, info.max + 1, shape, generator=generator)
    if dtype != torch.int8:
        bits[bits == info.min] = 0
    bits[torch.rand(shape, generator=generator) < 0.5] = 0
    return bits.to(STORAGE_DTYPES[dtype]).view(dtype)


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())


def raw_rows(weight: torch.Tensor) -> list[bytes]:
    return [raw(row) for row in weight]


def write(folder: Path, weight: torch.Tensor, **changes: Any) -> Path:
    tensors = sparse.to_tensors(sparse.pack(weight), NAME)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    for part, change in changes.items():
        change(tensors[f"{NAME}.tamp_{part}"])
    save_file(tensors, folder / "packed.safetensors")
    return folder / "packed.safetensors"


def test_the_example_is_right() -> None:
    runner = doctest.DocTestRunner()
    for text in blocks("pycon"):
        runner.run(doctest.DocTestParser().get_doctest(text, {}, "page", None, 0))
    assert runner.summarize(verbose=False).attempted > 3
    assert not runner.failures


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", list(STORAGE_DTYPES))
def test_the_reader_of_the_page_gives_the_dense_weight(tmp_path, read_weight, shape, dtype) -> None:
    weight = random_weight(shape, dtype)
    assert read_weight(write(tmp_path, weight), NAME) == raw_rows(weight)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8, torch.float32])
def test_memory_is_laid_out_as_on_the_page(path, shape, dtype) -> None:
    """Written from the page: words, values and offsets, one weight at a time."""
    weight = random_weight(shape, dtype)
    words, values, offsets = [], b"", [0]
    size = dtype.itemsize
    rows = raw_rows(weight)
    for block in range(0, shape[0], 4):
        for tile in range(0, shape[1], 32):
            for row in range(block, block + 4):
                word = 0
                for bit, column in enumerate(range(tile, min(tile + 32, shape[1]))):
                    value = rows[row][column * size :][:size] if row < shape[0] else b""
                    if any(value):
                        word |= 1 << bit
                        values += value
                words.append(word)
        offsets.append(len(values) // size)
    packed = sparse.pack(weight)
    assert packed.mask.shape == (-(-shape[0] // 4), -(-shape[1] // 32), 4)
    assert raw(packed.mask) == struct.pack(f"<{len(words)}I", *words)
    assert raw(packed.values) == values + bytes(64)
    assert packed.offsets.tolist() == offsets


def set_entry(number: int, value: int) -> Callable[[torch.Tensor], None]:
    def change(tensor: torch.Tensor) -> None:
        tensor.view(-1)[number] = value

    return change


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": set_entry(0, 12345)},
        {"values": set_entry(3, 77)},
        {"header": set_entry(0, 2)},
        {"header": set_entry(3, 1)},
        {"header": set_entry(5, 0)},
    ],
)
def test_package_and_page_refuse_the_same_damage(tmp_path, read_weight, changes) -> None:
    file = write(tmp_path, random_weight((11, 70), torch.bfloat16), **changes)
    with pytest.raises(ValueError, match="damaged|not known|says"):
        read_weight(file, NAME)
    with safe_open(file, "pt") as stored, pytest.raises(ValueError, match=NAME):
        sparse.from_tensors({name: stored.get_tensor(name) for name in stored.keys()}, NAME)


def test_a_packed_checkpoint_is_as_the_page_says(tmp_path, read_weight) -> None:
    source, packed = tmp_path / "dense", tmp_path / "packed"
    source.mkdir()
    weight = torch.tensor([[0, 1.5, 0], [-2, 0, 3]], dtype=torch.bfloat16)
    bias = torch.ones(7, dtype=torch.int8)  # of an odd size, in front of nothing
    save_file({NAME: weight, "bias": bias}, source / "model.safetensors")
    (source / "config.json").write_text("{}")
    cli.main(["pack", str(source), str(packed)])
    file = packed / "model.safetensors"
    assert read_weight(file, NAME) == raw_rows(weight)

    (marker,) = map(json.loads, blocks("json"))
    marker["compression_config"]["tensors"] = 2  # the bias
    text = zlib.crc32(b"torch.int8 7")
    marker["compression_config"]["checksums"]["bias"] = zlib.crc32(raw(bias), text)
    assert json.loads((packed / "config.json").read_text()) == marker

    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    sizes = {"I64": 8, "I32": 4, "BF16": 2, "I8": 1}
    for entry in json.loads(content[8 : 8 + length]).values():
        assert entry["data_offsets"][0] % sizes[entry["dtype"]] == 0
