"""Files: every kind is read, its rows are numbered, and what is damaged or too large is named."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tamp_modifier.data import BadRows, Conversation, DataError, read_conversations
from tests.data.files import asked, jsonl, picture

VQA = {"image": "a.png", "question": "what ?", "answer": "a cat"}


def text_of(conversation: Conversation) -> list[str]:
    return [turn.text for turn in conversation.turns]


def write_csv(folder: Path) -> Path:
    path = folder / "d.csv"
    path.write_text('\ufeffimage,question,answer,id\r\na.png,"what ?",a cat,\r\n', "utf-8")
    return path


def write_tsv(folder: Path) -> Path:
    path = folder / "d.tsv"
    path.write_text("image\tquestion\tanswer\na.png\twhat ?\ta cat\n")
    return path


def write_json(folder: Path, document: Any, name: str = "d.json") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def write_gzip(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


def hugging_face(folder: Path, column: str = "image") -> Any:
    from datasets import Dataset, Image

    rows = [{**VQA, "image": str(folder / "a.png")}]
    return Dataset.from_list(rows).cast_column(column, Image())


def write_parquet(folder: Path) -> Path:
    hugging_face(folder).to_parquet(folder / "d.parquet")
    return folder / "d.parquet"


def write_saved(folder: Path, splits: bool = False) -> Path:
    from datasets import DatasetDict

    data = hugging_face(folder)
    (DatasetDict({"train": data}) if splits else data).save_to_disk(folder / "saved")
    return folder / "saved"


def write_arrow(folder: Path) -> Path:
    (file,) = write_saved(folder).glob("*.arrow")
    return file.rename(folder / "d.arrow")


def tar(path: Path, members: dict[str, bytes | str], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_tar(folder: Path, name: str = "d.tar", mode: str = "w") -> Path:
    words = json.dumps({"question": "what ?", "answer": "a cat"})
    members = {"x/7.png": (folder / "a.png").read_bytes(), "x/7.json": words}
    return tar(folder / name, members, mode)


KINDS: dict[str, Callable[[Path], Path]] = {
    "jsonl": lambda f: jsonl(f / "d.jsonl", [VQA]),
    "jsonl in Windows": lambda f: write_json(f, "\ufeff" + json.dumps(VQA) + "\r\n", "d.jsonl"),
    "jsonl.gz": lambda f: write_gzip(jsonl(f / "d.jsonl", [VQA])),
    "json": lambda f: write_json(f, [VQA]),
    "json.gz": lambda f: write_gzip(write_json(f, [VQA])),
    "one row as json": lambda f: write_json(f, VQA),
    "data in json": lambda f: write_json(f, {"data": [VQA], "version": "1.0"}),
    "csv": write_csv,
    "csv.gz": lambda f: write_gzip(write_csv(f)),
    "tsv": write_tsv,
    "parquet": write_parquet,
    "arrow": write_arrow,
    "saved dataset": write_saved,
    "saved dataset of one split": lambda f: write_saved(f, splits=True),
    "tar": write_tar,
    "tar.gz": lambda f: write_tar(f, "d.tar.gz", "w:gz"),
    "tgz": lambda f: write_tar(f, "d.tgz", "w:gz"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_row(tmp_path: Path, kind: str) -> None:
    picture(tmp_path / "a.png")
    (found,) = read_conversations(KINDS[kind](tmp_path))
    assert text_of(found) == ["what ?", "a cat"]
    (part,) = found.media
    data = part.source if isinstance(part.source, bytes) else part.source.read_bytes()
    assert data == (tmp_path / "a.png").read_bytes()


def test_datasets_in_memory_give_their_rows(tmp_path: Path) -> None:
    from datasets import DatasetDict

    picture(tmp_path / "a.png")
    data = hugging_face(tmp_path)
    streamed = data.to_iterable_dataset()
    for source in (data, data.select([0]), DatasetDict({"train": data}), streamed):
        (found,) = read_conversations(source)
        assert text_of(found) == ["what ?", "a cat"] and len(found.media) == 1
        assert found.name == "row 1"
    with pytest.raises(DataError, match="the dataset has the splits train, test; give one"):
        read_conversations(DatasetDict({"train": data, "test": data}))


@pytest.mark.parametrize("file", [False, True])
def test_a_column_of_texts_and_lists_is_read_as_both(tmp_path: Path, file: bool) -> None:
    from datasets import Dataset

    picture(tmp_path / "a.png")
    rows = [asked(("image", str(tmp_path / "a.png")), question="what ?", answer="3")] * 40
    source: Any = Dataset.from_list(rows, on_mixed_types="use_json")
    if file:
        source.to_parquet(tmp_path / "d.parquet")
        source = tmp_path / "d.parquet"
    found = read_conversations(source)
    assert len(found) == 40
    assert text_of(found[39]) == ["what ?", "3"] and len(found[39].media) == 1


def test_json_lines_named_json(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.json", [asked(), "", {"text": "b"}])
    assert [row.name for row in read_conversations(path)] == [f"{path}:1", f"{path}:3"]


@pytest.mark.parametrize("mark", "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e")
@pytest.mark.parametrize("ending", ["jsonl", "json", "txt", "csv"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, mark: str, ending: str) -> None:
    text = f"one{mark}two{mark}"
    row = json.dumps({"text": text}, ensure_ascii=False)
    content = {"jsonl": row, "json": row, "txt": text, "csv": f"text\n{text}"}[ending]
    (tmp_path / f"d.{ending}").write_text(content + "\n", "utf-8", newline="")
    (found,) = read_conversations(tmp_path / f"d.{ending}")
    assert text_of(found) == [text]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_an_imagefolder_shows_its_pictures(tmp_path: Path, name: str, logged: list[str]) -> None:
    for file in ("a.png", "b.png", "alone.png"):
        picture(tmp_path / file)
    lines = {
        "metadata.jsonl": '{"file_name": "a.png", "text": "a cat"}\n'
        '{"file_name": "b.png", "text": "a dog"}\n',
        "metadata.csv": "file_name,text\na.png,a cat\nb.png,a dog\n",
    }
    (tmp_path / name).write_text(lines[name])
    found = read_conversations(tmp_path)
    assert [row.media[0].path for row in found] == [tmp_path / "a.png", tmp_path / "b.png"]
    assert [row.turns[-1].text for row in found] == ["a cat", "a dog"]
    assert "so left out: alone.png" in logged[0] and len(logged) == 1


def test_a_webdataset_gives_captions_with_all_their_media(tmp_path: Path) -> None:
    data = picture(tmp_path / "a.png").read_bytes()
    meta = json.dumps({"url": "https://example.org/1.jpg", "width": 40, "caption": "two"})
    members = {
        "./": b"",
        "1.jpg": data,
        "1.txt": "a cat\n",
        "._1.jpg": b"x",
        "2.0.png": data,
        "2.1.png": data,
        "2.json": meta,
        "2.txt": "two",
    }
    members.pop("./")
    first, second = read_conversations(tar(tmp_path / "d.tar", members))
    assert first.turns[-1].text == "a cat" and len(first.media) == 1
    assert second.turns[-1].text == "two" and len(second.media) == 2
    assert first.name == f"{tmp_path / 'd.tar'}: sample 1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "d.tar"]


TARS: dict[str, tuple[dict[str, bytes | str], str]] = {
    "a name that leads up": ({"../1.txt": "a"}, "the name '../1.txt' leads out of the archive"),
    "an absolute name": ({"/etc/1.txt": "a"}, "the name '/etc/1.txt' leads out of the archive"),
    "another kind": ({"1.txt": "a", "1.cls": "3"}, "sample 1: nothing reads its file .cls"),
    "twice": ({"a/1.txt": "a", "a/1.TXT": "b"}, "'a/1.TXT' is there twice"),
    "two captions": ({"1.json": '{"text": "a"}', "1.txt": "b"}, "'text' is given twice"),
    "no object": ({"1.json": "[]"}, "its .json file is not an object"),
    "not JSON": ({"1.json": "{"}, "sample 1: not JSON"),
    "not text": ({"1.txt": b"\xff"}, "its file .txt is not text in UTF-8"),
    "too large": ({"1.txt": "a" * 99}, "'1.txt' has 99 bytes, more than the 64 allowed"),
    "too large together": (
        {f"{n}.txt": "a" * 60 for n in range(4)},
        "its files have more than 200 bytes together",
    ),
}


@pytest.mark.parametrize("case", TARS)
def test_an_archive_with_anything_else_is_refused(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tamp_modifier.data.archives.MAX_BYTES", 64)
    monkeypatch.setattr("tamp_modifier.data.archives.MAX_ARCHIVE", 200)
    members, message = TARS[case]
    with pytest.raises(DataError) as error:
        read_conversations(tar(tmp_path / "d.tar", members))
    assert message in str(error.value) and str(error.value).startswith(str(tmp_path / "d.tar"))
    assert [path.name for path in tmp_path.iterdir()] == ["d.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_an_archive_with_a_link_is_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        info = tarfile.TarInfo("1.txt")
        info.type, info.linkname = kind, "/etc/hostname"
        archive.addfile(info)
    with pytest.raises(DataError, match="'1.txt' is a link, a device or a sparse file"):
        read_conversations(tmp_path / "d.tar")


def test_a_damaged_archive_is_no_shorter_archive(tmp_path: Path) -> None:
    path = tar(tmp_path / "d.tar", {f"{n}.txt": f"text {n}" for n in range(3)})
    data = path.read_bytes()
    path.write_bytes(data[:1300])  # in the second header
    with pytest.raises(DataError, match="d.tar: the archive is damaged at byte 1024"):
        read_conversations(path)
    path.write_bytes(data[:1024] + b"x" * 512 + data[1536:])
    with pytest.raises(DataError, match="d.tar: the archive is damaged at byte 1024"):
        read_conversations(path)
    path.write_bytes(data[:600])
    with pytest.raises(DataError, match="d.tar: not a tar archive, or cut off"):
        read_conversations(path)
    path.write_text("text")
    with pytest.raises(DataError, match="d.tar: not a tar archive, or cut off"):
        read_conversations(path)


def damaged(folder: Path, case: str) -> Path:
    packed = write_gzip(jsonl(folder / "d.jsonl", [asked()] * 50))
    if case == "cut gzip":
        packed.write_bytes(packed.read_bytes()[:-20])
        return packed
    if case == "no gzip":
        packed.write_text("text")
        return packed
    if case == "no tar in gzip":
        return packed.rename(folder / "d.tgz")
    if case == "no parquet":
        return write_json(folder, "text", "d.parquet")
    if case == "no arrow":
        return write_json(folder, "text", "d.arrow")
    saved = write_saved(folder)
    next(saved.glob("*.arrow")).write_bytes(b"x" * 100)
    return saved


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("cut gzip", "d.jsonl.gz: cut off or not gzip"),
        ("no gzip", "d.jsonl.gz: cut off or not gzip"),
        ("no tar in gzip", "d.tgz: not a tar archive, or cut off"),
        ("no parquet", "d.parquet: not a parquet file"),
        ("no arrow", "d.arrow: not an arrow file"),
        ("broken saved dataset", "saved: the dataset cannot be loaded"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, case: str, message: str) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=message):
        read_conversations(damaged(tmp_path, case))


def test_unpacked_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gzip(jsonl(tmp_path / "d.jsonl", [{"text": "a" * 1000}] * 1000))
    archive = tar(tmp_path / "d.tgz", {"1.txt": "a" * 500_000}, "w:gz")
    assert len(read_conversations(path)) == 1000 and len(read_conversations(archive)) == 1
    monkeypatch.setattr("tamp_modifier.data.files.MAX_UNPACKED", 400_000)
    for file in (path, archive):
        with pytest.raises(DataError, match=f"{file.name}: unpacked it has more than 400,000 byt"):
            read_conversations(file)
    monkeypatch.setattr("tamp_modifier.data.files.MAX_ROW", 100)
    with pytest.raises(DataError, match="d.jsonl:1: the line has more than 100 bytes"):
        read_conversations(tmp_path / "d.jsonl")


DOCUMENTS: dict[str, tuple[str, str, str]] = {
    "deep": ("d.jsonl", "[" * 100_000, "d.jsonl:1: not JSON: it is nested too deeply"),
    "a key twice": (
        "d.jsonl",
        '{"text": "a", "image": "a.png", "image": "b.png"}',
        "d.jsonl:1: the key 'image' is given twice",
    ),
    "digits": ("d.jsonl", '{"id": ' + "9" * 5000 + "}", "d.jsonl:1: not JSON"),
    "a split beside": (
        "d.json",
        '{"data": [{"text": "a"}], "test": [{"text": "b"}]}',
        "d.json: nothing reads the key 'test'",
    ),
    "no list": ("d.json", "3", "d.json: expected a list of conversations"),
    "not JSON": ("d.json", '{"text": ', "d.json: not JSON"),
    "cells": ("d.csv", "text,id\na\n", "d.csv:2: 1 cells, but the header has 2 columns"),
    "columns": ("d.csv", "text,text\na,b\n", "d.csv: the column 'text' is there twice"),
    "quotes": ("d.csv", 'text\n"a', "d.csv:2: not a table"),
    "unknown column": ("d.csv", "text,label\na,3\n", "d.csv:2: nothing reads the key 'label'"),
    "header alone": ("d.csv", "text\n", "d.csv: there is no conversation in it"),
    "packed parquet": ("d.parquet.gz", "", "d.parquet.gz: expected a file that ends in .jsonl"),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_bad_document_is_named(tmp_path: Path, case: str) -> None:
    name, text, message = DOCUMENTS[case]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        read_conversations(tmp_path / name)
    assert f"{tmp_path}/{message}" in str(error.value)


def test_a_folder_without_data_tells_where_some_may_be(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    jsonl(tmp_path / "train" / "metadata.jsonl", [asked()])
    with pytest.raises(DataError, match="folders in it are not searched, give one of them: train"):
        read_conversations(tmp_path)
    picture(tmp_path / "train" / "a.png")
    (tmp_path / "train" / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match="nothing describes a.png"):
        read_conversations(tmp_path / "train")


def test_a_saved_dataset_of_several_splits_is_refused(tmp_path: Path) -> None:
    from datasets import DatasetDict

    picture(tmp_path / "a.png")
    data = hugging_face(tmp_path)
    DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="saved has the splits train, test; give one of its fold"):
        read_conversations(tmp_path / "saved")
    assert len(read_conversations(tmp_path / "saved" / "test")) == 1


def test_bad_rows_are_left_out_up_to_a_number(tmp_path: Path, logged: list[str]) -> None:
    rows = [asked(), "{", {"image": "no.png", "text": "a"}, asked()]
    path = jsonl(tmp_path / "d.jsonl", rows)
    bad = BadRows(2)
    assert [row.name for row in read_conversations(path, bad=bad)] == [f"{path}:1", f"{path}:4"]
    bad.tell()
    assert len(logged) == 2 and f"skipped: {path}:2: not JSON" in logged[0]
    assert f"skipped: {path}:3: the image" in logged[1]
    with pytest.raises(DataError, match=r":3: .* does not exist \(1 bad rows were skipped before"):
        read_conversations(path, bad=BadRows(1))
    with pytest.raises(DataError, match="no conversation in it; 1 bad rows were skipped, the firs"):
        read_conversations(jsonl(tmp_path / "b.jsonl", ["{"]), bad=BadRows(5))
