"""Rows: every format gives the conversation that it means, and no key of a row is ignored."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tamp_modifier.data import DataError, read_conversations
from tests.data.files import picture, sound

TURNS = [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": "a cat"}]


def read(row: Any, folder: Path | None = None) -> list[tuple[str, str]]:
    """Role and text of every turn of a row; media stand as <kind>."""
    if folder is not None:
        row = moved(row, folder)
    (found,) = read_conversations([row])
    return [
        (turn.role, "".join(p.text if p.kind == "text" else f"<{p.kind}>" for p in turn.parts))
        for turn in found.turns
    ]


def moved(value: Any, folder: Path) -> Any:
    """A row whose "a.png" is in a folder."""
    if isinstance(value, dict):
        return {key: moved(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item, folder) for item in value]
    return str(folder / value) if value == "a.png" else value


def refusal(row: Any) -> str:
    with pytest.raises(DataError) as error:
        read_conversations([row])
    message = str(error.value)
    assert message.startswith("row 1: ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "what ?", "completion": "a cat"},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"query": "what ?", "response": "a cat"},
        {"question": "what ?", "answer": "a cat", "question_id": 7, "category": "animals"},
        {"instruction": "what ?", "input": "", "output": "a cat"},
        {"instruction": "what ?", "output": "a cat", "text": "Q: what ?\nA: a cat"},
        {"input": "what ?", "output": "a cat"},
        {"input": TURNS[:1], "output": "a cat"},
        {"messages": TURNS, "prompt": "what ?", "prompt_id": "x7"},
        {"messages": [{**turn, "name": "x", "refusal": None} for turn in TURNS], "tools": []},
        {"messages": json.dumps(TURNS)},
        {"messages": {"role": ["user", "assistant"], "content": ["what ?", "a cat"]}},
        {"question": "what ?", "answers": ["a dog", "a cat", "a cat"]},
        {"question": "what ?", "answer": "a cat", "answers": ["a dog", "a cat"]},
        {"question": "what ?", "answers": [{"answer": "a cat", "answer_id": 1}]},
        {"question": "what ?", "answers": {"text": ["a cat"], "answer_start": [3]}},
    ],
)
def test_a_question_and_its_answer_in_all_words(row: Any) -> None:
    assert read(row) == [("user", "what ?"), ("assistant", "a cat")]


def test_more_than_a_question() -> None:
    row = {"instruction": "add", "input": "1 2", "output": 3, "system": "be short"}
    row["history"] = [["hello", "hi"]]
    assert read(row) == [
        ("system", "be short"),
        ("user", "hello"),
        ("assistant", "hi"),
        ("user", "add\n1 2"),
        ("assistant", "3"),
    ]
    squad = {"context": "a cat sat", "question": "who ?", "answers": {"text": ["a cat"]}}
    assert read(squad)[0] == ("user", "a cat sat\nwho ?")


CAPTION = [("user", "<image>Describe the picture."), ("assistant", "a cat")]


@pytest.mark.parametrize(
    "row",
    [
        {"image": "a.png", "text": "a cat"},
        {"image": "a.png", "text": "<image>\na cat"},
        {"file_name": "a.png", "text": "a cat"},
        {"image_path": "a.png", "caption": "a cat", "url": "https://example.org/x.jpg"},
        {"picture": "a.png", "captions": ["a cat", "a dog"]},
        {"image": "a.png", "text": "a cat", "caption": "a cat", "file_name": "x/a.jpg"},
        {"image": {"bytes": None, "path": "a.png"}, "text": "a cat", "image_id": 4},
    ],
)
def test_a_caption_shows_its_picture(tmp_path: Path, row: Any) -> None:
    picture(tmp_path / "a.png")
    assert read(row, tmp_path) == CAPTION


def test_media_come_as_bytes_base64_uris_and_pictures(tmp_path: Path) -> None:
    from PIL import Image

    data = picture(tmp_path / "a.png").read_bytes()
    text = base64.b64encode(data).decode()
    opened = Image.open(tmp_path / "a.png")
    for value in (
        data,
        text,
        opened,
        tmp_path / "a.png",
        f"data:image/png;base64,{text}",
        (tmp_path / "a.png").as_uri(),
        {"bytes": data, "path": "a.png"},
        {"url": f"data:image/png;base64,{text}", "detail": "low"},
        {"type": "base64", "media_type": "image/png", "data": text},
    ):
        assert read({"image": value, "text": "a cat"}) == CAPTION
        (found,) = read_conversations([{"image": value, "text": "a cat"}])
        assert found.media[0].source in (data, opened, tmp_path / "a.png")
        part = {"type": "image", "image": value}
        assert read([{"role": "user", "content": [part]}, TURNS[1]])[0][1] == "<image>"
    heard = base64.b64encode(sound(tmp_path / "a.wav").read_bytes()).decode()
    content = [{"type": "input_audio", "input_audio": {"data": heard, "format": "wav"}}]
    assert read([{"role": "user", "content": content}, TURNS[1]])[0][1] == "<audio>"
    source = {"type": "base64", "media_type": "image/png", "data": text}
    content = [{"type": "image", "source": source, "cache_control": {"type": "ephemeral"}}]
    assert read([{"role": "user", "content": content}, TURNS[1]])[0][1] == "<image>"


def test_pictures_beside_a_turn_belong_to_it(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    shown = {"role": "user", "content": "and this ?", "images": ["a.png"]}
    row = {"messages": [*TURNS, shown, TURNS[1]]}
    assert read(row, tmp_path)[2] == ("user", "<image>and this ?")


def user(*content: Any, **more: Any) -> Any:
    return {"messages": [{"role": "user", "content": list(content), **more}, TURNS[1]]}


LOST: dict[str, tuple[Any, str]] = {
    "unknown key": ({"messages": TURNS, "hint": "purr"}, "nothing reads the key 'hint' ('purr')"),
    "unknown keys": ({"text": "a", "b": 1, "c": 2}, "nothing reads the keys 'b' (1), 'c' (2)"),
    "picture in an unknown key": ({"text": "a", "cover": "a.png"}, "the key 'cover' ('a.png')"),
    "picture in a harmless key": ({"text": "a", "source": "a.png"}, "the key 'source' ('a.png')"),
    "picture deep in a harmless key": (
        {"text": "a", "metadata": {"files": ["x/a.JPG"]}},
        "the key 'metadata' ('x/a.JPG')",
    ),
    "base64 in a harmless key": (
        {"text": "a", "metadata": {"x": "iVBORw0KGgo" + "A" * 80}},
        "the key 'metadata' ('iVBORw0KGgo",
    ),
    "object in a harmless key": ({"text": "a", "source": {"text": "b"}}, "the key 'source'"),
    "another picture's name": (
        {"image": b"\x89PNG", "text": "a", "image_path": {"text": "b"}},
        "the key 'image_path' ({'text': 'b'})",
    ),
    "bytes in a harmless key": ({"text": "a", "meta": b"\x89PNG"}, "'meta' (4 bytes)"),
    "name of a picture that cannot be shown": ({"text": "a", "file_name": "a.xyz"}, "'file_name'"),
    "id of a picture": ({"text": "a", "image_id": 7}, "the key 'image_id' (7)"),
    "caption of nothing": ({"caption": "a cat"}, "it has the keys 'caption'"),
    "picture without text": ({"image": b"\x89PNG"}, "its media have no text"),
    "absent picture of a caption": ({"image": "no.png", "text": "a"}, "no.png does not exist"),
    "absent picture of an imagefolder": ({"file_name": "no.png", "text": "a"}, "does not exist"),
    "choices": ({"question": "a", "answer": "b", "choices": ["b", "c"]}, "the key 'choices'"),
    "tools": ({"messages": TURNS, "tools": [{"type": "function"}]}, "the key 'tools'"),
    "tool calls": (
        {"messages": [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [{}]}]},
        "nothing reads the key 'tool_calls' ([{}]) of a turn",
    ),
    "key of a part": (
        user({"type": "text", "text": "a", "colour": 3}),
        "nothing reads the key 'colour' (3) of a part of a turn",
    ),
    "pixels of a part": (
        user({"type": "image", "image": b"\x89PNG", "max_pixels": 9}),
        "nothing reads the key 'max_pixels' (9)",
    ),
    "file of a part": (user({"type": "input_image", "file_id": "f"}), "the key 'file_id' ('f')"),
    "another answer": (
        {"question": "a", "answer": "b", "answers": ["c"]},
        "the answer 'b' is not among the answers",
    ),
    "answer that is no text": ({"question": "a", "answer": True}, "the answer is True"),
    "prompt beside turns": ({"messages": TURNS, "prompt": "else"}, "the key 'prompt' ('else')"),
    "text beside a question": ({"question": "a", "answer": "b", "text": "c"}, "'text' ('c')"),
    "text that is no text": ({"text": float("nan")}, "the text is nan, expected a text"),
    "history": ({"prompt": "a", "completion": "b", "history": ["c"]}, "history has 'c'"),
}


@pytest.mark.parametrize("case", LOST)
def test_nothing_of_a_row_is_ignored(case: str) -> None:
    row, message = LOST[case]
    assert message in refusal(row)


MEDIA: dict[str, tuple[Any, str]] = {
    "web": ("https://example.org/a.png", "nothing is downloaded, save it first"),
    "bucket": ("s3://bucket/a.png", "nothing is downloaded, save it first"),
    "web object": ({"type": "url", "url": "http://example.org/a"}, "nothing is downloaded"),
    "number": (3, "the image is 3, expected a path"),
    "empty": ("", "the image is '', expected a path"),
    "no bytes": (b"", "the image has no bytes"),
    "null byte": ("a\0b.png", "the image"),
    "long name": ("a" * 5000, "expected a path"),
    "not base64": ("data:image/png;base64,&&&&", "the image is not base64"),
    "not a data URI": ("data:image/png", "is not a data: address"),
    "sound as a picture": ("data:audio/wav;base64,UklGRg==", "the image is given as 'audio/wav'"),
    "file of a service": ({"type": "file", "file_id": "x"}, "the image is of the type 'file'"),
    "values": ({"array": [0.1], "sampling_rate": 8}, "nothing reads the key 'array'"),
}


@pytest.mark.parametrize("case", MEDIA)
def test_a_medium_that_cannot_be_is_named(case: str) -> None:
    value, message = MEDIA[case]
    assert message in refusal({"image": value, "text": "a cat"})


def test_a_medium_in_a_row_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamp_modifier.data.references.MAX_BYTES", 20)
    row = {"image": b"x" * 21, "text": "a"}
    assert "the image has 21 bytes, more than the 20 allowed" in refusal(row)
    assert "more than the 20 bytes" in refusal({"image": {"data": "A" * 40}, "text": "a"})
    monkeypatch.setattr("tamp_modifier.data.conversations.MAX_TOTAL", 30)
    with pytest.raises(DataError, match="row 2: the rows up to here hold more than 30 bytes"):
        read_conversations([{"image": b"x" * 20, "text": "a"}] * 2)


def test_a_second_picture_is_not_taken_for_the_name_of_the_first(tmp_path: Path) -> None:
    row = {"image": str(picture(tmp_path / "a.png")), "text": "a cat"}
    assert read({**row, "file_name": "x/a.jpg", "image_url": "https://example.org/7"}) == CAPTION
    for key, name in (("file_name", "b.png"), ("image_path", "b.xyz"), ("path", "b")):
        assert f"nothing reads the key '{key}' ('{name}')" in refusal({**row, key: name})


def test_a_picture_is_no_video(tmp_path: Path) -> None:
    row = {"video": str(picture(tmp_path / "a.png")), "text": "a cat"}
    assert "is a picture; give a folder with the frames" in refusal(row)


@pytest.mark.parametrize("levels", [6, 40])
def test_a_medium_deep_inside_of_what_nobody_reads_is_refused(levels: int, tmp_path: Path) -> None:
    hidden: object = "c.png"
    for _ in range(levels):
        hidden = [hidden]
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"text": "t", "metadata": hidden}]))
    with pytest.raises(DataError, match="nothing reads the key 'metadata'"):
        read_conversations(file)
