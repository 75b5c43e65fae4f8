"""What a conversation is made of, and the error for data that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loguru import logger

KINDS = ("image", "video", "audio")
SUFFIXES = {
    "image": tuple(".png .jpg .jpeg .jfif .webp .bmp .gif .tif .tiff .avif .heic .ppm".split()),
    "video": tuple(".mp4 .m4v .mkv .webm .avi .mov .mpg .mpeg .wmv .flv .3gp".split()),
    "audio": tuple(".wav .mp3 .flac .ogg .opus .m4a .aac .aiff .wma".split()),
}
QUESTIONS = {
    "image": "Describe the picture.",
    "video": "Describe the video.",
    "audio": "Describe what you hear.",
}
"""What is asked about a file that has only a description."""


class DataError(ValueError):
    """Data that cannot be used; the message begins with the file and the line."""


@dataclass(frozen=True)
class Place:
    """Where a row comes from.

    Attributes:
        name: the file and line, for messages.
        folder: what relative paths of the row start from.
    """

    name: str
    folder: Path = Path()


@dataclass(frozen=True)
class Part:
    """A piece of a turn.

    Attributes:
        kind: "text", "image", "video" or "audio".
        text: the text; empty for media.
        path: the file, or the folder with the frames of a video; None for text, and for media
            that the row itself holds.
        data: the bytes of a medium that the row itself holds, or a decoded ``PIL.Image.Image``.
    """

    kind: str
    text: str = ""
    path: Path | None = None
    data: Any = field(default=None, repr=False)

    @property
    def source(self) -> Any:
        """What a medium is decoded from: a path, bytes or a picture."""
        return self.data if self.path is None else self.path

    @property
    def label(self) -> str:
        """A medium's file, for messages and lists."""
        return "in the row" if self.path is None else str(self.path)


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


class BadRows:
    """Rows that cannot be used, up to a number that is tolerated.

    Args:
        limit: how many may be left out.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.messages: list[str] = []

    def add(self, error: DataError) -> None:
        """Note a bad row.

        Raises:
            DataError: one more than tolerated.
        """
        if len(self.messages) >= self.limit:
            before = f" ({len(self.messages)} bad rows were skipped before)"
            raise DataError(f"{error}{before if self.messages else ''}") from None
        self.messages.append(str(error))

    def tell(self) -> None:
        """Warn of every row that was left out."""
        for message in self.messages:
            logger.warning(f"skipped: {message}")


def short(value: Any) -> str:
    """Return a value for a message, at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
