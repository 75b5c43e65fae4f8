"""Random damage of a packed folder is refused, or leaves the tensors what they were.

``python -m tests.checkpoint.test_mutations 10000`` tries more than the suite does.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tamp_modifier.checkpoint.inspection import inspect_checkpoint
from tamp_modifier.checkpoint.marker import CONFIG_KEY
from tamp_modifier.checkpoint.pack import (
    iter_dense,
    pack_checkpoint,
    unpack_checkpoint,
    write_dense,
)

TRIES = 300
Tensors = dict[str, torch.Tensor]
LAYERS = 2


def make_packed(folder: Path) -> Path:
    """A packed folder of three shards with an index: Linears, biases, norms, an odd dtype."""
    generator = torch.Generator().manual_seed(0)

    def pruned(*shape: int) -> torch.Tensor:
        weight = torch.randn(shape, generator=generator)
        weight.view(-1)[torch.randperm(weight.numel(), generator=generator)[::2]] = 0
        return weight.bfloat16()

    dense = folder / "dense"
    dense.mkdir(parents=True)
    weight_map = {}
    for number in range(LAYERS + 1):
        name = f"model-{number + 1:05}-of-{LAYERS + 1:05}.safetensors"
        tensors = {"model.embed_tokens.weight": torch.randn(9, 8, generator=generator).bfloat16()}
        tensors["model.position_ids"] = torch.arange(5)
        if number < LAYERS:
            place = f"model.layers.{number}"
            tensors = {
                f"{place}.{part}.weight": pruned(8, 8) for part in ("k_proj", "v_proj", "up_proj")
            }
            tensors |= {
                f"{place}.{part}.bias": torch.randn(8, generator=generator).bfloat16()
                for part in ("k_proj", "v_proj")
            }
            tensors[f"{place}.norm.weight"] = torch.ones(8)
        save_file(tensors, dense / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (dense / "model.safetensors.index.json").write_text(json.dumps(index))
    (dense / "config.json").write_text(json.dumps({"model_type": "none", "hidden_size": 8}))
    pack_checkpoint(dense, folder / "packed")
    return folder / "packed"


# -- mutations: each changes a folder and may find nothing to change -------------------------------


def _pick(folder: Path, chance: random.Random, pattern: str = "*") -> Path:
    return chance.choice(sorted(folder.glob(pattern)))


def flip(folder: Path, chance: random.Random) -> None:
    """A bit anywhere in a file."""
    file = _pick(folder, chance)
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def overwrite(folder: Path, chance: random.Random) -> None:
    """Some bytes anywhere in a file."""
    file = _pick(folder, chance)
    content = bytearray(file.read_bytes())
    start = chance.randrange(len(content))
    new = chance.choice([bytes(8), b"\xff" * 8, chance.randbytes(8)])[: len(content) - start]
    content[start : start + len(new)] = new
    file.write_bytes(content)


def truncate(folder: Path, chance: random.Random) -> None:
    file = _pick(folder, chance)
    content = file.read_bytes()
    file.write_bytes(content[: chance.randrange(len(content))])


def append(folder: Path, chance: random.Random) -> None:
    with open(_pick(folder, chance), "ab") as file:
        file.write(chance.randbytes(chance.randrange(1, 9)))


def lose(folder: Path, chance: random.Random) -> None:
    _pick(folder, chance).unlink()


def swap_files(folder: Path, chance: random.Random) -> None:
    first, second = chance.sample(sorted(folder.glob("*.safetensors")), 2)
    if chance.random() < 0.5:
        (folder / "model.safetensors.index.json").unlink()
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    if chance.random() < 0.7:
        second.write_bytes(one)


def header_edit(folder: Path, chance: random.Random) -> None:
    """Tensors of one file are renamed, swapped, given another dtype or shape, or lost."""
    file = _pick(folder, chance, "*.safetensors")
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    first, second = chance.sample(names, 2)
    kind = chance.randrange(5)
    if kind == 0:
        place = chance.randrange(len(first))
        header[first[:place] + chance.choice("abz._0") + first[place + 1 :]] = header.pop(first)
    elif kind == 1:
        header[first], header[second] = header[second], header[first]
    elif kind == 2:
        header[first]["dtype"] = chance.choice(["BF16", "F16", "F32", "I32", "I16", "U8"])
    elif kind == 3:
        header[first]["shape"] = header[first]["shape"][::-1] + [1] * chance.randrange(2)
    else:
        header[first]["data_offsets"] = header[second]["data_offsets"]
    if chance.random() < 0.3:
        (folder / "model.safetensors.index.json").unlink()
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def swap_weights(folder: Path, chance: random.Random) -> None:
    """Two tensors of one kind change their names, all their parts together, without the index."""
    file = _pick(folder, chance, "model-0000[12]*")
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    text = content[8 : 8 + length].decode()
    first, second = chance.choice([("k_proj", "v_proj"), ("v_proj", "up_proj")])
    kind = chance.choice([".weight", ".bias", ""])
    text = text.replace(first + kind, "?").replace(second + kind, first + kind)
    text = text.replace("?", second + kind)
    (folder / "model.safetensors.index.json").unlink()
    raw = text.encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + content[8 + length :])


def marker_edit(folder: Path, chance: random.Random) -> None:
    """A field of the marker, or one of its entries, is changed or lost."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    place: Any = chance.choice([config, config[CONFIG_KEY]])
    key = chance.choice(sorted(place))
    if isinstance(place[key], dict) and chance.random() < 0.7:
        place = place[key]
        key = chance.choice(sorted(place))
    if chance.random() < 0.5:
        del place[key]
    else:
        value = place[key]
        others = [None, 0, "dense", {}, []]
        if type(value) is int:
            others.append(value + 1)
        place[key] = chance.choice(others)
    file.write_text(json.dumps(config))


