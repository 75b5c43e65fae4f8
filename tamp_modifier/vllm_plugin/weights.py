"""Unpacks a packed checkpoint while vLLM streams it, one Linear at a time.

vLLM passes the names and tensors of a checkpoint through a `WeightsMapper` that it asks the
quantization config for. Unpacking there, before vLLM fuses, slices and distributes the weights,
makes fused Linears, tensor parallelism and every model of vLLM work as with a dense checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from torch import Tensor
from vllm.model_executor.models.utils import WeightsMapper

from tamp_modifier import sparse


def unpack_stream(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Replace the tensors of each packed weight by the dense weight; others pass through.

    Raises:
        ValueError: a packed weight is damaged or incomplete; the message names it.
    """
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights:
        suffix = next((s for s in sparse.PACKED_SUFFIXES if name.endswith(s)), None)
        if suffix is None:
            yield name, tensor
            continue
        dense_name = name.removesuffix(suffix)
        parts = waiting.setdefault(dense_name, {})
        parts[name] = tensor
        if len(parts) == len(sparse.PACKED_SUFFIXES):
            del waiting[dense_name]
            yield dense_name, sparse.unpack(sparse.from_tensors(parts, dense_name))
    if waiting:
        name, parts = next(iter(waiting.items()))
        lacking = [s for s in sparse.PACKED_SUFFIXES if name + s not in parts]
        raise ValueError(f"{name}: the packed checkpoint lacks {name + lacking[0]}")


class UnpackingMapper(WeightsMapper):
    """A `WeightsMapper` that unpacks before it renames.

    vLLM joins the mappers of the model and of the quantization config with ``|``; Python asks a
    subclass first, so what comes out is an `UnpackingMapper` again, with all the renamings.
    """

    @classmethod
    def _of(cls, mapper: WeightsMapper) -> UnpackingMapper:
        fields = dataclasses.fields(WeightsMapper)
        return cls(**{field.name: getattr(mapper, field.name) for field in fields})

    def __or__(self, other: WeightsMapper) -> UnpackingMapper:
        return self._of(WeightsMapper.__or__(self, other))

    def __ror__(self, other: WeightsMapper) -> UnpackingMapper:
        return self._of(WeightsMapper.__or__(other, self))

    def apply(self, weights: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
        """Unpack, then rename."""
        return super().apply(unpack_stream(weights))
