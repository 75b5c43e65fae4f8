"""The type that a model computes in: fp32 where the processor emulates the type of its weights."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from loguru import logger
from torch import nn

from tamp_modifier.checkpoint.memory import free_memory
from tamp_modifier.scores.refit import has_bfloat16

CPU = torch.device("cpu")
X86 = ("x86_64", "AMD64")
SPARE = 1.25
"""Memory that must be free, as a multiple of what fp32 takes more; activations need some, too."""


@dataclass(frozen=True)
class Types:
    """The types of a model.

    Attributes:
        model: that of the model as a whole, and of parameters without one of their own.
        tensors: of parameters and buffers by name.
        configs: that its config and each config inside it name, None where one names none.
    """

    model: torch.dtype
    tensors: dict[str, torch.dtype]
    configs: list[torch.dtype | None]


def emulates(dtype: torch.dtype, device: torch.device = CPU) -> bool:
    """Whether products of this type are slower on the device than those of fp32.

    On an x86 CPU without instructions for bfloat16 they take ten times as long (measured on AVX2),
    and most that have them for bfloat16 have none for float16.
    """
    if device.type != "cpu" or platform.machine() not in X86:
        return False
    return dtype == torch.float16 or dtype == torch.bfloat16 and not has_bfloat16(device)


def calibration_device() -> torch.device:
    """Return the device that llm-compressor calibrates on."""
    from llmcompressor.utils.dev import get_main_device

    return get_main_device()


def types_of(model: Any) -> Types:
    """Return the types of a model of transformers."""
    tensors = {name: value.dtype for name, value in _named(model)}
    return Types(model.dtype, tensors, [config.dtype for config in _configs(model)])


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
    for config in _configs(model):  # llm-compressor makes experts by it
        config.dtype = torch.float32
    return True


@torch.no_grad()
def restore_types(model: Any, types: Types) -> None:
    """Round parameters and buffers to the types that they had; zeros stay zero.

    Args:
        model: converted in place. Parameters that it did not have, such as those of experts that
            have Linears of their own now, get the type of the model; buffers keep theirs.
        types: of `types_of`.
    """
    parameters = dict(model.named_parameters())
    for name, value in _named(model):
        usual = types.model if name in parameters else value.dtype
        wanted = types.tensors.get(name, usual)
        if value.dtype != wanted:
            value.data = value.data.to(wanted)
    for config, dtype in zip(_configs(model), types.configs, strict=True):
        config.dtype = dtype


def _named(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _configs(model: Any) -> list[Any]:
    """Return the config of a model and those inside it."""
    inside = (
        getattr(model.config, name, None) for name in getattr(model.config, "sub_configs", {})
    )
    return [config for config in (model.config, *inside) if hasattr(config, "dtype")]
