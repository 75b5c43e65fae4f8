"""transformers plugin: ``from_pretrained`` reads packed checkpoints.

``import tamp_modifier`` calls `install`, which imports nothing: the quantizer is registered with
transformers' own `register_quantizer` as soon as transformers has loaded its registry.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTRY = "transformers.quantizers.auto"
"""The module of transformers that holds its registry of quantizers."""


def install() -> None:
    """Register the quantizer now if transformers has its registry, else when it is imported."""
    if REGISTRY in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _WhenRegistryIsImported())


def _register() -> None:
    from tamp_modifier.transformers_plugin.quantizer import register

    register()


class _WhenRegistryIsImported(importlib.abc.MetaPathFinder):
    """Waits for one import, lets the usual finders do it, and registers afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(importlib.abc.Loader):
    """A loader that runs another one and then `_register`."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        # From here on the module is an ordinary one, with the loader that it would have had.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        _register()
