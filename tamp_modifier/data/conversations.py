"""Conversations with pictures, videos and sounds, read from the formats that people have.

``docs/data.md`` has the table. Every reader gives rows (``files``, ``tables``, ``archives``), every
row becomes a conversation (``rows``, ``formats``), and every key of a row is read, known to be
harmless, or refused by name (``fields``). Paths are relative to the file that names them. Nothing
is decoded here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from loguru import logger

from tamp_modifier.allocation.budget import some
from tamp_modifier.data import files
from tamp_modifier.data.archives import read_archive
from tamp_modifier.data.base import (
    KINDS,
    QUESTIONS,
    SUFFIXES,
    BadRows,
    Conversation,
    DataError,
    Part,
    Place,
    Turn,
)
from tamp_modifier.data.fields import kind_of_name
from tamp_modifier.data.files import RawRow
from tamp_modifier.data.rows import to_conversation
from tamp_modifier.data.tables import (
    is_saved_dataset,
    read_arrow,
    read_parquet,
    read_saved_dataset,
    rows_in_memory,
)

__all__ = ["KINDS", "QUESTIONS", "SUFFIXES", "Conversation", "DataError", "Part", "Turn"]
__all__ += ["read_conversations"]

MAX_TOTAL = 2 << 30
"""Most bytes of media that rows themselves hold, all rows together."""

READERS = {**files.READERS, ".parquet": read_parquet, ".arrow": read_arrow, ".tar": read_archive}
"""Readers by the ending of a file's name."""


def read_conversations(
    source: str | Path | Iterable[Any], need_answer: bool = True, bad: BadRows | None = None
) -> list[Conversation]:
    """Read all conversations of a file or folder, or of rows in memory, in a fixed order.

    Args:
        source: a file or folder of one of the formats in ``docs/data.md``, a list of rows or of
            conversations, or a dataset of Hugging Face.
        need_answer: whether a conversation must end with something that the assistant says.
        bad: takes note of rows that cannot be used, as many as it tolerates; none by default.

    Returns:
        The conversations, in the order of the rows; of a folder, in that of the names of its files.

    Raises:
        FileNotFoundError: there is no such file or folder.
        DataError: a file of another form, a conversation that is not complete, media that do not
            exist, or keys of a row that nothing reads.
    """
    path = Path(source) if isinstance(source, str | Path) else None
    bad = BadRows() if bad is None else bad
    found = []
    total = 0
    for row in rows_in_memory(source) if path is None else _rows(path):
        try:
            conversation = _conversation(row, need_answer)
        except DataError as error:
            bad.add(error)
            continue
        total += sum(len(p.data) for p in conversation.media if isinstance(p.data, bytes))
        if total > MAX_TOTAL:
            raise DataError(
                f"{conversation.name}: the rows up to here hold more than {MAX_TOTAL:,} bytes of "
                "media; give fewer rows, or media as files"
            )
        found.append(conversation)
    name = "the data" if path is None else str(path)
    if not found:
        raise DataError(f"{name}: there is no conversation in it{_advice(path, bad)}")
    if path is not None and path.is_dir():
        _tell_left_out(path, found)
    return found


def _conversation(row: RawRow, need_answer: bool) -> Conversation:
    if isinstance(row.value, DataError):
        raise row.value
    given = isinstance(row.value, Conversation)
    conversation = row.value if given else to_conversation(row.value, row.place)
    if need_answer:
        _check_answer(conversation)
    return conversation


def _rows(path: Path) -> Iterator[RawRow]:
    if not path.exists():
        raise FileNotFoundError(2, "no such file or folder", str(path))
    if not path.is_dir():
        reader = _reader(path)
        if reader is None:
            known = ", ".join(READERS)
            raise DataError(f"{path}: expected a file that ends in {known}, or a folder")
        yield from reader(path)
    elif is_saved_dataset(path):
        yield from read_saved_dataset(path)
    else:
        yield from _folder(path)


def _reader(file: Path) -> Any:
    """Return what reads a file; None if nothing does."""
    name = file.name.lower()
    if name.endswith(".tgz"):
        return read_archive
    is_packed = name.endswith(".gz")
    ending = Path(name.removesuffix(".gz")).suffix
    if is_packed and ending in (".parquet", ".arrow"):
        return None
    return READERS.get(ending)


def _folder(folder: Path) -> Iterator[RawRow]:
    """Yield described files, each with its text beside it, then the lists in the folder."""
    captions: set[Path] = set()
    entries = sorted(file for file in folder.iterdir() if file.is_file())
    for file in entries:
        text = file.with_suffix(".txt")
        if kind_of_name(file.name) and text.is_file():
            captions.add(text)
            yield _described(file, text)
    for file in entries:
        reader = _reader(file)
        if reader is not None and file not in captions:
            yield from reader(file)


def _described(file: Path, text: Path) -> RawRow:
    place = Place(str(file), file.parent)
    said = files.read_text(text).strip(files.BLANKS)
    if not said:
        return RawRow(place, DataError(f"{text}: the description of {file.name} is empty"))
    return RawRow(place, {kind_of_name(file.name): Path(file.name), "text": said})


def _tell_left_out(folder: Path, found: list[Conversation]) -> None:
    if is_saved_dataset(folder):
        return
    used = {part.path.resolve() for row in found for part in row.media if part.path is not None}
    alone = [
        file.name
        for file in sorted(folder.iterdir())
        if kind_of_name(file.name) and file.is_file() and file.resolve() not in used
    ]
    if alone:
        logger.warning(f"{folder}: no row and no .txt beside, so left out: {some(alone)}")


def _advice(path: Path | None, bad: BadRows) -> str:
    """Why there may be nothing in it."""
    if bad.messages:
        return f"; {len(bad.messages)} bad rows were skipped, the first: {bad.messages[0]}"
    if path is None or not path.is_dir():
        return ""
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    if folders:
        return f"; folders in it are not searched, give one of them: {some(folders)}"
    media = sorted(entry.name for entry in path.iterdir() if kind_of_name(entry.name))
    return f"; nothing describes {some(media)}" if media else ""


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
