"""vLLM's INT4 kernel for CPUs, which its build for processors without AVX-512 does not have."""

from __future__ import annotations

import functools
from typing import Any

import torch

KERNEL = "cpu_gemm_wna16"


@functools.cache
def vllm_has_int4() -> bool:
    """Whether vLLM serves W4A16 on this processor."""
    import vllm._custom_ops  # noqa: F401 - loads the kernels

    return hasattr(torch.ops._C, KERNEL)


def lacks_kernel(answer: dict[str, Any]) -> bool:
    """Whether an engine has failed for want of the kernel."""
    return f"has no attribute '{KERNEL}'" in answer.get("error", "")
