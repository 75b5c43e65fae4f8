"""The type that a model computes in: fp32 where the processor emulates the type of its weights."""

from __future__ import annotations

from typing import Any

import torch
from loguru import logger
from torch import nn

from tamp_modifier.checkpoint.memory import free_memory
from tamp_modifier.scores.refit import has_bfloat16

CPU = torch.device("cpu")
SPARE = 1.25
"""Memory that must be free, as a multiple of what fp32 takes more; activations need some, too."""


def emulates(dtype: torch.dtype, device: torch.device = CPU) -> bool:
    """Whether products of this type are slower on the device than those of fp32.

    On a CPU without instructions for bfloat16 they take ten times as long (measured on AVX2), and
    most that have them for bfloat16 have none for float16.
    """
    if device.type != "cpu":
        return False
    return dtype == torch.float16 or dtype == torch.bfloat16 and not has_bfloat16(device)


def calibration_device() -> torch.device:
    """Return the device that llm-compressor calibrates on."""
    from llmcompressor.utils.dev import get_main_device

    return get_main_device()


def types_of(model: nn.Module) -> dict[str, torch.dtype]:
    """Return the types of all parameters and buffers by name."""
    return {name: value.dtype for name, value in _named(model).items()}


def compute_faster(model: Any, device: torch.device = CPU) -> bool:
    """Convert a model to fp32 if the device emulates its type and memory allows; return whether.

    Says so where only memory is in the way. A quantized model stays as it is: its scales belong to
    the weights in their type.

    Args:
        model: of transformers, on the CPU.
        device: where it will compute.
    """
    if not emulates(model.dtype, device) or getattr(model.config, "quantization_config", None):
        return False
    more = sum(p.numel() * max(0, 4 - p.element_size()) for p in model.parameters())
    free = free_memory()
    if free is not None and free < SPARE * more:
        logger.warning(
            f"this processor emulates {str(model.dtype).removeprefix('torch.')}, which is slow; "
            f"fp32 would take {SPARE * more / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free"
        )
        return False
    model.float()
    return True


@torch.no_grad()
def restore_types(model: nn.Module, types: dict[str, torch.dtype]) -> None:
    """Round parameters and buffers to the types that they had; zeros stay zero.

    Args:
        model: converted in place; what is not in `types` keeps its type.
        types: of `types_of`.
    """
    for name, value in _named(model).items():
        wanted = types.get(name, value.dtype)
        if value.dtype != wanted:
            value.data = value.data.to(wanted)


def _named(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
