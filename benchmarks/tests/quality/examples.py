"""A small model and cells that nobody measured, for tests."""

from __future__ import annotations

from typing import Any

from benchmarks.quality.cells import Cell, TaskItems
from benchmarks.quality.models import BoxModel


class SmallBox(BoxModel):
    """The demo model with two samples and six questions a task."""

    samples = 2
    per_task = 6
    loads = 0

    def load(self) -> Any:
        SmallBox.loads += 1
        return super().load()


ITEMS: dict[str, Any] = {"right": [1], "of": [1], "nll": [0], "group": [], "chance": 0.5}


def example(method: str = "wanda", setting: str = "50", seed: int = 0, **changed: Any) -> Cell:
    """A cell that nobody measured."""
    shift = sum(map(ord, method)) % 5
    tasks = {
        name: TaskItems(
            [1, 1, 0, 1], [1] * 4, [10 + shift, 20 + seed, 900 + 9 * shift, 5], [], 0.125
        )
        for name in ("colour", "count")
    }
    fields: dict[str, Any] = {
        "model": "box",
        "method": method,
        "setting": setting,
        "seed": seed,
        "identity": "abc",
        "samples": 2,
        "recipe": {"modifier": "TAMPModifier"},
        "reached": 0.5,
        "cpu_seconds": 1.5,
        "machine": "a processor",
        "date": "2026-01-01",
        "versions": {"torch": "2"},
        "code": "",
        "tasks": tasks,
    }
    return Cell(**{**fields, **changed})
