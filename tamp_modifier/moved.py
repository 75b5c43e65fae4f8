"""Modules of 0.1 under their old names; goes in 0.3.

Each is an empty module that is there as soon as the package is imported. What is asked of it comes
from the rooms that its contents are in now, with a DeprecationWarning that names the room.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

ROOMS: dict[str, tuple[str, ...]] = {
    "answers": ("workflows.evaluate",),
    "attention": ("calibration.attention",),
    "batches": ("calibration.batches", "calibration.loader"),
    "budget": ("allocation.budget", "messages"),
    "collect": ("calibration.collect",),
    "columns": ("pruning.columns",),
    "company": ("pruning.checks",),
    "dense_pass": ("calibration.dense_pass",),
    "distributed": ("calibration.distributed",),
    "drift": ("selection.drift",),
    "dry_run": ("workflows.plan",),
    "estimate": ("workflows.estimate", "workflows.shapes", "messages"),
    "figures": ("report.figures",),
    "folders": ("files",),
    "frozen": ("zeros.freeze",),
    "guard": ("zeros.keep",),
    "job": ("workflows.prune",),
    "layerwise": ("allocation.layerwise",),
    "measure": ("calibration.measurement",),
    "models": ("workflows.models",),
    "observer": ("calibration.observer", "calibration.activations"),
    "patterns": ("allocation.patterns",),
    "preserve": ("zeros.remembered",),
    "presets": ("pruning.presets",),
    "pruner": ("pruning.pruner",),
    "recording": ("pruning.recording",),
    "refit": ("scores.refit",),
    "report_page": ("report.page",),
    "report_reading": ("report.model",),
    "resume": ("pruning.resume",),
    "rules": ("allocation.base",),
    "run": ("pruning.run",),
    "saving": ("upstream.saving",),
    "sparse.checkpoint": ("checkpoint.pack",),
    "sparse.files": ("checkpoint.files", "messages"),
    "sparse.inspection": ("checkpoint.inspection",),
    "sparse.safetensors_writer": ("checkpoint.writer",),
    "sparsegpt": ("scores.sparsegpt",),
    "steps": ("allocation.nearest",),
    "targets": ("calibration.targets", "pruning.checks"),
    "tracing": ("upstream.tracing",),
    "vllm_plugin.marker": ("checkpoint.marker",),
}
"""Old name below ``tamp_modifier`` -> where to look, in order."""


class _Moved(ModuleType):
    """A module that is elsewhere now."""

    def __init__(self, name: str, rooms: tuple[str, ...]) -> None:
        super().__init__(name, f"Moved to {', '.join(rooms)}.")
        self.__path__: list[str] = []
        self._rooms = rooms

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for room in self._rooms:
                module = importlib.import_module(f"tamp_modifier.{room}")
                if hasattr(module, name):
                    warnings.warn(
                        f"{self.__name__}.{name} is now in {module.__name__}; the old name goes "
                        "in 0.3",
                        DeprecationWarning,
                        stacklevel=2,
                    )
                    return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def install(package: ModuleType) -> None:
    """Put the old modules where an import finds them; nothing is imported until it is asked for."""
    for old, rooms in ROOMS.items():
        name = f"{package.__name__}.{old}"
        module = sys.modules.setdefault(name, _Moved(name, rooms))
        if "." not in old:
            setattr(package, old, module)
