"""Packed shards on their way through vLLM's own loaders, without an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.model_executor.parameter import ModelWeightParameter

from tamp_modifier import sparse
from tamp_modifier.vllm_plugin.loading import DeferredWeight
from tamp_modifier.vllm_plugin.weights import PackedTensor

COLUMNS = 72


class Layer(torch.nn.Module):
    """A fused Linear whose parts vLLM's own parameter puts below each other."""

    def __init__(self, rows: list[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.rows = rows
        data = torch.empty(sum(rows), COLUMNS, dtype=dtype)
        self.weight = ModelWeightParameter(
            data=data, input_dim=1, output_dim=0, weight_loader=self.load
        )

    def load(self, param: Any, loaded_weight: Tensor, shard: int) -> None:
        """As `MergedColumnParallelLinear.weight_loader_v2` does."""
        param.load_merged_column_weight(
            loaded_weight=loaded_weight,
            shard_id=shard,
            shard_offset=sum(self.rows[:shard]),
            shard_size=self.rows[shard],
            tp_rank=0,
        )


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters of vLLM ask for their rank."""
    module = "vllm.model_executor.parameter"
    monkeypatch.setattr(f"{module}.get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(f"{module}.get_tensor_model_parallel_world_size", lambda: 1)


def weights(rows: list[int], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    torch.manual_seed(0)
    return [(torch.randn(n, COLUMNS) * 9).relu().to(dtype) for n in rows]


def loaded(
    rows: list[int],
    order: list[int],
    wrap: Callable[[int, Tensor], Tensor],
    dtype: torch.dtype = torch.bfloat16,
) -> Any:
    """What a fused Linear gets of its parts."""
    layer, found = Layer(rows, dtype), []
    DeferredWeight(layer, "a", found.append)
    parts = weights(rows, dtype)
    for shard in order:
        assert not found
        layer.weight.weight_loader(layer.weight, wrap(shard, parts[shard]), shard)
    (weight,) = found
    return weight


def packed(shard: int, weight: Tensor) -> Tensor:
    return PackedTensor(sparse.pack(weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("rows", [[8], [8, 4, 4], [12, 7]])
def test_whole_packed_parts_never_become_dense(
    rows: list[int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackedTensor, "dense", None)
    weight = loaded(rows, list(reversed(range(len(rows)))), packed, dtype)
    expected = sparse.pack(torch.cat(weights(rows, dtype)))
    assert isinstance(weight, sparse.PackedWeight) and weight.shape == expected.shape
    assert torch.equal(weight.mask, expected.mask) and torch.equal(weight.values, expected.values)


@pytest.mark.parametrize("rows", [[6, 8], [8, 6, 4]])
@pytest.mark.parametrize("back", [False, True])
def test_parts_that_begin_within_a_block_are_unpacked(rows: list[int], back: bool) -> None:
    order = list(range(len(rows)))
    weight = loaded(rows, order[::-1] if back else order, packed)
    assert torch.equal(weight, torch.cat(weights(rows)))


@pytest.mark.parametrize("dense", [0, 1, 2])
def test_dense_and_packed_parts_mix(dense: int) -> None:
    def wrap(shard: int, weight: Tensor) -> Tensor:
        return weight if shard == dense else packed(shard, weight)

    weight = loaded([8, 4, 4], [1, 0, 2], wrap)
    assert torch.equal(weight, torch.cat(weights([8, 4, 4])))


def test_a_packed_weight_of_another_dtype_is_converted() -> None:
    def wrap(shard: int, weight: Tensor) -> Tensor:
        return packed(shard, weight.half())

    assert torch.equal(loaded([8, 4], [0, 1], wrap), torch.cat(weights([8, 4])))


def test_a_slice_is_dense() -> None:
    def wrap(shard: int, weight: Tensor) -> Tensor:
        doubled = PackedTensor(sparse.pack(torch.cat([weight, weight])))
        assert doubled.shape == (2 * weight.shape[0], COLUMNS) and doubled.dtype == weight.dtype
        return doubled.narrow(0, weight.shape[0], weight.shape[0])

    assert torch.equal(loaded([8, 4], [0, 1], wrap), torch.cat(weights([8, 4])))
