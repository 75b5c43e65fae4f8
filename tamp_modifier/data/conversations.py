"""Conversations with pictures, videos and sounds, read from files of several forms.

What can be read, each line or element one conversation:

- ``.jsonl`` or ``.json``: ``{"messages": [{"role": ..., "content": ...}]}`` as OpenAI and
  transformers have it, ``{"conversations": [{"from": "human", "value": "<image> ..."}]}`` as LLaVA
  has it, or ``{"text": ...}``. Media stand in the content (``{"type": "image", "path": ...}``) or
  beside it (``"image"``, ``"images"``, ``"video"``, ...), in the order of their placeholders.
- ``.txt``: every line that is not blank is a plain text.
- a folder: its ``.jsonl``, ``.json`` and ``.txt`` files; a picture, video or sound with a ``.txt``
  file of the same name is a question for its description, which is the text.

Paths are relative to the file that names them. Nothing is decoded here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from tamp_modifier.messages import some

KINDS = ("image", "video", "audio")
SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "video": (".mp4", ".mkv", ".webm", ".avi", ".mov"),
    "audio": (".wav", ".mp3", ".flac", ".ogg", ".m4a"),
}
QUESTIONS = {
    "image": "Describe the picture.",
    "video": "Describe the video.",
    "audio": "Describe what you hear.",
}
"""What is asked about a file that has its description beside it."""

_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}
_ROLES |= {"system": "system", "developer": "system"}
_TAG = re.compile(r"<(image|video|audio)>")


class DataError(ValueError):
    """Data that cannot be used; the message begins with the file and the line."""


@dataclass(frozen=True)
class Part:
    """A piece of a turn.

    Attributes:
        kind: "text", "image", "video" or "audio".
        text: the text; empty for media.
        path: the file, or the folder with the frames of a video; None for text.
    """

    kind: str
    text: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class Turn:
    """What one side says: the role ("system", "user" or "assistant") and the pieces of it."""

    role: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Its text without media."""
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True)
class Conversation:
    """One sample.

    Attributes:
        name: the file and line that it comes from, for messages.
        turns: the turns; a single one with the role "text" is plain text without a chat template.
        task: name of the task that it belongs to; by default the kinds of its media.
    """

    name: str
    turns: tuple[Turn, ...]
    task: str

    @property
    def media(self) -> list[Part]:
        """Its pictures, videos and sounds, in order."""
        return [part for turn in self.turns for part in turn.parts if part.kind in KINDS]

    @property
    def plain(self) -> bool:
        """Whether it is text without a chat template."""
        return self.turns[0].role == "text"


def read_conversations(path: str | Path, need_answer: bool = True) -> list[Conversation]:
    """Read all conversations of a file or folder, in a fixed order.

    Args:
        path: a ``.jsonl``, ``.json`` or ``.txt`` file, or a folder.
        need_answer: whether a conversation must end with something that the assistant says.

    Raises:
        FileNotFoundError: there is no such file or folder.
        DataError: a file of another form, a conversation that is not complete, or media that do not
            exist.
    """
    path = Path(path)
    if path.is_dir():
        found = list(_folder(path))
    elif not path.exists():
        raise FileNotFoundError(2, "no such file or folder", str(path))
    else:
        found = list(_file(path))
    if not found:
        raise DataError(f"{path}: there is no conversation in it")
    if need_answer:
        for conversation in found:
            _check_answer(conversation)
    return found


def _folder(folder: Path) -> Iterator[Conversation]:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    captions: set[Path] = set()
    alone = []
    for file in files:
        kind = next((k for k, suffixes in SUFFIXES.items() if file.suffix.lower() in suffixes), "")
        text = file.with_suffix(".txt")
        if kind and text.is_file():
            captions.add(text)
            yield _described(file, kind, _read(text))
        elif kind:
            alone.append(file.name)
    if captions and alone:  # without any, a list in the folder names the files
        logger.warning(f"{folder}: no .txt beside, so left out: {some(alone)}")
    for file in files:
        if file.suffix in (".jsonl", ".json", ".txt") and file not in captions:
            yield from _file(file)


def _described(file: Path, kind: str, text: str) -> Conversation:
    if not text.strip():
        raise DataError(f"{file.with_suffix('.txt')}: the description of {file.name} is empty")
    question = Turn("user", (Part(kind, path=file), Part("text", QUESTIONS[kind])))
    return Conversation(
        str(file), (question, Turn("assistant", (Part("text", text.strip()),))), kind
    )


def _file(file: Path) -> Iterator[Conversation]:
    text = _read(file)
    if file.suffix == ".txt":
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield _plain(f"{file}:{number}", line.strip(), "text")
    elif file.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                name = f"{file}:{number}"
                yield _row(_json(line, name), name, file.parent)
    elif file.suffix == ".json":
        rows = _json(text, str(file))
        if not isinstance(rows, list):
            raise DataError(f"{file}: expected a list of conversations")
        for number, row in enumerate(rows, start=1):
            yield _row(row, f"{file}: conversation {number}", file.parent)
    else:
        raise DataError(f"{file}: expected a .jsonl, .json or .txt file, or a folder")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{file}: the file is not text in UTF-8") from None


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}: not JSON: {error}") from None


def _plain(name: str, text: str, task: str) -> Conversation:
    return Conversation(name, (Turn("text", (Part("text", text),)),), task)


