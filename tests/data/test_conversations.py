"""Reading conversations: every form, and one message with file and line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tamp_modifier.data import Conversation, DataError, read_conversations
from tests.data.files import asked, jsonl, picture


def parts(conversation: Conversation) -> list[list[tuple[str, str]]]:
    """Kind and content of every part of every turn."""
    return [
        [(p.kind, p.text if p.path is None else p.path.name) for p in turn.parts]
        for turn in conversation.turns
    ]


ANSWER = [("text", "a cat")]


@pytest.mark.parametrize(
    "row",
    [
        asked(("image", "a.png"), question="what ?", answer="a cat"),
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "a.png"}},
                        {"type": "text", "text": "what ?"},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
            ]
        },
        {
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\nwhat ?"},
                {"from": "gpt", "value": "a cat"},
            ],
        },
        {
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "what ?"},
                {"from": "gpt", "value": "a cat"},
            ],
        },
        {
            "images": ["a.png"],
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": "what ?"}],
                },
                {"role": "assistant", "content": "a cat"},
            ],
        },
        [
            {"role": "user", "content": [{"type": "image", "image": "a.png"}, "what ?"]},
            {"role": "assistant", "content": "a cat"},
        ],
    ],
)
def test_all_forms_of_a_conversation_read_the_same(tmp_path: Path, row: Any) -> None:
    picture(tmp_path / "a.png")
    (found,) = read_conversations(jsonl(tmp_path / "data.jsonl", [row]))
    assert parts(found) == [[("image", "a.png"), ("text", "what ?")], ANSWER]
    assert [turn.role for turn in found.turns] == ["user", "assistant"]
    assert found.name == f"{tmp_path / 'data.jsonl'}:1" and found.task == "image"
    assert found.media[0].path == tmp_path / "a.png"


def test_placeholders_in_the_text_take_the_files_in_order(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    turns = [
        {"from": "human", "value": "first <image>\nthen\n<image>\nwhich ?"},
        {"from": "gpt", "value": "a cat"},
    ]
    rows = [{"image": ["a.png", "b.png"], "conversations": turns, "task": "order"}]
    (found,) = read_conversations(jsonl(tmp_path / "data.jsonl", rows))
    assert parts(found)[0] == [
        ("text", "first "),
        ("image", "a.png"),
        ("text", "then"),
        ("image", "b.png"),
        ("text", "which ?"),
    ]
    assert found.task == "order"


def test_a_folder_gives_described_files_then_its_lists(tmp_path: Path, logged: list[str]) -> None:
    picture(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("a blue picture\n")
    picture(tmp_path / "alone.png")
    (tmp_path / "lines.txt").write_text("one line\n\nanother\n")
    (tmp_path / "list.json").write_text(json.dumps([asked(), {"text": "plain"}]))
    found = read_conversations(tmp_path)
    assert "no .txt beside, so left out: alone.png" in logged[0]
    assert [parts(c)[-1][0][1] for c in found] == [
        "a blue picture",
        "one line",
        "another",
        "cat",
        "plain",
    ]
    assert [c.plain for c in found] == [False, True, True, False, True]
    assert found[2].name == f"{tmp_path / 'lines.txt'}:3"
    assert found[3].name == f"{tmp_path / 'list.json'}: conversation 1"


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "not JSON": ("{", "not JSON: "),
    "not an object": ("3", "expected an object, got 3"),
    "no turns": ({"messages": []}, "expected a list of turns"),
    "empty text": ({"text": " "}, "the text is empty"),
    "unknown role": (
        {"messages": [{"role": "judge", "content": "x"}]},
        "the role of a turn is 'judge'; known are",
    ),
    "content that is no text": (
        {"messages": [{"role": "user", "content": 3}]},
        "the content of a turn is 3, expected a text",
    ),
    "unknown part": (
        {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
        "known types are text, image, video, audio",
    ),
    "no answer": (
        {"messages": [{"role": "user", "content": "what ?"}]},
        "the conversation has no answer, its last turn is from 'user'",
    ),
    "empty answer": (asked(answer=" "), "the answer of the conversation is empty"),
    "no question": (
        {"messages": [{"role": "assistant", "content": "a cat"}]},
        "has an answer, but no question",
    ),
    "picture that does not exist": (asked(("image", "absent.png")), "absent.png does not exist"),
    "picture that is a folder": (asked(("image", ".")), "is a folder"),
    "picture on the web": (
        asked(("image", "https://example.org/a.png")),
        "nothing is downloaded, save it first",
    ),
    "placeholder without a file": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "an image is mentioned, but no file is given",
    ),
    "file without a placeholder": (
        {
            "images": ["a.png", "a.png"],
            "conversations": [
                {"from": "human", "value": "<image> what ?"},
                {"from": "gpt", "value": "cat"},
            ],
        },
        "no placeholder is left for 1 image",
    ),
    "task that is no text": ({"task": 3, "text": "x"}, "task must be a text, got 3"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, case: str) -> None:
    picture(tmp_path / "a.png")
    row, message = BAD_ROWS[case]
    path = jsonl(tmp_path / "data.jsonl", [asked(), "", row])
    with pytest.raises(DataError) as error:
        read_conversations(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert message in str(error.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_conversations(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="there is no conversation in it"):
        read_conversations(tmp_path)
    (tmp_path / "data.docx").write_text("a,b")
    with pytest.raises(DataError, match="data.docx: expected a file that ends in .jsonl,"):
        read_conversations(tmp_path / "data.docx")
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(DataError, match="data.json: expected a list of conversations"):
        read_conversations(tmp_path / "data.json")
    (tmp_path / "data.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="data.jsonl: the file is not text in UTF-8"):
        read_conversations(tmp_path / "data.jsonl")


def test_a_prompt_may_lack_its_answer_where_none_is_needed(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "data.jsonl", [{"messages": [{"role": "user", "content": "what ?"}]}])
    (found,) = read_conversations(path, need_answer=False)
    assert found.turns[-1].role == "user"


def test_an_empty_description_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(DataError, match="a.txt: the description of a.png is empty"):
        read_conversations(tmp_path)
