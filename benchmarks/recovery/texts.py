"""What SmolLM2 reads in training, and code, which it sees in the evaluation alone.

Training reads the sayings that calibration draws from, the Jargon File and the FAQ of Debian:
Debian's packages `fortunes`, `jargon-text` (public domain) and `debian-faq` (free to copy). Code is
modules of Python's standard library. Packages are downloaded and unpacked, nothing is installed.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.packages import SetUpError, unpack_debian
from benchmarks.quality.smollm2 import CALIBRATION_FILES, SEPARATOR, WINDOW

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
SHARED = 13
"""Tokens in a row that training must not share with evaluation."""


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


def code(folder: Path, tokenizer: Any) -> Tensor:
    """Return windows of code, int64 [modules, WINDOW]: the middle of each module.

    Raises:
        SetUpError: a module is too short.
    """
    rows = []
    for name in MODULES:
        ids = tokenizer((folder / f"{name}.py").read_text("utf-8"))["input_ids"]
        if len(ids) < WINDOW:
            raise SetUpError(f"{name}.py has {len(ids)} tokens, {WINDOW} are needed")
        start = (len(ids) - WINDOW) // 2
        rows.append(ids[start : start + WINDOW])
    return torch.tensor(rows)


def training(sayings: Path, prose: Path, tokenizer: Any, unseen: Tensor, seed: int) -> Tensor:
    """Return windows to train on, int64 [windows, WINDOW], in random order.

    Args:
        sayings: folder of the texts of `benchmarks.quality.smollm2`.
        prose: folder of `prepare`.
        tokenizer: of the model.
        unseen: int64 [windows, tokens] of the evaluation; windows that share `SHARED` tokens in a
            row with one of them are left out.
        seed: of the order.
    """
    order = random.Random(f"recovery/{seed}")
    forbidden = {run for row in unseen.tolist() for run in _runs(row)}
    rows: list[list[int]] = []
    for name in CALIBRATION_FILES:
        parts = (sayings / f"{name}.txt").read_text("utf-8").split(SEPARATOR)
        parts = [part.strip() for part in parts if part.strip()]
        order.shuffle(parts)
        rows += _windows(parts, tokenizer)
    for name in PROSE:
        rows += _windows(paragraphs((prose / f"{name}.txt").read_text("utf-8")), tokenizer)
    rows = [row for row in rows if forbidden.isdisjoint(_runs(row))]
    order.shuffle(rows)
    return torch.tensor(rows)


def paragraphs(text: str) -> list[str]:
    """Return paragraphs of prose, each on one line."""
    found = (" ".join(part.split()) for part in text.split("\n\n"))
    return [part for part in found if len(part) >= LEAST]


def _windows(parts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    ids = tokenizer("\n\n".join(parts))["input_ids"]
    return [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW + 1, WINDOW)]


def _runs(row: Sequence[int]) -> Iterable[tuple[int, ...]]:
    return (tuple(row[i : i + SHARED]) for i in range(len(row) - SHARED + 1))
