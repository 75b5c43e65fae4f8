"""Read webdataset archives: the files of a sample have one name and different endings.

Everything is read into memory and nothing is written, so no name in an archive can lead anywhere.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tamp_modifier.data.base import SUFFIXES, DataError, Place
from tamp_modifier.data.files import RawRow, open_file, parse_json
from tamp_modifier.data.references import MAX_BYTES

MAX_ARCHIVE = 2 << 30
"""Most bytes that the files of one archive have together."""

_TEXT = {"txt": "text", "text": "text", "caption": "caption", "cap": "caption"}


def read_archive(file: Path) -> Iterator[RawRow]:
    """Yield the samples of a tar archive, in their order, each as a row.

    A ``.txt`` file is the sample's text, a ``.json`` file has more keys of the row, pictures,
    videos and sounds are its media.

    Raises:
        DataError: the archive is damaged, too large, or has members that are no part of a sample:
            links, devices, names that lead out of it, files of another kind.
    """
    samples: dict[str, dict[str, Any]] = {}
    total = 0
    try:
        with open_file(file) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if member.isdir() or _is_litter(member.name):
                    continue
                _check(member, file)
                total += member.size
                if total > MAX_ARCHIVE:
                    raise DataError(
                        f"{file}: its files have more than {MAX_ARCHIVE:,} bytes together"
                    )
                content = archive.extractfile(member)
                assert content is not None
                _add(samples, member.name, content.read(), file)
            # A damaged header ends the loop like the end mark, which is a block of zeros.
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise DataError(f"{file}: the archive is damaged at byte {archive.offset}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{file}: not a tar archive, or cut off: {error}") from None
    for key, row in samples.items():
        yield _merged(row, Place(f"{file}: sample {key}", file.parent))


def _is_litter(name: str) -> bool:
    """Whether a member is what macOS adds to archives."""
    last = PurePosixPath(name).name
    return last.startswith("._") or last == ".DS_Store"


def _check(member: tarfile.TarInfo, file: Path) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name:
        raise DataError(f"{file}: the name {member.name!r} leads out of the archive")
    if not member.isreg() or member.issparse():
        raise DataError(f"{file}: {member.name!r} is a link, a device or a sparse file")
    if member.size > MAX_BYTES:
        raise DataError(
            f"{file}: {member.name!r} has {member.size:,} bytes, more than the {MAX_BYTES:,} "
            "allowed"
        )


def _add(samples: dict[str, dict[str, Any]], name: str, data: bytes, file: Path) -> None:
    path = PurePosixPath(name)
    stem, _, ending = path.name.partition(".")
    row = samples.setdefault(str(path.with_name(stem)) if stem else name, {})
    ending = ending.lower()
    if ending in row:
        raise DataError(f"{file}: {name!r} is there twice")
    row[ending] = data


def _merged(files: dict[str, bytes], place: Place) -> RawRow:
    row: dict[str, Any] = {}
    try:
        for ending, data in files.items():
            last = ending.rpartition(".")[2]
            kind = next((k for k, suffixes in SUFFIXES.items() if f".{last}" in suffixes), None)
            if kind is not None:
                row.setdefault(f"{kind}s", []).append({"bytes": data})
            elif ending in _TEXT:
                _put(row, _TEXT[ending], _text(data, ending, place), place)
            elif ending == "json":
                more = parse_json(_text(data, ending, place), place.name)
                if not isinstance(more, dict):
                    raise DataError(f"{place.name}: its .json file is not an object")
                for key, value in more.items():
                    _put(row, key, value, place)
            else:
                known = ", ".join(_TEXT)
                raise DataError(
                    f"{place.name}: nothing reads its file .{ending}; known are json, {known}, and "
                    "pictures, videos and sounds"
                )
    except DataError as error:
        return RawRow(place, error)
    return RawRow(place, row)


def _put(row: dict[str, Any], key: str, value: Any, place: Place) -> None:
    if key in row and row[key] != value:
        raise DataError(f"{place.name}: {key!r} is given twice, by two files")
    row[key] = value


def _text(data: bytes, ending: str, place: Place) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{place.name}: its file .{ending} is not text in UTF-8") from None
