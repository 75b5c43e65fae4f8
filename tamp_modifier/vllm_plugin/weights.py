"""Bring a packed checkpoint to vLLM's loaders, one Linear at a time.

vLLM passes the names and tensors of a checkpoint through a `WeightsMapper` that it asks the
quantization config for. There the tensors of a packed weight become one `PackedTensor`, which looks
like the dense weight. `loading.DeferredWeight` takes it as it is where it needs no slicing. Whoever
else computes with it gets the dense weight, so that fused Linears, tensor parallelism and every
model of vLLM work as with a dense checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from vllm.model_executor.models.utils import WeightsMapper

from tamp_modifier import sparse
from tamp_modifier.checkpoint import int4
from tamp_modifier.checkpoint.integrity import check_checksum, stored_checksum
from tamp_modifier.sparse.int4_serialization import from_tensors_int4


class PackedTensor(Tensor):
    """A packed weight in the place of the dense one: its shape, its dtype, and its values if asked.

    Every operation of torch on it works on the dense weight, which is unpacked anew each time.
    """

    packed: sparse.PackedWeight

    @staticmethod
    def __new__(cls, packed: sparse.PackedWeight) -> PackedTensor:
        """Wrap a packed weight."""
        tensor = Tensor._make_wrapper_subclass(
            cls, packed.shape, dtype=packed.dtype, device=packed.device
        )
        tensor.packed = packed
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call `func` with the dense weights."""
        args, kwargs = tree_map_only(cls, cls.dense, (args, kwargs or {}))
        return func(*args, **kwargs)

    def dense(self) -> Tensor:
        """Return the dense weight."""
        return sparse.unpack(self.packed)


def join_stream(
    weights: Iterable[tuple[str, Tensor]], checksums: Mapping[str, int] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Replace the tensors of each packed weight by a `PackedTensor`; others pass through.

    Args:
        weights: names on disk and tensors.
        checksums: of the tensors, by name, that are compared; see `checkpoint.integrity`.

    Raises:
        ValueError: a weight is damaged or incomplete; the message names it.
    """
    listed = checksums or {}
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights:
        suffix = next((s for s in sparse.PACKED_SUFFIXES if name.endswith(s)), None)
        if suffix is None:
            if name in listed:
                check_checksum(name, stored_checksum({name: tensor}, name), listed[name])
            yield name, tensor
            continue
        dense_name = name.removesuffix(suffix)
        parts = waiting.setdefault(dense_name, {})
        parts[name] = tensor
        if len(parts) == len(sparse.PACKED_SUFFIXES):
            del waiting[dense_name]
            if dense_name in listed:
                check_checksum(dense_name, stored_checksum(parts, dense_name), listed[dense_name])
            if dense_name.endswith(int4.WEIGHT):  # as small as packed ones while they are loaded
                yield dense_name, int4.unpack_words(from_tensors_int4(parts, dense_name))
            else:
                yield dense_name, PackedTensor(sparse.from_tensors(parts, dense_name))
    if waiting:
        name, parts = next(iter(waiting.items()))
        lacking = [s for s in sparse.PACKED_SUFFIXES if name + s not in parts]
        raise ValueError(f"{name}: the packed checkpoint lacks {name + lacking[0]}")


@dataclasses.dataclass
class Checks:
    """What is compared while the tensors of a checkpoint are on their way.

    vLLM maps the tensors of a part of the model again, by the names that they have within it. Only
    the outermost stream has the names on disk.

    Attributes:
        checksums: by name on disk; empty if there are none.
        outermost: the stream of the whole checkpoint, while it flows.
    """

    checksums: Mapping[str, int] = dataclasses.field(default_factory=dict)
    outermost: object = None

    def join(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """`join_stream`, with the checksums if it is the outermost stream."""
        if self.outermost is not None:
            yield from join_stream(weights)
            return
        self.outermost = weights
        try:
            yield from join_stream(weights, self.checksums)
        finally:
            self.outermost = None


class JoiningMapper(WeightsMapper):
    """A `WeightsMapper` that joins packed tensors, and compares checksums, before it renames.

    vLLM joins the mappers of the model and of the quantization config with ``|``; Python asks a
    subclass first, so what comes out is a `JoiningMapper` again, with all the renamings.
    """

    checks = Checks()

    def _with(self, mapper: WeightsMapper) -> JoiningMapper:
        fields = dataclasses.fields(WeightsMapper)
        joined = type(self)(**{field.name: getattr(mapper, field.name) for field in fields})
        joined.checks = self.checks
        return joined

    def __or__(self, other: WeightsMapper) -> JoiningMapper:
        return self._with(WeightsMapper.__or__(self, other))

    def __ror__(self, other: WeightsMapper) -> JoiningMapper:
        return self._with(WeightsMapper.__or__(other, self))

    def apply(self, weights: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
        """Join, then rename."""
        return super().apply(self.checks.join(weights))
