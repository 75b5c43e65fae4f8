"""Output folders that are whole or absent."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output(out: Path, needed: int = 0) -> None:
    """Refuses an output folder before any work is done.

    Args:
        out: must not exist, or be an empty folder.
        needed: bytes that will be written.

    Raises:
        ValueError: it exists and is not an empty folder.
        OSError: nothing can be written there, or the disk has too little room.
    """
    if out.is_symlink() or out.exists():
        if not out.is_dir():
            raise ValueError(f"{out} exists and is not a folder")
        if any(out.iterdir()):
            raise ValueError(f"{out} is not empty; give another folder, or empty it first")
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        probe = parent / f".{out.name}.probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno, f"nothing can be written here: {error.strerror}", str(parent)
        ) from None
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"the disk has {free / 1e9:.1f} GB left, and {needed / 1e9:.1f} GB are needed",
            str(parent),
        )


@contextmanager
def new_folder(out: Path, hint: str = "") -> Iterator[Path]:
    """Gives a folder ``.tmp`` beside `out` to write into, and renames it at the end.

    After an error or an interrupt nothing of it is left; what a killed run has left goes first.

    Args:
        out: must not exist, or be empty.
        hint: what to add to the message when writing fails.

    Raises:
        OSError: writing failed, be it for a full disk.
    """
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            what = getattr(error, "strerror", None) or " ".join(str(error).split())
            code = getattr(error, "errno", None) or errno.EIO
            raise OSError(
                code, f"saving failed and nothing was left behind: {what}{hint}", str(out)
            ) from error
        raise
