"""Data-parallel calibration: what the processes that torchrun started tell each other.

Every process holds the whole model and calibrates with a share of the samples. What is decided is
decided from all of them: sums are added up over the processes, decisions are taken by all alike,
and each Linear is pruned by one process, which hands the weight to the others. With one process
nothing here communicates.

All functions are collective: every process has to call them, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from compressed_tensors.distributed import (
    as_broadcastable,
    greedy_bin_packing,
    is_distributed,
    is_source_process,
)
from compressed_tensors.offload import get_execution_device
from compressed_tensors.offload.cache import CPUCache
from torch import nn

from tamp_modifier.calibration.targets import Target
from tamp_modifier.statistics import Statistics

__all__ = [
    "agree",
    "all_of",
    "any_of",
    "assign_owners",
    "gather",
    "is_source_process",
    "partition",
    "rank",
    "share_weights",
    "sum_statistics",
]

T = TypeVar("T")
AnyStatistics = TypeVar("AnyStatistics", bound=Statistics)


def rank() -> int:
    """Return number of this process, 0 if there is only one."""
    return dist.get_rank() if is_distributed() else 0


def ranks() -> int:
    """Return number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def partition(samples: Sequence[T]) -> list[T]:
    """Return this process's share of the calibration samples: neighbours, as in llm-compressor.

    In the order of the processes the shares are the samples again, so that one process with all of
    them and many with a share each see the same order.

    Args:
        samples: all samples, the same in every process.

    Returns:
        Neighbouring samples; all of them without `torch.distributed`.

    Raises:
        ValueError: fewer samples than processes.
    """
    if len(samples) < ranks():
        raise ValueError(f"{len(samples)} calibration samples cannot feed {ranks()} processes")
    first, last = (len(samples) * number // ranks() for number in (rank(), rank() + 1))
    return list(samples[first:last])


def gather(value: T) -> list[T]:
    """Return the value of every process, in their order. It is pickled."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * ranks()
    dist.all_gather_object(values, value)
    return values


def any_of(names: Iterable[str]) -> set[str]:
    """Names that at least one process gives."""
    return set().union(*gather(set(names)))


def all_of(names: Iterable[str]) -> set[str]:
    """Names that every process gives."""
    return set.intersection(*gather(set(names)))


def agree(action: Callable[[], T]) -> T:
    """Run what may fail in one process only: all fail if one does, and none waits forever.

    Raises:
        Exception: what the action raised; in the other processes a RuntimeError that quotes it.
    """
    try:
        result = action()
    except Exception as error:
        gather(f"{type(error).__name__}: {error}")
        raise
    for number, message in enumerate(gather("")):
        if message:
            raise RuntimeError(f"process {number} failed: {message}")
    return result


def assign_owners(targets: Sequence[Target]) -> dict[str, int]:
    """Which process prunes which Linear, shared out by the number of weights."""
    sizes = {t.name: t.module.in_features * t.module.out_features for t in targets}
    return greedy_bin_packing(list(sizes), ranks(), lambda name: sizes[name])[2]


def sum_statistics(
    targets: Sequence[Target],
    local: Mapping[str, AnyStatistics],
    make: Callable[[int], AnyStatistics],
    owners: Mapping[str, int] | None = None,
) -> dict[str, AnyStatistics]:
    """Add up the statistics of all processes.

    Row scalars are sums of fp32 numbers in fp64, exact unless the activations of one feature span
    more than nine decades, and so the same in any order of the samples. Hessians are fp32 and
    agree with those of one process to rounding.

    Args:
        targets: their Linears.
        local: the statistics of this process; Linears that it has not seen may be missing.
        make: empty statistics for a number of input features.
        owners: the process that needs the sum, by Linear; by default all of them.

    Returns:
        The sums that this process needs.
    """
    if not is_distributed():
        return {t.name: local[t.name] for t in targets if t.name in local}
    counts = gather({name: statistics.tokens for name, statistics in local.items()})
    found: dict[str, AnyStatistics] = {}
    for target in targets:
        statistics = local.get(target.name) or make(target.module.in_features)
        device = get_execution_device(target.module)
        owner = None if owners is None else owners[target.name]
        for sums in statistics.sums(device):
            if owner is None:
                dist.all_reduce(sums)
            else:
                dist.reduce(sums, dst=owner)
        if owner in (None, rank()):
            statistics.tokens = sum(count.get(target.name, 0) for count in counts)
            found[target.name] = statistics
    return found


def share_weights(targets: Sequence[Target], owners: Mapping[str, int]) -> None:
    """Hand the weights that their owners changed to the other processes."""
    if not is_distributed():
        return
    dist.barrier()  # what owners wrote to shared memory and disk is there
    for target in targets:
        if not _is_shared(target.module):
            weight = as_broadcastable(target.module.weight.data)
            dist.broadcast(weight, src=owners[target.name])
    dist.barrier()


def _is_shared(module: nn.Module) -> bool:
    """Whether all processes compute with the very same memory."""
    device = get_execution_device(module)
    return isinstance(module._parameters, CPUCache) and torch.device(device).type == "cpu"


def check_shares(inputs: Collection[str], digest: str) -> bool:
    """Compare the calibration batches of the processes.

    Args:
        inputs: names of all model inputs in this process's batches.
        digest: tells batches of different content apart.

    Returns:
        Whether no two processes have the same batches.

    Raises:
        ValueError: a model input that only some processes have; their passes would go through
            different parts of the model, and wait for each other forever.
    """
    everywhere, anywhere = all_of(inputs), any_of(inputs)
    if everywhere != anywhere:
        raise ValueError(
            f"only some processes have calibration samples with {sorted(anywhere - everywhere)}; "
            "order the samples so that every process gets some of each kind"
        )
    digests = gather(digest)
    return len(set(digests)) == len(digests)