def _row(row: Any, name: str, folder: Path) -> Conversation:
    """One element of a JSON file."""
    if isinstance(row, list):
        row = {"messages": row}
    if not isinstance(row, Mapping):
        raise DataError(f"{name}: expected an object, got {_short(row)}")
    task = row.get("task", "")
    if not isinstance(task, str):
        raise DataError(f"{name}: task must be a text, got {_short(task)}")
    messages = row.get("messages", row.get("conversations"))
    if messages is None and isinstance(row.get("text"), str):
        if not row["text"].strip():
            raise DataError(f"{name}: the text is empty")
        return _plain(name, row["text"], task or "text")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{name}: expected a list of turns in 'messages' or 'conversations'")
    beside = _Beside(row, name)
    turns = [_turn(message, name, beside) for message in messages]
    turns = beside.put_first(turns)
    turns = [Turn(turn.role, _with_paths(turn.parts, name, folder)) for turn in turns]
    kinds = dict.fromkeys(part.kind for turn in turns for part in turn.parts if part.kind in KINDS)
    return Conversation(name, tuple(turns), task or "+".join(kinds) or "text")


class _Beside:
    """Media that a row names beside its turns; placeholders in the turns take them in order."""

    def __init__(self, row: Mapping[str, Any], name: str) -> None:
        self.name = name
        self.left: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        for kind in KINDS:
            for key in (kind, f"{kind}s"):
                value = row.get(key)
                if value is not None:
                    self.left[kind] += value if isinstance(value, list) else [value]
        self.any = any(self.left.values())

    def take(self, kind: str) -> Part:
        """Return the next file of a kind."""
        if not self.left[kind]:
            raise DataError(f"{self.name}: an {kind} is mentioned, but no file is given for it")
        return _media(kind, self.left[kind].pop(0), self.name)

    def put_first(self, turns: list[Turn]) -> list[Turn]:
        """Put files that no placeholder asks for before the first question."""
        left = {kind: len(values) for kind, values in self.left.items() if values}
        if not left:
            return turns
        asked = any(part.kind in left for turn in turns for part in turn.parts)
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
        if asked or first is None:
            counts = ", ".join(f"{count} {kind}" for kind, count in left.items())
            raise DataError(f"{self.name}: no placeholder is left for {counts}")
        parts = tuple(self.take(kind) for kind, count in left.items() for _ in range(count))
        turns[first] = Turn(turns[first].role, parts + turns[first].parts)
        return turns


def _turn(message: Any, name: str, beside: _Beside) -> Turn:
    if not isinstance(message, Mapping):
        raise DataError(f"{name}: a turn must be an object, got {_short(message)}")
    role = message.get("role", message.get("from"))
    if role not in _ROLES:
        known = ", ".join(_ROLES)
        raise DataError(f"{name}: the role of a turn is {_short(role)}; known are {known}")
    content = message.get("content", message.get("value"))
    if isinstance(content, str):
        return Turn(_ROLES[role], tuple(_split(content, beside)))
    if not isinstance(content, list):
        raise DataError(f"{name}: the content of a turn is {_short(content)}, expected a text")
    return Turn(_ROLES[role], tuple(_part(part, name, beside) for part in content))


def _split(text: str, beside: _Beside) -> Iterator[Part]:
    """Cuts a text at its placeholders, where the row names media for them."""
    if not beside.any:
        yield Part("text", text)
        return
    pieces = _TAG.split(text)
    for index, piece in enumerate(pieces):
        if index % 2:
            yield beside.take(piece)
        elif piece.strip():
            # Line breaks beside a placeholder belong to it; chat templates put their own.
            after = index > 0
            before = index < len(pieces) - 1
            piece = piece.lstrip("\n") if after else piece
            yield Part("text", piece.rstrip("\n") if before else piece)


def _part(part: Any, name: str, beside: _Beside) -> Part:
    if isinstance(part, str):
        return Part("text", part)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return Part("text", part["text"])
    kind = kind.removesuffix("_url") if isinstance(kind, str) else kind
    if kind not in KINDS:
        known = ", ".join(("text", *KINDS))
        raise DataError(f"{name}: a part of a turn is {_short(part)}; known types are {known}")
    value = next((part[k] for k in (kind, "path", "url", f"{kind}_url") if part.get(k)), None)
    return beside.take(kind) if value is None else _media(kind, value, name)


def _media(kind: str, value: Any, name: str) -> Part:
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("url")
    if not isinstance(value, str) or not value:
        raise DataError(f"{name}: the {kind} is {_short(value)}, expected a path")
    value = value.removeprefix("file://")
    if "://" in value[:12] or value.startswith("data:"):
        raise DataError(
            f"{name}: the {kind} {value[:60]!r} is not a file; nothing is downloaded, save it first"
        )
    return Part(kind, path=Path(value))


def _with_paths(parts: Sequence[Part], name: str, folder: Path) -> tuple[Part, ...]:
    found = []
    for part in parts:
        if part.path is not None:
            part = Part(part.kind, path=folder / part.path)
            assert part.path is not None
            if not part.path.exists():
                raise DataError(f"{name}: the {part.kind} {part.path} does not exist")
            if part.path.is_dir() and part.kind != "video":
                raise DataError(f"{name}: the {part.kind} {part.path} is a folder")
        found.append(part)
    return tuple(found)


def _check_answer(conversation: Conversation) -> None:
    last = conversation.turns[-1]
    if last.role == "text":
        return
    if last.role != "assistant":
        raise DataError(
            f"{conversation.name}: the conversation has no answer, its last turn is from "
            f"{last.role!r}"
        )
    if not last.text.strip():
        raise DataError(f"{conversation.name}: the answer of the conversation is empty")
    if len(conversation.turns) == 1:
        raise DataError(f"{conversation.name}: the conversation has an answer, but no question")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
