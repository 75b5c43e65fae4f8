"""Hold a Linear's weight on the meta device until the checkpoint brings it, then hand it over.

vLLM allocates the weights of the whole model first and fills them afterwards. Here the memory of a
weight exists only between its first and its last shard, so that loading peaks at the sparse model
plus the layers being filled. Packed shards that come whole are put together packed: of them no
dense weight exists at all.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.model_loader.reload.meta import (
    get_numel_loaded,
    materialize_meta_tensor,
    to_meta_tensor,
)

from tamp_modifier import sparse
from tamp_modifier.sparse.format import BLOCK_ROWS
from tamp_modifier.vllm_plugin.weights import PackedTensor

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


class Copies(TorchDispatchMode):
    """Note what is copied where, as (target, source)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let everything happen."""
        if func is torch.ops.aten.copy_.default:
            self.found.append((args[0], args[1]))
        return func(*args, **(kwargs or {}))


class DeferredWeight:
    """Replace a weight of `layer` by a meta tensor and collect its shards.

    Args:
        layer: a vLLM layer whose weight has just been created.
        name: the layer's name, for messages.
        when_full: called once with the whole weight ``[out, in]`` of this rank; packed if every
            shard came so and could stay so.
        attribute: the weight's name in the layer.
    """

    def __init__(
        self,
        layer: Any,
        name: str,
        when_full: Callable[[Tensor | sparse.PackedWeight], None],
        attribute: str = "weight",
    ) -> None:
        weight = getattr(layer, attribute)
        self.name = name
        self.attribute = attribute
        self.loaded = 0
        self.total = weight.numel()
        self.converted = False  # whether the checkpoint has another dtype
        self.device = weight.device
        self.dense: Tensor | None = None
        self.packed: dict[int, sparse.PackedWeight] = {}  # by their first row
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
        """vLLM's weight loader: takes one shard.

        Raises:
            ValueError: a dtype that cannot be served, or a second load of the same weight.
        """
        if self.complete:
            raise ValueError(
                f"{self.name}: the weight is already packed; reloading the weights of a sparse "
                "model is not supported, start a new engine"
            )
        self._check_dtype(loaded_weight.dtype)
        row = None
        if isinstance(loaded_weight, PackedTensor):
            row = self._whole_at(loaded_weight, args, kwargs)
            if row is None:
                loaded_weight = loaded_weight.dense()
            else:
                self.packed[row] = loaded_weight.packed
                self.loaded += loaded_weight.numel()
        if row is None:
            self.loaded += self._copy(loaded_weight, args, kwargs)
        if self.complete:
            self._finish()

    def _check_dtype(self, dtype: torch.dtype) -> None:
        compressed = self._meta.dtype not in WEIGHT_DTYPES
        if dtype != self._meta.dtype and (compressed or dtype not in WEIGHT_DTYPES):
            allowed = (self._meta.dtype,) if compressed else WEIGHT_DTYPES
            raise ValueError(
                f"{self.name}: the checkpoint's weight has dtype {short(dtype)}, "
                f"allowed are {', '.join(map(short, allowed))}"
            )
        self.converted |= dtype != self._meta.dtype

    def _bind(
        self, target: Tensor, loaded_weight: Tensor, args: Any, kwargs: Any
    ) -> inspect.BoundArguments:
        bound = self._signature.bind(target, loaded_weight, *args, **kwargs)
        bound.apply_defaults()
        return bound

    def _whole_at(self, shard: PackedTensor, args: Any, kwargs: Any) -> int | None:
        """Row that vLLM's loader copies a shard to; None where it does anything but that.

        The loader tells by itself, on the meta device, where nothing is copied.
        """
        if (shard.dtype, shard.dim()) != (self._meta.dtype, self._meta.dim()):
            return None
        if self.device.type != "cpu":
            return None
        source = torch.empty(shard.shape, dtype=shard.dtype, device="meta")
        bound = self._bind(self._meta, source, args, kwargs)
        with torch.no_grad(), Copies() as copies:
            self._loader(*bound.args, **bound.kwargs)
        if len(copies.found) != 1:
            return None
        target, copied = copies.found[0]
        row, column = divmod(target.storage_offset(), self._meta.shape[1])
        whole = copied.shape == source.shape == target.shape
        rows_of_weight = target.stride() == self._meta.stride() and column == 0
        return row if whole and rows_of_weight and row % BLOCK_ROWS == 0 else None

    def _copy(self, shard: Tensor, args: Any, kwargs: Any) -> int:
        """Copy a dense shard to its place; return the number of weights that came."""
        if self.dense is None:
            with self.device:
                self.dense = materialize_meta_tensor(self._meta)
        bound = self._bind(self.dense, shard, args, kwargs)
        with torch.no_grad():
            loaded, _ = get_numel_loaded(self._loader, bound)
        return loaded

    def _finish(self) -> None:
        parts = sorted(self.packed.items())
        self.packed = {}
        if self.dense is None:
            self._when_full(sparse.concatenate([part for _, part in parts]))
            return
        dense, self.dense = self.dense.data, None
        while parts:
            row, part = parts.pop()
            dense[row : row + part.shape[0]] = sparse.unpack(part)
        self._when_full(dense)

    def restore(self, layer: Any, weight: Tensor) -> None:
        """Give `layer` back a dense weight, as the parameter that vLLM had made for it."""
        weight.__class__ = type(self._meta)
        weight.__dict__.update(self._meta.__dict__)
        delattr(layer, self.attribute)
        layer.register_parameter(self.attribute, weight)

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


def short(dtype: torch.dtype) -> str:
    """Return name of a dtype without "torch."."""
    return str(dtype).removeprefix("torch.")
