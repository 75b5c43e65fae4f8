"""What names or holds a medium in a row: a path, a ``data:`` URI, base64, bytes, a picture."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from tamp_modifier.data.base import DataError, Part, Place, short
from tamp_modifier.data.fields import HARMLESS_OF_PART, Fields, is_remote, kind_of_name

MAX_BYTES = 256 << 20
"""Most bytes of one medium that a row itself holds."""

_DATA_URI = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)
_STARTS = {
    "image": (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*"),
    "audio": (b"ID3", b"fLaC", b"OggS", b"\xff\xfb"),
    "video": (b"\x1aE\xdf\xa3",),
}


def medium(kind: str, value: Any, place: Place) -> Part:
    """Return the medium that a value of a row names or holds; nothing is decoded.

    Args:
        kind: "image", "video" or "audio".
        value: a path, a ``file://`` or ``data:`` address, base64, bytes, a ``PIL.Image.Image``, or
            an object with one of them: ``{"bytes", "path"}`` of Hugging Face datasets,
            ``{"url"}`` of OpenAI, ``{"data", "format"}`` of OpenAI's sounds, ``{"type": "base64",
            "media_type", "data"}`` of Anthropic.
        place: the row.

    Raises:
        DataError: it is none of these, lies on another machine, does not exist, or is too large.
    """
    if isinstance(value, Mapping):
        return _of_object(kind, value, place)
    if isinstance(value, bytes | bytearray | memoryview):
        return _of_bytes(kind, bytes(value), place)
    if isinstance(value, Path):
        return _of_path(kind, str(value), place)
    if kind == "image" and hasattr(value, "getbands"):
        return Part(kind, data=value)
    if not isinstance(value, str) or not value:
        raise DataError(f"{place.name}: the {kind} is {short(value)}, expected a path")
    if value[:5].lower() == "data:":
        return _of_data_uri(kind, value, place)
    if value.startswith("file://"):
        value = unquote(value.removeprefix("file://").removeprefix("localhost"))
        return _of_path(kind, value, place)
    if is_remote(value):
        raise DataError(
            f"{place.name}: the {kind} {value[:60]!r} is not a file; nothing is downloaded, save "
            "it first"
        )
    return _of_base64(kind, value, place, is_sure=False) or _of_path(kind, value, place)


def _of_object(kind: str, value: Mapping[Any, Any], place: Place) -> Part:
    fields = Fields(value, place.name, f"the {kind}")
    encoding = fields.take("type", "source_type")
    if encoding not in (None, "base64", "url", "path"):
        raise DataError(
            f"{place.name}: the {kind} is of the type {short(encoding)}; known are base64 and url"
        )
    data = fields.take("bytes", "data", "base64")
    where = fields.take("path", "url")
    fields.refuse_rest(HARMLESS_OF_PART)
    if data is None:
        return medium(kind, None if isinstance(where, Mapping) else where, place)
    # Beside bytes a path is only the name that the file had.
    if isinstance(data, str):
        if data[:5].lower() == "data:":
            return _of_data_uri(kind, data, place)
        found = _of_base64(kind, data, place, is_sure=True)
        assert found is not None
        return found
    if not isinstance(data, bytes | bytearray | memoryview):
        raise DataError(f"{place.name}: the {kind} is {short(data)}, expected bytes or base64")
    return _of_bytes(kind, bytes(data), place)


def _of_bytes(kind: str, data: bytes, place: Place) -> Part:
    if not data:
        raise DataError(f"{place.name}: the {kind} has no bytes")
    if len(data) > MAX_BYTES:
        raise DataError(
            f"{place.name}: the {kind} has {len(data):,} bytes, more than the {MAX_BYTES:,} allowed"
        )
    return Part(kind, data=data)


def _of_data_uri(kind: str, value: str, place: Place) -> Part:
    head = _DATA_URI.match(value)
    if head is None:
        raise DataError(f"{place.name}: the {kind} {value[:40]!r} is not a data: address")
    group = head[1].split("/")[0].lower()
    if group in ("image", "video", "audio", "text") and group != kind:
        raise DataError(f"{place.name}: the {kind} is given as {head[1]!r}")
    rest = value[head.end() :]
    if ";base64" not in head[2].lower():
        return _of_bytes(kind, unquote_to_bytes(rest), place)
    found = _of_base64(kind, unquote(rest) if "%" in rest else rest, place, is_sure=True)
    assert found is not None
    return found


def _of_base64(kind: str, value: str, place: Place, is_sure: bool) -> Part | None:
    """Return the bytes; None for a text that may be a path and starts like no known format."""
    if not is_sure:
        head = value[:64].rstrip("=\r\n")
        try:
            start = base64.b64decode(head[: len(head) // 4 * 4], validate=True)
        except (binascii.Error, ValueError):
            return None
        riff = start[:4] == b"RIFF" or start[4:8] == b"ftyp"
        if len(value) < 64 or not (riff or start.startswith(_STARTS[kind])):
            return None
    if len(value) // 4 * 3 > MAX_BYTES:
        raise DataError(f"{place.name}: the {kind} has more than the {MAX_BYTES:,} bytes allowed")
    try:
        data = base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"{place.name}: the {kind} is not base64: {short(value)}") from None
    return _of_bytes(kind, data, place)


def _of_path(kind: str, value: str, place: Place) -> Part:
    path = place.folder / Path(value)
    try:
        if not path.exists():
            raise DataError(f"{place.name}: the {kind} {path} does not exist")
        if path.is_dir() and kind != "video":
            raise DataError(f"{place.name}: the {kind} {path} is a folder")
        if kind == "video" and kind_of_name(value) == "image" and path.suffix.lower() != ".gif":
            raise DataError(
                f"{place.name}: the video {path} is a picture; give a folder with the frames"
            )
    except (OSError, ValueError) as error:  # too long a name, a null byte; DataError passes
        if isinstance(error, DataError):
            raise
        raise DataError(f"{place.name}: the {kind} is {short(value)}, expected a path") from None
    return Part(kind, path=path)
