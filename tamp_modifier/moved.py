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
    "collect_drift": ("calibration.collect_layer",),
    "columns": ("pruning.columns",),
    "company": ("pruning.checks",),
    "dense_pass": ("calibration.dense_pass",),
    "distributed": ("calibration.distributed",),
    "drift": ("selection.drift", "selection.base"),
    "dry_run": ("workflows.plan",),
    "estimate": ("workflows.estimate", "workflows.shapes", "messages"),
    "figures": ("report.figures",),
    "folders": ("files",),
    "frozen": ("zeros.freeze",),
    "guard": ("zeros.keep",),
    "job": ("workflows.prune", "workflows.samples"),
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
    "report_page": ("report.page", "report.samples"),
    "report_reading": ("report.model",),
    "resume": ("pruning.resume",),
    "rules": ("allocation.base",),
    "run": ("pruning.run",),
    "saving": ("upstream.saving",),
    "sparse.checkpoint": (
        "checkpoint.pack",
        "checkpoint.files",
        "checkpoint.served",
        "architectures",
    ),
    "sparse.files": ("checkpoint.files", "checkpoint.integrity", "messages"),
    "sparse.inspection": ("checkpoint.inspection", "checkpoint.served", "architectures"),
    "sparse.safetensors_writer": ("checkpoint.writer",),
    "sparsegpt": ("scores.sparsegpt", "scores.hessian", "scores.damping"),
    "steps": ("allocation.nearest",),
    "targets": ("calibration.targets", "pruning.checks"),
    "tracing": ("upstream.tracing",),
    "vllm_plugin.marker": ("checkpoint.marker", "checkpoint.integrity"),
}
"""Old name below ``tamp_modifier`` -> where to look, in order."""


PARTS: dict[str, tuple[str, ...]] = {
    "allocation": ("allocation.das", "allocation.layerwise", "allocation.budget"),
    "report": ("report.model", "report.table", "report.figures", "files", "pruning.checks"),
    "scores": ("scores.rowwise", "scores.sparsegpt"),
    "selection": ("selection.amia", "selection.by_modality", "selection.drift"),
}
"""Modules that are folders now -> where the rest of their names is."""


class _Moved(ModuleType):
    """A module that is elsewhere now."""

    def __init__(self, name: str, rooms: tuple[str, ...]) -> None:
        super().__init__(name, f"Moved to {', '.join(rooms)}.")
        self.__path__: list[str] = []
        self._rooms = rooms

    def __getattr__(self, name: str) -> Any:
        return look_up(self.__name__, self._rooms, name)


def look_up(module: str, rooms: tuple[str, ...], name: str) -> Any:
    """Return what a module of 0.1 had under a name, and warn where it is now.

    Raises:
        AttributeError: it never had such a name.
    """
    for room in rooms if not name.startswith("_") else ():
        found = importlib.import_module(f"tamp_modifier.{room}")
        if hasattr(found, name):
            warnings.warn(
                f"{module}.{name} is now in {found.__name__}; the old name goes in 0.3",
                DeprecationWarning,
                stacklevel=3,
            )
            return getattr(found, name)
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def install(package: ModuleType) -> None:
    """Put the old modules where an import finds them; nothing is imported until it is asked for."""
    for old, rooms in ROOMS.items():
        name = f"{package.__name__}.{old}"
        module = sys.modules.setdefault(name, _Moved(name, rooms))
        if "." not in old:
            setattr(package, old, module)