MUTATIONS: tuple[Callable[[Path, random.Random], None], ...] = (
    flip,
    overwrite,
    truncate,
    append,
    lose,
    swap_files,
    header_edit,
    swap_weights,
    marker_edit,
)
WEIGHTS = (8, 2, 1, 1, 1, 1, 4, 1, 4)


# -- readers ---------------------------------------------------------------------------------------


def _unpack(folder: Path, out: Path) -> Tensors:
    unpack_checkpoint(folder, out)
    return dict(iter_dense(sorted(out.glob("*.safetensors"))))


def _load(folder: Path, out: Path) -> Tensors:
    """As the transformers plugin reads it; transformers picks the files and reads the marker."""
    from tamp_modifier.checkpoint.files import read_config, shards
    from tamp_modifier.checkpoint.marker import read_marker

    marker = read_marker(read_config(folder))
    if marker is None or marker["layout"] != "packed":
        raise ValueError("the quantizer refuses it")
    out.mkdir()
    return dict(iter_dense(write_dense(shards(folder), out, marker)))


def _same(one: Tensors, two: Tensors) -> bool:
    return one.keys() == two.keys() and all(
        t.dtype == two[n].dtype
        and t.shape == two[n].shape
        and torch.equal(
            t.contiguous().view(-1).view(torch.uint8), two[n].view(-1).view(torch.uint8)
        )
        for n, t in one.items()
    )


def run(packed: Path, work: Path, seed: int, tries: int) -> Counter[tuple[str, str]]:
    """How many mutations of each kind were refused, or left the tensors alone.

    Raises:
        AssertionError: one changed the tensors and was accepted; says which.
    """
    expected = _unpack(packed, work / "expected")
    outcomes: Counter[tuple[str, str]] = Counter()
    for number in range(tries):
        chance = random.Random(f"{seed} {number}")
        (mutate,) = chance.choices(MUTATIONS, WEIGHTS)
        folder = work / "mutated"
        shutil.copytree(packed, folder)
        mutate(folder, chance)
        for reader in (_unpack, _load):
            try:
                found = reader(folder, work / "out")
            except (ValueError, OSError):
                outcomes[mutate.__name__, "refused"] += 1
                assert not (work / "out").exists() or reader is _load, "something was left"
            else:
                assert _same(found, expected), f"{mutate.__name__} {seed} {number}: {reader}"
                outcomes[mutate.__name__, "the same tensors"] += 1
            shutil.rmtree(work / "out", ignore_errors=True)
        shutil.rmtree(folder)
    return outcomes


@pytest.mark.parametrize("seed", [0])
def test_no_mutation_changes_a_tensor_unseen(seed: int, tmp_path: Path) -> None:
    outcomes = run(make_packed(tmp_path / "made"), tmp_path, seed, TRIES)
    for mutation in MUTATIONS:
        assert outcomes[mutation.__name__, "refused"] > 0, mutation.__name__
    refused = sum(count for (_, what), count in outcomes.items() if what == "refused")
    assert refused > TRIES  # of two readers


def test_inspect_refuses_flips_in_tensors_that_are_not_packed(tmp_path: Path) -> None:
    packed = make_packed(tmp_path / "made")
    file = packed / "model-00003-of-00003.safetensors"
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    for place in range(8 + length, len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="embed_tokens|position_ids"):
            inspect_checkpoint(packed)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = run(make_packed(Path(place) / "made"), Path(place), 1, int(sys.argv[1]))
        for (name, what), count in sorted(found.items()):
            print(f"{name:14} {what:17} {count}")
