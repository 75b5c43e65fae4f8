"""Folders that claim more than they are, or point elsewhere, are refused; nothing is written."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tamp_modifier import cli
from tamp_modifier.checkpoint import memory
from tamp_modifier.checkpoint.inspection import inspect_checkpoint
from tamp_modifier.checkpoint.marker import CONFIG_KEY
from tamp_modifier.checkpoint.pack import pack_checkpoint, unpack_checkpoint

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    dense = tmp_path / "dense"
    dense.mkdir()
    weight = torch.randn(32, 32).bfloat16() * (torch.rand(32, 32) > 0.5)
    tensors = {NAME: weight, "norm": torch.ones(3)}
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    (dense / "config.json").write_text("{}")
    (dense / "notes.txt").write_text("notes")
    (dense / "extra").mkdir()
    (dense / "extra" / "a.txt").write_text("a")
    pack_checkpoint(dense, tmp_path / "p")
    return tmp_path / "p"


def link(name: str, target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(target)


def chain(folder: Path) -> None:
    link("one", "two")(folder)
    link("two", "one")(folder)


def fifo(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return edit


def sock(folder: Path) -> None:
    before = Path.cwd()
    os.chdir(folder)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("s")
    finally:
        os.chdir(before)


def holes(folder: Path) -> None:
    with open(folder / "big.bin", "wb") as file:
        file.truncate(131072 * 131072 * 2)


def crowd(folder: Path) -> None:
    for number in range(101):
        (folder / f"d{number}").mkdir()
        for name in range(100 if number == 0 else 0):
            (folder / "d0" / f"{name}").touch()
    for number in range(101):
        (folder / f"e{number}").symlink_to("d0")


def many(folder: Path) -> None:
    """Links that make few folders many."""
    for depth in range(30):
        (folder / f"d{depth}").mkdir()
        if depth:
            for name in "ab":
                (folder / f"d{depth - 1}" / name).symlink_to(f"../d{depth}")


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a file outside": (link("x", "/etc/hostname"), "x is a link to /etc/hostname, outside"),
    "a folder outside": (link("x", "/etc/ssl"), "x is a link to /etc/ssl, outside"),
    "deeper": (link("extra/x", "../../dense/notes.txt"), "extra/x is a link to "),
    "the folder above": (link("up", ".."), "up is a link to "),
    "itself": (link("here", "."), "here is a link to the folder that it is in"),
    "nothing": (link("gone", "/nonexistent"), "gone is a link to nothing: /nonexistent"),
    "a circle": (chain, "one is a link to nothing: two"),
    "a device": (link("null", "/dev/null"), "null is a link to /dev/null, outside"),
    "a FIFO": (fifo("f"), "f is a FIFO, not a regular file"),
    "a FIFO as config": (fifo("config.json"), "config.json is a FIFO, not a regular file"),
    "a FIFO as shard": (fifo("model.safetensors"), "model.safetensors is a FIFO, not"),
    "a FIFO as index": (fifo("model.safetensors.index.json"), "index.json is a FIFO, not"),
    "a FIFO beside": (fifo("more.safetensors"), "more.safetensors is a FIFO, not"),
    "a socket": (sock, "s is a socket, not a regular file"),
    "holes": (holes, "big.bin is a file of holes: 34.4 GB, of which 0.0 GB"),
    "more than anyone has": (crowd, "holds more than 10,000 files and folders"),
    "links without end": (many, "is a link to a folder, in a folder that is linked itself"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_must_not_be_copied_is_refused_by_name(
    case: str, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, message = HOSTILE[case]
    edit(packed)
    before = {path.name for path in tmp_path.iterdir()}
    start = time.perf_counter()
    assert cli.main(["unpack", str(packed), str(tmp_path / "out")]) == 1
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1, line
    assert {path.name for path in tmp_path.iterdir()} == before
    assert time.perf_counter() - start < 60


def test_a_weight_that_is_elsewhere_is_not_copied(packed: Path, tmp_path: Path) -> None:
    (packed / "model.safetensors").rename(tmp_path / "elsewhere")
    (packed / "model.safetensors").symlink_to("../elsewhere")
    with pytest.raises(ValueError, match=r"model\.safetensors is a link to .* outside"):
        unpack_checkpoint(packed, tmp_path / "out")
    inspect_checkpoint(packed)  # which copies nothing


def test_links_inside_are_followed(packed: Path, tmp_path: Path) -> None:
    link("again.txt", "notes.txt")(packed)
    link("extra/up.txt", "../notes.txt")(packed)
    link("absolute.txt", str(packed / "extra" / "a.txt"))(packed)
    link("more", "extra")(packed)
    link(".hidden", "/etc")(packed)
    unpack_checkpoint(packed, tmp_path / "out")
    found = {
        str(path.relative_to(tmp_path / "out")): path.read_text()
        for path in (tmp_path / "out").rglob("*.txt")
    }
    notes = ["notes.txt", "again.txt", "extra/up.txt", "more/up.txt"]
    assert found == dict.fromkeys(notes, "notes") | dict.fromkeys(
        ["absolute.txt", "extra/a.txt", "more/a.txt"], "a"
    )
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert not (tmp_path / "out" / ".hidden").exists()


def test_a_snapshot_of_the_hugging_face_cache_is_packed(packed: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123abc"
    (snapshot / "extra").mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "dense").rglob("*.*"))):
        place = path.relative_to(tmp_path / "dense")
        (cache / "blobs" / str(number)).write_bytes(path.read_bytes())
        up = "../" * (len(place.parts) + 1)
        (snapshot / place).symlink_to(f"{up}blobs/{number}")
    (tmp_path / "model").symlink_to(snapshot)
    for source in (snapshot, tmp_path / "model"):
        pack_checkpoint(source, tmp_path / f"from-{source.name}")
        out = tmp_path / f"from-{source.name}"
        assert (out / "extra" / "a.txt").read_text() == "a" and not (
            out / "config.json"
        ).is_symlink()
    link("secret", "/etc/hostname")(snapshot)
    with pytest.raises(ValueError, match="secret is a link to /etc/hostname, outside"):
        pack_checkpoint(snapshot, tmp_path / "out")


@pytest.mark.parametrize("total", ["99999999999", "9" * 150])
@pytest.mark.parametrize("command", ["inspect", "unpack", "pack"])
def test_a_name_that_says_many_parts_is_refused_at_once(
    command: str, total: str, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (packed / "model.safetensors").rename(packed / f"m-00001-of-{total}.safetensors")
    start = time.perf_counter()
    out = [] if command == "inspect" else [str(tmp_path / "out")]
    assert cli.main([command, str(packed), *out]) == 1
    assert f"missing or not in the index: m-00002-of-{total}" in capsys.readouterr().err
    assert time.perf_counter() - start < 10


def claim(folder: Path, rows: int, columns: int, mask_bytes: int) -> None:
    """A packed weight of zeros of this shape; what it claims to hold is a hole in the file."""
    dtype = "torch.bfloat16"
    text = f"{rows} {columns} {dtype}".encode()
    numbers = [1, rows, columns, 0, zlib.crc32(bytes(mask_bytes), zlib.crc32(text))]
    numbers.append(zlib.crc32(" ".join(map(str, numbers)).encode()))
    blocks, tiles = -(-rows // 4), -(-columns // 32)
    entries = {
        f"{NAME}.tamp_header": ("I64", [6], 48),
        f"{NAME}.tamp_mask": ("I32", [blocks, tiles, 4], blocks * tiles * 16),
        f"{NAME}.tamp_values": ("BF16", [0], 0),
    }
    header, end = {}, 0
    for name, (kind, shape, size) in entries.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw + struct.pack("<6q", *numbers))
        file.truncate(8 + len(raw) + end)
    config = json.loads((folder / "config.json").read_text())
    config[CONFIG_KEY] |= {"linears": {NAME.removesuffix(".weight"): 0}, "tensors": 1}
    del config[CONFIG_KEY]["checksums"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (131072, 131072, "is a file of holes: 2.1 GB"),  # 34 GB when dense
        (2**25, 32, "a packed weight has at most"),
        (2**40, 0, "a packed weight has at most"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "unpack"])
def test_a_weight_that_claims_to_be_huge_is_refused(
    command: str,
    rows: int,
    columns: int,
    message: str,
    packed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    claim(packed, rows, columns, 0)
    out = [] if command == "inspect" else [str(tmp_path / "out")]
    assert cli.main([command, str(packed), *out]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_weight_beyond_the_free_memory_is_refused(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 2047)
    for read in (inspect_checkpoint, lambda folder: unpack_checkpoint(folder, tmp_path / "out")):
        with pytest.raises(ValueError, match=f"{NAME} takes 0.0 GB when it is dense"):
            read(packed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("limit", "wanted"), [("5000000\n", 5000000 - 4000000 + 1000), ("max\n", None)]
)
def test_a_container_has_its_own_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, wanted: int | None
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 7\ninactive_file 1000\n")
    names = memory.CGROUPS[0][1:]
    monkeypatch.setattr(memory, "CGROUPS", ((tmp_path / "none", *names), (tmp_path, *names)))
    assert memory.free_of_container() == wanted
    assert wanted is None or memory.free_memory() == wanted


def test_free_memory_is_known() -> None:
    found = memory.free_memory()
    assert found is not None and found > 2**20
