"""What a run may do on this machine, and what it takes there."""

from __future__ import annotations

import os

import torch

from tamp_modifier.scores.refit import has_bfloat16


def check_alone() -> None:
    """Refuse to run in one of several processes.

    Each would end by its own clock and compare when it likes, and then wait for the others.

    Raises:
        ValueError: a launcher has started several.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size not in ("", "1"):
        raise ValueError(
            f"recovery runs in one process, WORLD_SIZE is {size}; start it without torchrun or "
            "accelerate launch"
        )


def computes_in_bf16() -> bool:
    """Whether products of bfloat16 are fast here: on GPUs that have them, and on such CPUs."""
    return has_bfloat16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def peak_memory() -> int:
    """Return the largest memory so far in bytes, of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def static_memory(numel: int, trained: int, teacher: bool, bf16: bool) -> int:
    """Bytes that a run needs before any sample is read, at least.

    Args:
        numel: weights of the model.
        trained: weights that are trained: fp32, a gradient, two moments, and a copy for the probe.
        teacher: whether the dense model stays beside the student.
        bf16: type of what is not trained; fp32 otherwise.
    """
    size = 2 if bf16 else 4
    return (numel - trained) * size + trained * 20 + (numel * size if teacher else 0)
