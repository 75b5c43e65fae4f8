"""Holds a Linear's weight on the meta device until the checkpoint brings it, then hands it over.

vLLM allocates the weights of the whole model first and fills them afterwards. Here the memory of a
weight exists only between its first and its last shard, so that loading peaks at the sparse model
plus the layers being filled.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.model_loader.reload.meta import (
    get_numel_loaded,
    materialize_meta_tensor,
    to_meta_tensor,
)

WEIGHT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _find_malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # not glibc
        return None


_malloc_trim = _find_malloc_trim()


def release_memory() -> None:
    """Give freed memory back to the system; glibc would keep the pieces of each dense layer."""
    if _malloc_trim is not None:
        _malloc_trim(0)


class DeferredWeight:
    """Replaces a weight of `layer` by a meta tensor and collects its shards.

    Args:
        layer: a vLLM layer whose weight has just been created.
        name: the layer's name, for messages.
        when_full: called once with the whole weight of this rank.
        attribute: the weight's name in the layer.
    """

    def __init__(
        self,
        layer: Any,
        name: str,
        when_full: Callable[[Tensor], None],
        attribute: str = "weight",
    ) -> None:
        weight = getattr(layer, attribute)
        self.name = name
        self.loaded = 0
        self.total = weight.numel()
        self.converted = False  # whether the checkpoint has another dtype
        self.device = weight.device
        self.dense: Tensor | None = None
        self._loader: Callable[..., Any] = weight.weight_loader
        self._signature = inspect.signature(self._loader)
        self._when_full = when_full
        delattr(layer, attribute)
        self._meta: Any = to_meta_tensor(weight)
        self._meta.weight_loader = self.load
        layer.register_parameter(attribute, self._meta)

    @property
    def complete(self) -> bool:
        """Whether every weight has come."""
        return self.loaded >= self.total

    def load(self, param: Tensor, loaded_weight: Tensor, *args: Any, **kwargs: Any) -> None:
        """vLLM's weight loader: copies one shard to its place.

        Raises:
            ValueError: a dtype that cannot be served, or a second load of the same weight.
        """
        if self.complete:
            raise ValueError(
                f"{self.name}: the weight is already packed; reloading the weights of a sparse "
                "model is not supported, start a new engine"
            )
        compressed = self._meta.dtype not in WEIGHT_DTYPES
        if loaded_weight.dtype != self._meta.dtype and (
            compressed or loaded_weight.dtype not in WEIGHT_DTYPES
        ):
            allowed = (self._meta.dtype,) if compressed else WEIGHT_DTYPES
            raise ValueError(
                f"{self.name}: the checkpoint's weight has dtype {_short(loaded_weight.dtype)}, "
                f"allowed are {', '.join(map(_short, allowed))}"
            )
        self.converted |= loaded_weight.dtype != self._meta.dtype
        if self.dense is None:
            with self.device:
                self.dense = materialize_meta_tensor(self._meta)
        bound = self._signature.bind(self.dense, loaded_weight, *args, **kwargs)
        bound.apply_defaults()
        with torch.no_grad():
            loaded, _ = get_numel_loaded(self._loader, bound)
        self.loaded += loaded
        if self.complete:
            dense, self.dense = self.dense, None
            self._when_full(dense.data)

    def require_complete(self) -> None:
        """Raise when a part of the weight never came.

        Raises:
            ValueError: tensors of this Linear are missing in the checkpoint.
        """
        if not self.complete:
            raise ValueError(
                f"{self.name}: the checkpoint brought {self.loaded} of {self.total} weights; "
                "a tensor of this Linear is missing"
            )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
