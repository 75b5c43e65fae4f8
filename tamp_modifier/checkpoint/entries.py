"""Which entries of a checkpoint folder may be read and copied.

A folder may come from anyone. What is read must be a regular file, or opening it could wait for
ever. What `tamp pack` and `tamp unpack` copy must lie inside the folder, or the copy would hold
what its owner never meant to give away. Links are followed inside the folder, and from a snapshot
of the Hugging Face cache to the blobs beside it (``snapshots/REVISION/NAME -> ../../blobs/HASH``).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

MOST_ENTRIES = 10_000
"""Files and folders of a checkpoint that are copied, at most."""

HOLEY_FROM = 256 << 20
"""Bytes from which on a file must not consist of holes for the most part."""

MOST_PIECES = 1000
"""Pieces of a file that are looked at for holes, at most."""

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
    stat.S_IFDIR: "a folder",
}


def require_regular(path: Path) -> int:
    """Refuse what is no regular file, links followed, or a file of holes.

    Returns:
        Its size in bytes.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is a link to nothing, a FIFO, a socket, a device or a folder, or most of its
            bytes are in no place of the disk; names it.
    """
    try:
        found = path.stat()
    except OSError as error:
        if path.is_symlink():
            raise ValueError(f"{path} is a link to nothing: {os.readlink(path)}") from error
        raise
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise ValueError(f"{path} is {kind}, not a regular file")
    if found.st_size >= HOLEY_FROM:
        held = _held_bytes(path)
        if held < found.st_size / 2:
            raise ValueError(
                f"{path} is a file of holes: {found.st_size / 1e9:.1f} GB, of which "
                f"{held / 1e9:.1f} GB are on the disk"
            )
    return found.st_size


def _held_bytes(path: Path) -> int:
    """Bytes of a file outside of holes; its size where the system cannot tell."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        held = end = 0
        for _ in range(MOST_PIECES):
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
                end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            except AttributeError:  # a system without holes
                return size
            except OSError:  # nothing but a hole follows, or the file system cannot tell
                return held if end or _is_hole(file.fileno()) else size
            held += end - begin
            if end >= size:
                return held
        return size


def _is_hole(descriptor: int) -> bool:
    """Whether a file begins with a hole."""
    try:
        return os.lseek(descriptor, 0, os.SEEK_HOLE) == 0
    except OSError:
        return False


def files_to_copy(folder: Path, skip: Collection[str]) -> dict[Path, Path]:
    """Return the files of a folder by where they go in a copy of it, folders gone through.

    Args:
        folder: the checkpoint.
        skip: names in `folder` that are written anew; they are checked, but not returned. Names
            there that begin with a dot are neither.

    Raises:
        ValueError: an entry that must not be copied; names it. Nothing has been read then.
    """
    allowed = _allowed_roots(folder)
    found: dict[Path, Path] = {}
    for count, (place, path) in enumerate(_walk(folder, Path(), (), allowed)):
        if count == MOST_ENTRIES:
            raise ValueError(f"{folder} holds more than {MOST_ENTRIES:,} files and folders")
        if path.is_dir():
            continue
        require_regular(path)
        if place.parent != Path() or place.name not in skip:
            found[place] = path.resolve()
    return found


def _allowed_roots(folder: Path) -> tuple[Path, ...]:
    root = folder.resolve()
    if root.parent.name != "snapshots":
        return (root,)
    return root, (root.parent.parent / "blobs").resolve()


def _walk(
    folder: Path,
    place: Path,
    above: tuple[Path, ...],
    allowed: tuple[Path, ...],
    linked: bool = False,
) -> Iterator[tuple[Path, Path]]:
    """Every entry below a folder as (place in the copy, path); `linked` if a link led to it."""
    above = (*above, folder.resolve())
    for path in sorted(folder.iterdir()):
        if place == Path() and path.name.startswith("."):
            continue
        if path.is_symlink():
            _check_link(path, above, allowed)
            if linked and path.is_dir():  # such links can make a few folders billions
                raise ValueError(f"{path} is a link to a folder, in a folder that is linked itself")
        yield place / path.name, path
        if path.is_dir():
            led = linked or path.is_symlink()
            yield from _walk(path, place / path.name, above, allowed, led)


def _check_link(path: Path, above: tuple[Path, ...], allowed: tuple[Path, ...]) -> None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise ValueError(f"{path} is a link to nothing: {os.readlink(path)}") from error
    if not any(target.is_relative_to(root) for root in allowed):
        raise ValueError(
            f"{path} is a link to {target}, outside of the checkpoint folder; put the file itself "
            "there, or remove the link"
        )
    if target in above:
        raise ValueError(f"{path} is a link to the folder that it is in, {target}")
