"""Lets torchvision's CUDA wheel be imported next to a CPU build of torch.

Only for the test environment: `make .venv-serve` copies this file into it, with a `.pth` file that
imports it when Python starts. The only torchvision wheel for torch 2.13 on PyPI is a CUDA build
whose native library does not load on CPU, so two operator schemas that the Python part refers to
are missing. vLLM imports torchvision (for image processors) also in processes of its own, where no
test could help; hence a hook at interpreter start that costs nothing until torchvision is imported.
The operators themselves stay without an implementation: nothing in the tests calls them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _DefineSchemasFirst(importlib.abc.MetaPathFinder):
    """Defines the schemas when torchvision is first looked up, then steps aside."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            # Kept alive on the torch module: a collected Library takes its schemas with it.
            library = torch.library.Library("torchvision", "FRAGMENT")
            for schema in SCHEMAS:
                library.define(schema)
            torch.library._torchvision_schemas = library  # type: ignore[attr-defined]
        return None


sys.meta_path.insert(0, _DefineSchemasFirst())
