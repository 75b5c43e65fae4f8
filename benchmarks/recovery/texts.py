"""What SmolLM2 reads in training: the sayings that calibration draws from, and prose."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.smollm2 import CALIBRATION_FILES, SEPARATOR, WINDOW
from benchmarks.quality.texts import PROSE, paragraphs

SHARED = 13
"""Tokens in a row that training must not share with evaluation."""


def training(sayings: Path, prose: Path, tokenizer: Any, unseen: Tensor, seed: int) -> Tensor:
    """Return windows to train on, int64 [windows, WINDOW], in random order.

    Args:
        sayings: folder of the texts of `benchmarks.quality.smollm2`.
        prose: folder of `quality.texts.prepare`.
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


def _windows(parts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    ids = tokenizer("\n\n".join(parts))["input_ids"]
    return [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW + 1, WINDOW)]


def _runs(row: Sequence[int]) -> Iterable[tuple[int, ...]]:
    return (tuple(row[i : i + SHARED]) for i in range(len(row) - SHARED + 1))
