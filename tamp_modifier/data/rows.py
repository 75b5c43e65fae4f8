"""From one row of a file to a conversation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tamp_modifier.data.base import (
    KINDS,
    QUESTIONS,
    Conversation,
    DataError,
    Part,
    Place,
    Turn,
    short,
)
from tamp_modifier.data.fields import (
    HARMLESS,
    HARMLESS_OF_PART,
    HARMLESS_OF_TURN,
    Fields,
    kind_of_name,
)
from tamp_modifier.data.formats import caption_of, messages_of
from tamp_modifier.data.references import medium

_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}
_ROLES |= {"system": "system", "developer": "system"}
_TAG = re.compile(r"<(image|video|audio)>")
_TEXT_TYPES = ("text", "input_text", "output_text")

MEDIA_KEYS = {
    "image": ("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos"),
    "video": ("video", "videos"),
    "audio": ("audio", "audios", "sound", "speech"),
}
"""Keys that hold or name media beside the turns."""

NAME_KEYS = ("file_name", "filename", "file_names", "file", "path")
"""Keys with the name of a file, whose ending tells what it is."""


def named_keys(kind: str) -> list[str]:
    """Keys that name media of a kind, where no key of MEDIA_KEYS has any."""
    ends = ("path", "paths", "file", "files", "file_name", "file_names", "name", "url", "urls")
    words = (kind, "img") if kind == "image" else (kind,)
    return [f"{word}_{end}" for word in words for end in ends]


def to_conversation(row: Any, place: Place) -> Conversation:
    """One row as a conversation.

    Args:
        row: an object with turns, a question and its answer, or a text; or a list of turns.
        place: where it comes from.

    Raises:
        DataError: it is no such row, media are missing, or it has keys that nothing reads.
    """
    name = place.name
    if isinstance(row, list):
        row = {"messages": row}
    if not isinstance(row, Mapping):
        raise DataError(f"{name}: expected an object, got {short(row)}")
    fields = Fields(row, name, "the row")
    task = fields.take("task") or ""
    if not isinstance(task, str):
        raise DataError(f"{name}: task must be a text, got {short(task)}")
    beside = _Beside(fields, place)
    messages = messages_of(fields)
    if messages is not None:
        turns = [_turn(message, place, beside) for message in messages]
        turns = beside.put_first(turns)
    else:
        turns = _captioned(fields, beside)
    media = [part for turn in turns for part in turn.parts if part.kind in KINDS]
    fields.refuse_rest(HARMLESS, media, beside.names)
    kinds = dict.fromkeys(part.kind for part in media)
    return Conversation(name, tuple(turns), task or "+".join(kinds) or "text")


class _Beside:
    """Media that a row names beside its turns; placeholders in the turns take them in order."""

    def __init__(self, fields: Fields, place: Place) -> None:
        self.place = place
        self.left: dict[str, list[Any]] = {}
        # What names a medium may also say what an embedded one was called.
        self.names = {*NAME_KEYS, *(key for kind in KINDS for key in named_keys(kind))}
        for kind in KINDS:
            values = [fields.take(key) for key in MEDIA_KEYS[kind] if key in fields]
            if not any(_as_list(value) for value in values):
                values.append(fields.take(*named_keys(kind)))
            self.left[kind] = [item for value in values for item in _as_list(value)]
        for key in NAME_KEYS:
            names = _as_list(fields.get(key))
            kinds = {kind_of_name(name) if isinstance(name, str) else "" for name in names}
            kind = kinds.pop() if len(kinds) == 1 else ""
            if kind and not self.left[kind]:
                self.left[kind] = names
                fields.take(key)
        self.any = any(self.left.values())

    def take(self, kind: str) -> Part:
        """Return the next medium of a kind."""
        if not self.left[kind]:
            article = "a" if kind == "video" else "an"
            raise DataError(
                f"{self.place.name}: {article} {kind} is mentioned, but no file is given for it"
            )
        return medium(kind, self.left[kind].pop(0), self.place)

    def take_all(self) -> tuple[Part, ...]:
        """All that are left."""
        return tuple(self.take(kind) for kind in KINDS for _ in range(len(self.left[kind])))

    def put_first(self, turns: list[Turn]) -> list[Turn]:
        """Put media that no placeholder asks for before the first question."""
        left = {kind: len(values) for kind, values in self.left.items() if values}
        if not left:
            return turns
        asked = any(part.kind in left for turn in turns for part in turn.parts)
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
        if asked or first is None:
            counts = ", ".join(f"{count} {kind}" for kind, count in left.items())
            raise DataError(f"{self.place.name}: no placeholder is left for {counts}")
        turns[first] = Turn(turns[first].role, self.take_all() + turns[first].parts)
        return turns


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _captioned(fields: Fields, beside: _Beside) -> list[Turn]:
    """Media with the text that describes them, or a text alone."""
    name = fields.name
    text = caption_of(fields) if beside.any or "text" in fields else None
    if text is None:
        what = "its media have no text" if beside.any else f"it has {_keys(fields)}"
        raise DataError(
            f"{name}: expected a list of turns in 'messages' or 'conversations', a question with "
            f"an answer, or a text; {what}"
        )
    if not text.strip():
        raise DataError(f"{name}: the text is empty")
    if not beside.any:
        return [Turn("text", (Part("text", text),))]
    parts = list(_split(text, beside))
    said = [part for part in parts if part.kind == "text"]
    media = [part for part in parts if part.kind != "text"]
    if len(said) != 1 or (media and parts[0] != said[0] and parts[-1] != said[0]):
        raise DataError(f"{name}: the text has media in its middle; give turns in 'messages'")
    left = sum(len(values) for values in beside.left.values())
    if media and left:
        raise DataError(f"{name}: no placeholder is left for {left} of the media of the row")
    media += beside.take_all()
    question = Turn("user", (*media, Part("text", QUESTIONS[media[0].kind])))
    return [question, Turn("assistant", (Part("text", said[0].text.strip(" \t\r\n")),))]


def _keys(fields: Fields) -> str:
    keys = fields.keys()
    return f"the keys {', '.join(map(repr, keys[:8]))}" if keys else "no keys"


def _turn(message: Any, place: Place, beside: _Beside) -> Turn:
    name = place.name
    if not isinstance(message, Mapping):
        raise DataError(f"{name}: a turn must be an object, got {short(message)}")
    fields = Fields(message, name, "a turn")
    role = fields.take("role", "from")
    if not isinstance(role, str) or role not in _ROLES:
        known = ", ".join(_ROLES)
        raise DataError(f"{name}: the role of a turn is {short(role)}; known are {known}")
    if fields.get("type") == "message":
        fields.take("type")
    content = fields.take("content", "value")
    own = _Beside(fields, place)  # Ollama's messages have their pictures beside the text
    source = own if own.any else beside
    if isinstance(content, str):
        parts: Iterable[Part] = _split(content, source)
    elif isinstance(content, list | tuple):
        parts = (part for item in content for part in _parts(item, place, source))
    elif own.any and content is None:
        parts = ()
    else:
        fields.refuse_rest(HARMLESS_OF_TURN)  # tool calls tell more than the missing content
        raise DataError(f"{name}: the content of a turn is {short(content)}, expected a text")
    turn = Turn(_ROLES[role], tuple(parts))
    if own.any and any(own.left.values()):
        if any(part.kind in KINDS for part in turn.parts):
            raise DataError(f"{name}: no placeholder is left for the media beside a turn")
        turn = Turn(turn.role, own.take_all() + turn.parts)
    media = [part for part in turn.parts if part.kind in KINDS]
    fields.refuse_rest(HARMLESS_OF_TURN, media, own.names)
    return turn


def _split(text: str, beside: _Beside) -> Iterator[Part]:
    """Cut a text at its placeholders, where the row names media for them."""
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


def _parts(part: Any, place: Place, beside: _Beside) -> Iterator[Part]:
    """Yield the pieces of one part of a turn's content."""
    if isinstance(part, str):
        yield from _split(part, beside)
        return
    fields = Fields(part if isinstance(part, Mapping) else {}, place.name, "a part of a turn")
    kind = fields.take("type")
    if kind is None:  # Qwen's parts are {"image": ...} and {"text": ...}
        kind = next((key for key in ("text", *KINDS) if key in fields), None)
    if kind in _TEXT_TYPES and isinstance(fields.get("text"), str):
        text = fields.take("text")
        fields.refuse_rest(HARMLESS_OF_PART)
        yield from _split(text, beside)
        return
    kind = kind.removeprefix("input_").removesuffix("_url") if isinstance(kind, str) else kind
    if kind not in KINDS:
        known = ", ".join(("text", *KINDS))
        raise DataError(f"{place.name}: a part of a turn is {short(part)}; known types are {known}")
    names = (kind, f"{kind}_url", f"input_{kind}", "source", "path", "url")
    held = fields.has("base64", "data", "bytes")
    value = {"type": fields.take("source_type"), "bytes": fields.take("base64", "data", "bytes")}
    found = value if held else next((fields.take(key) for key in names if fields.get(key)), None)
    fields.refuse_rest(HARMLESS_OF_PART)
    yield beside.take(kind) if found is None else medium(kind, found, place)
