"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tamp_modifier.messages import size_text

UNFINISHED = ".tamp-unfinished"
"""A file in folders that are being written, by which those that a killed run has left are known."""


def name_of(path: str | os.PathLike[str]) -> str:
    """Return the last part of a path, that of the current folder for "."."""
    return os.path.basename(os.path.abspath(path))


def check_output(out: Path, needed: int = 0) -> None:
    """Refuse an output folder before any work is done.

    Args:
        out: must not exist, or be an empty folder.
        needed: bytes that will be written.

    Raises:
        ValueError: it exists and is not an empty folder.
        OSError: nothing can be written there, or the disk has too little room.
    """
    if out.is_symlink():
        raise ValueError(f"{out} is a link; give the folder that it leads to, or another one")
    if out.exists():
        if not out.is_dir():
            raise ValueError(f"{out} exists and is not a folder")
        if any(out.iterdir()):
            raise ValueError(f"{out} is not empty; give another folder, or empty it first")
    parent = out.absolute().parent
    probe(parent)
    check_room(parent, needed)


def check_room(folder: Path, needed: int) -> None:
    """Refuse a disk that has too little room.

    Raises:
        OSError: fewer than `needed` bytes are free where `folder` is.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"the disk has {size_text(free)} left, and {size_text(needed)} are needed",
            str(folder),
        )


def probe(folder: Path) -> None:
    """Make a folder if need be, and writes and removes a file in it.

    Raises:
        OSError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f".probe-{os.getpid()}"
        file.touch()
        file.unlink()
    except OSError as error:
        raise OSError(
            error.errno, f"nothing can be written here: {error.strerror}", str(folder)
        ) from None


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Keep others from writing to the same place while the block runs.

    The lock is ``PATH.lock`` and holds the process's id. The system releases it when the process
    ends, however it ends, so that of a dead process is taken over.

    Args:
        path: a file or folder, which need not exist.

    Raises:
        OSError: another run is writing there; names its process.
    """
    place = path.absolute()
    file = place.with_name(place.name + ".lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = _lock(file, path)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(handle)


def _lock(file: Path, path: Path) -> int:
    import fcntl  # not on Windows, where nothing of this package prunes or serves

    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one that had it may have removed the file after it was opened here.
            if file.exists() and os.fstat(handle).st_ino == file.stat().st_ino:
                os.truncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
                return handle
        except BlockingIOError:
            owner = os.read(handle, 20).decode(errors="replace") or "another one"
            os.close(handle)
            raise OSError(
                errno.EBUSY,
                f"process {owner} is writing it; wait until it ends, or give another place",
                str(path),
            ) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


@contextmanager
def new_folder(out: Path, hint: str = "", temporary: Path | None = None) -> Iterator[Path]:
    """Give a folder beside `out` to write into, and renames it at the end.

    Its files have the modes that the user's umask asks for. After an error, an interrupt or SIGTERM
    nothing of it is left. While another process writes
    to the same `out`, it is refused.

    Args:
        out: must not exist, or be empty.
        hint: what to add to the message when writing fails.
        temporary: the folder to write into, which must not exist; by default ``OUT.tmp``, of which
            what a killed run has left goes first.

    Raises:
        OSError: writing failed, be it for a full disk, or another process writes to `out`.
        ValueError: ``OUT.tmp`` is something else; see `check_unfinished`.
    """
    with only_writer(out.with_name(out.name + ".tmp")):
        if temporary is None:
            temporary = out.with_name(out.name + ".tmp")
            check_unfinished(out)
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        unfinished = temporary / UNFINISHED
        unfinished.touch()
        with _whole(out, temporary, hint):
            yield temporary
            unfinished.unlink()


def check_unfinished(out: Path) -> None:
    """Refuse an output beside which ``OUT.tmp`` is something else than a killed run has left.

    Raises:
        ValueError: that folder would have to be removed, and is not ours.
    """
    folder = out.with_name(out.name + ".tmp")
    ours = folder.is_dir() and not folder.is_symlink() and (folder / UNFINISHED).is_file()
    if os.path.lexists(folder) and not ours:
        raise ValueError(f"{folder} is in the way and is not ours; move it, or give another output")


@contextmanager
def _whole(out: Path, temporary: Path, hint: str) -> Iterator[None]:
    before = _catch_termination()
    try:
        yield
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
                follow_umask(file)
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
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _catch_termination() -> Any:
    """Have SIGTERM unwind like an error; the handler before, None if that cannot be done here."""
    if threading.current_thread() is not threading.main_thread():
        return None
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return None

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    return signal.signal(signal.SIGTERM, leave)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a file beside `path` to write, and renames it to `path` at the end.

    No reader sees half a file, and after an error nothing is left. The mode is what the user's
    umask asks for.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        follow_umask(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike[str], data: Any) -> Path:
    """Write strict JSON, whole or not at all.

    Raises:
        ValueError: a number that JSON cannot hold.
    """
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    # Lists of numbers (tokens, shapes) go on one line each, or a report would have a line a token.
    text = re.sub(r"\[\n[\s\d,]+\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")
    return Path(path)


def follow_umask(file: Path) -> None:
    """Give a file the mode that the user's umask asks for; it stays executable.

    safetensors makes files that nobody else may read, and copies have the mode of their source.
    """
    mask = os.umask(0)
    os.umask(mask)
    executable = file.stat().st_mode & 0o100
    file.chmod((0o777 if executable else 0o666) & ~mask)
