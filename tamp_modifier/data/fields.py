"""The keys of a row: each is taken by a format, known to be harmless, or refused by name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from tamp_modifier.data.base import SUFFIXES, DataError, Part, short

HARMLESS = frozenset(
    # which row it is
    "id _id uid uuid guid idx index key row row_idx row_index __key__ __url__ __index_level_0__ "
    # where it comes from
    "source sources data_source dataset dataset_name split subset version url urls author license "
    "licence model model_name date timestamp created created_at updated_at metadata meta "
    # what somebody counted or noted about it
    "language lang category categories tags topic domain subject difficulty question_type "
    "answer_type answer_confidence score quality status error_message num_turns num_tokens "
    "token_count length width height original_width original_height duration exif hash md5 sha256 "
    # how a request was made
    "temperature top_p max_tokens max_completion_tokens max_output_tokens stream".split()
)
"""Keys of a row that say something about it and hold nothing that a model reads."""

HARMLESS_OF_TURN = frozenset(
    "id _id uid index name weight train loss model status timestamp created_at metadata".split()
)
"""Keys of a turn that hold nothing that a model reads."""

HARMLESS_OF_PART = frozenset(
    "id index detail format media_type mime_type mimeType cache_control annotations logprobs "
    "sampling_rate".split()
)
"""Keys of a part of a turn, or of what names a medium, that hold nothing that a model reads."""

_OBJECTS = {"metadata", "meta", "exif", "annotations", "logprobs", "cache_control"}
"""Harmless keys that may hold more than values and lists of values."""

_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_NAMES_A_MEDIUM = re.compile(r"(image|img|video|audio|file)_id")


DEEPEST = 32
"""Levels of a value that nobody reads, in which a medium is looked for."""


class Fields:
    """The keys of one object that nothing has read yet; null counts as absent.

    Args:
        values: the object.
        name: the row, for messages.
        what: what the object is, for messages.
    """

    def __init__(self, values: Mapping[Any, Any], name: str, what: str) -> None:
        self.name = name
        self._what = what
        self._left = {str(key): value for key, value in values.items() if value is not None}

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def has(self, *keys: str) -> bool:
        """Whether one of these keys is left."""
        return any(key in self._left for key in keys)

    def keys(self) -> list[str]:
        """Return the keys that are left."""
        return list(self._left)

    def get(self, key: str) -> Any:
        """Return the value of a key, which stays to be read; None where there is none."""
        return self._left.get(key)

    def take(self, *keys: str) -> Any:
        """Return the value of the first of these keys that is there, which counts as read."""
        found = next((key for key in keys if key in self._left), None)
        return None if found is None else self._left.pop(found)

    def refuse_rest(
        self,
        harmless: Collection[str],
        media: Iterable[Part] = (),
        names: Collection[str] = (),
    ) -> None:
        """Check that nothing is lost with what is left.

        Args:
            harmless: keys that may be left, if they name no medium but those of the row.
            media: the media that were read.
            names: keys that may be left if they say what the media are called.

        Raises:
            DataError: naming the keys that nobody reads.
        """
        media = list(media)
        lost = []
        for key, value in self._left.items():
            if isinstance(value, str | list | tuple | dict) and not len(value):
                continue  # nothing in it
            medium = _unread_medium(value, media)
            is_name = key in names and _is_name_of(value, media)
            if medium or not (is_name or _is_harmless(key, value, harmless, media)):
                lost.append(f"{key!r} ({medium or short(value)})")
        if lost:
            keys = "key" if len(lost) == 1 else "keys"
            raise DataError(
                f"{self.name}: nothing reads the {keys} {', '.join(lost)} of {self._what}; remove "
                "or rename what is not needed (docs/data.md lists the keys that are read)"
            )


def _is_harmless(key: str, value: Any, harmless: Collection[str], media: list[Part]) -> bool:
    if key in harmless:
        items = value if isinstance(value, list | tuple) else [value]
        return key in _OBJECTS or not any(isinstance(i, Mapping | list | tuple) for i in items)
    if not key.endswith("_id") or not isinstance(value, str | int | float):
        return False
    named = _NAMES_A_MEDIUM.fullmatch(key)  # of which the row has to have one
    kind = named[1].replace("img", "image") if named else ""
    return not named or any(part.kind == kind for part in media)


def _is_name_of(value: Any, media: list[Part]) -> bool:
    """Whether a value may be what the media of a row are called, or were."""
    names = value if isinstance(value, list | tuple) else [value]
    if not media or not all(isinstance(name, str) for name in names):
        return False
    stems = {part.path.stem for part in media if part.path is not None}
    is_embedded = any(part.path is None for part in media)
    return is_embedded or all(is_remote(name) or PurePath(name).stem in stems for name in names)


def _unread_medium(value: Any, media: list[Part], depth: int = DEEPEST) -> str:
    """Describe a picture, video or sound in a value that is none of these; "" for none.

    What is nested deeper than `depth` is not looked into, and named as such.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if hasattr(value, "getbands"):  # PIL's, which need not be installed
        return "a picture"
    if isinstance(value, str):
        return short(value) if _is_other_medium(value, media) else ""
    if isinstance(value, Mapping | list | tuple):
        if not depth:
            return f"nested more than {DEEPEST} levels deep" if value else ""
        items = value.values() if isinstance(value, Mapping) else value
        return next(filter(None, (_unread_medium(item, media, depth - 1) for item in items)), "")
    return ""


def _is_other_medium(text: str, media: list[Part]) -> bool:
    if re.match(r"data:(image|video|audio)/", text):
        return True
    if len(text) > 64 and text.startswith(_BASE64_STARTS):
        return True
    kind = kind_of_name(text)
    if not kind or len(text.splitlines()) > 1:
        return False
    mine = [part for part in media if part.kind == kind]
    if _REMOTE.match(text) and mine:
        return False  # where the medium of the row once came from
    stem = PurePath(text).stem
    return not any(part.path is None or part.path.stem == stem for part in mine)


def kind_of_name(name: str) -> str:
    """Return the kind of medium that a file name or address ends like; "" for none."""
    if len(name) > 1024:
        return ""
    try:
        path = urlsplit(name).path if _REMOTE.match(name) else name
    except ValueError:
        return ""
    suffix = PurePath(path).suffix.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), "")


def is_remote(text: str) -> bool:
    """Whether a text is an address with a scheme, as ``https://`` or ``s3://``."""
    return bool(_REMOTE.match(text))
