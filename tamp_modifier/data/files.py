"""Read the rows of a file of text: JSON Lines, JSON, CSV, TSV and plain lines, also gzipped."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tamp_modifier.data.base import DataError, Place
from tamp_modifier.data.fields import HARMLESS, Fields

MAX_ROW = 512 << 20
"""Most bytes of one line."""

MAX_UNPACKED = 4 << 30
"""Most bytes that a compressed file may have when it is unpacked."""

WRAPPERS = ("data", "rows", "samples", "examples", "train")
"""Keys under which the object of a JSON file may have its list of rows."""

BLANKS = " \t\r\n"
"""What may be stripped from a line; U+2028, U+2029 and U+0085 belong to its text."""


@dataclass(frozen=True)
class RawRow:
    """One row as the file has it.

    Attributes:
        place: where it stands.
        value: JSON-like values, bytes for media; or the error of a row that cannot be read.
    """

    place: Place
    value: Any


def read_text(file: Path) -> str:
    """Return a whole file of text.

    Raises:
        DataError: it is not UTF-8, or damaged.
    """
    with open_file(file) as stream:
        return _decoded(stream.read(), file)


def read_lines(file: Path) -> Iterator[RawRow]:
    """Every line that is not blank, as a plain text."""
    for number, line in _lines(file):
        yield RawRow(Place(f"{file}:{number}", file.parent), {"text": line.strip(BLANKS)})


def read_json_lines(file: Path) -> Iterator[RawRow]:
    """Every line that is not blank, as JSON."""
    for number, line in _lines(file):
        yield _parsed(line, Place(f"{file}:{number}", file.parent))


def read_json(file: Path) -> Iterator[RawRow]:
    """Yield the rows of a JSON document: a list, an object with the list in it, or a single row.

    JSON Lines are accepted too, because many files of them are named so.

    Raises:
        DataError: it is neither.
    """
    text = read_text(file)
    try:
        document = parse_json(text, str(file))
    except DataError:
        if not _is_lines(text):
            raise
        yield from read_json_lines(file)
        return
    rows = document
    if isinstance(document, Mapping):
        rows = _unwrapped(document, file)
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a list of conversations")
    for number, row in enumerate(rows, start=1):
        yield RawRow(Place(f"{file}: conversation {number}", file.parent), row)


def read_table(file: Path) -> Iterator[RawRow]:
    """Yield the rows of a CSV or TSV file with a header; an empty cell is absent.

    Raises:
        DataError: it has no header, or one with a name twice.
    """
    text = io.StringIO(read_text(file), newline="")
    tabs = file.name.removesuffix(".gz").lower().endswith(".tsv")
    limit = csv.field_size_limit(MAX_ROW)
    try:
        reader = csv.reader(text, delimiter="\t" if tabs else ",", strict=True)
        lines, last = [], 0
        for cells in reader:
            lines.append((last + 1, cells))
            last = reader.line_num
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: not a table: {error}") from None
    finally:
        csv.field_size_limit(limit)
    header = [name.strip(BLANKS) for name in lines[0][1]] if lines else []
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file}: the column {twice!r} is there twice")
    for number, cells in lines[1:]:
        place = Place(f"{file}:{number}", file.parent)
        if not any(cells):
            continue
        if len(cells) != len(header):
            what = f"{place.name}: {len(cells)} cells, but the header has {len(header)} columns"
            yield RawRow(place, DataError(what))
        else:
            yield RawRow(place, {k: v for k, v in zip(header, cells, strict=True) if v})


def parse_json(text: str | bytes, name: str) -> Any:
    """JSON in which no object has a key twice.

    Raises:
        DataError: it is not.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{name}: the key {twice!r} is given twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except DataError:
        raise
    except ValueError as error:  # also a number of too many digits
        raise DataError(f"{name}: not JSON: {error}") from None
    except RecursionError:
        raise DataError(f"{name}: not JSON: it is nested too deeply") from None


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".txt": read_lines,
    ".csv": read_table,
    ".tsv": read_table,
}
"""Readers by the ending of a file's name; each also reads the file gzipped, with .gz after it."""


# -- opening ---------------------------------------------------------------------------------------


class Limited(io.RawIOBase):
    """A stream of unpacked bytes that ends with an error where there are too many."""

    def __init__(self, stream: Any, file: Path) -> None:
        self._stream, self._file = stream, file

    def readable(self) -> bool:
        """Whether it can be read: it can."""
        return True

    def seekable(self) -> bool:
        """Whether it can be sought in: it can."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return int(self._stream.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Return moves to a position."""
        if whence == io.SEEK_SET and offset > MAX_UNPACKED:
            self._refuse()
        return int(self._stream.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer, and returns how many bytes."""
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        if self._stream.tell() > MAX_UNPACKED:
            self._refuse()
        return len(data)

    def _refuse(self) -> None:
        raise DataError(f"{self._file}: unpacked it has more than {MAX_UNPACKED:,} bytes")


@contextmanager
def open_file(file: Path) -> Iterator[IO[bytes]]:
    """Yield the bytes of a file, unpacked if its name ends in ``.gz`` or ``.tgz``.

    Raises:
        DataError: it is damaged, or too large when unpacked.
    """
    try:
        with open(file, "rb") as plain:
            if file.suffix.lower() not in (".gz", ".tgz"):
                yield plain
                return
            with gzip.open(plain) as unpacked:
                yield io.BufferedReader(Limited(unpacked, file))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file}: cut off or not gzip: {error}") from None


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank. Only a line feed ends a line."""
    with open_file(file) as stream:
        number = 0
        while line := stream.readline(MAX_ROW + 1):
            number += 1
            if len(line) > MAX_ROW:
                raise DataError(f"{file}:{number}: the line has more than {MAX_ROW:,} bytes")
            text = _decoded(line, file, is_first=number == 1)
            if text.strip(BLANKS):
                yield number, text


def _decoded(data: bytes, file: Path, is_first: bool = True) -> str:
    try:
        return data.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{file}: the file is not text in UTF-8") from None


# -- JSON ------------------------------------------------------------------------------------------


def _parsed(text: str, place: Place) -> RawRow:
    try:
        return RawRow(place, parse_json(text, place.name))
    except DataError as error:
        return RawRow(place, error)


def _is_lines(text: str) -> bool:
    """Whether the first line of a text is a whole JSON object and there are more lines."""
    first, _, rest = text.strip(BLANKS).partition("\n")
    try:
        return bool(rest) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _unwrapped(document: Mapping[str, Any], file: Path) -> Any:
    """Return the list of rows in an object, or the object as the only row."""
    lists = [key for key in WRAPPERS if isinstance(document.get(key), list)]
    if not lists:
        return [document] if document else None
    fields = Fields(document, str(file), "the document")
    rows = fields.take(lists[0])
    fields.refuse_rest(HARMLESS | {"info", "name", "description", "title", "homepage", "count"})
    return rows
