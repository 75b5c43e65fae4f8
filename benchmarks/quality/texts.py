"""Prose and code for SmolLM2, of kinds that no calibration sample comes from.

The Jargon File and the FAQ of Debian are in Debian's packages `jargon-text` (public domain) and
`debian-faq` (free to copy), the code is modules of Python's standard library. Packages are
downloaded and unpacked, nothing is installed.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.packages import SetUpError, unpack_debian
from benchmarks.quality.smollm2 import WINDOW

FOLDER = "recovery"
"""Of these texts, beside the model; `benchmarks.recovery` trains on the prose."""
DEBS = ("jargon-text", "debian-faq", "libpython3.11-stdlib", "libpython3.11-minimal")
PROSE = {
    "jargon": "usr/share/doc/jargon-text/jargon.txt.gz",
    "debian-faq": "usr/share/doc/debian/FAQ/debian-faq.en.txt.gz",
}
MODULES = (
    "ast",
    "bisect",
    "calendar",
    "configparser",
    "csv",
    "difflib",
    "fractions",
    "heapq",
    "queue",
    "shlex",
    "textwrap",
    "zipfile",
)
"""A window is taken from the middle of each."""

LEAST = 80
"""Characters of a paragraph of prose; shorter ones are headings and lists."""


def prepare(folder: Path, say: Callable[[str], None] = print) -> None:
    """Put the texts into a folder, where they are not there yet.

    Raises:
        SetUpError: a package cannot be had.
    """
    if folder.is_dir():
        return
    say(f"fetching the Debian packages {', '.join(DEBS)}")
    work, part = folder.with_name("recovery.debian"), folder.with_name("recovery.part")
    root = unpack_debian(DEBS, work)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, path in PROSE.items():
        with gzip.open(root / path, "rb") as file:
            (part / f"{name}.txt").write_bytes(file.read())
    for name in MODULES:
        shutil.copy(root / "usr/lib/python3.11" / f"{name}.py", part / f"{name}.py")
    part.rename(folder)
    shutil.rmtree(work)


def digest(paths: Iterable[Path]) -> str:
    """Hash of some files: Debian's releases may have other ones."""
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]


def code(folder: Path, tokenizer: Any, modules: Sequence[str] = MODULES) -> Tensor:
    """Return windows of code, int64 [modules, WINDOW]: the middle of each module.

    Raises:
        SetUpError: a module is too short.
    """
    rows = []
    for name in modules:
        ids = tokenizer((folder / f"{name}.py").read_text("utf-8"))["input_ids"]
        if len(ids) < WINDOW:
            raise SetUpError(f"{name}.py has {len(ids)} tokens, {WINDOW} are needed")
        start = (len(ids) - WINDOW) // 2
        rows.append(ids[start : start + WINDOW])
    return torch.tensor(rows)


def prose(folder: Path, name: str, tokenizer: Any, count: int, width: int) -> Tensor:
    """Return windows from the middle of a text, int64 [count, width].

    Args:
        folder: of `prepare`.
        name: of the text, see `PROSE`.
        tokenizer: of the model.
        count: number of windows.
        width: tokens of each.

    Raises:
        SetUpError: the text is too short.
    """
    text = "\n\n".join(paragraphs((folder / f"{name}.txt").read_text("utf-8")))
    ids = tokenizer(text)["input_ids"]
    if len(ids) < count * width:
        raise SetUpError(f"{name} has {len(ids)} tokens, {count * width} are needed")
    start = (len(ids) - count * width) // 2
    return torch.tensor(ids[start : start + count * width]).view(count, width)


def paragraphs(text: str) -> list[str]:
    """Return paragraphs of prose, each on one line."""
    found = (" ".join(part.split()) for part in text.split("\n\n"))
    return [part for part in found if len(part) >= LEAST]
