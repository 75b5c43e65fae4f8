"""Time and peak memory of pruning a random LLaVA of a billion parameters on the card."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import calibration, scale

METHODS = ("Wanda", "TAMP", "best")
"""llm-compressor's Wanda, TAMP, and TAMP's preset "best"."""
LAYERS, SAMPLES = 20, 32


def _load(folder: Path, small: bool) -> tuple[Any, Any, Any]:
    """Model on the host, processor and calibration loader."""
    if small:
        return calibration.load("box", 2)
    from transformers import LlavaForConditionalGeneration

    from tamp_modifier.demo.processing import build_processor

    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    return model, build_processor(), scale.batches(SAMPLES)


def run(device: torch.device, small: bool) -> Iterator[dict[str, Any]]:
    """Prune with each method, and yield its time and memory.

    Args:
        device: on which llm-compressor calibrates.
        small: prune the demo model instead of a billion parameters.

    Yields:
        method, seconds, device_bytes (most that was allocated on the card), host_bytes (most that
        the process held), sparsity reached; `message` in their place where a method failed.
    """
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        model_folder = Path(folder) / "model"
        if not small:
            with device:  # random numbers for a billion weights take a CPU long
                scale.write_model(model_folder, LAYERS)
        for method in METHODS:
            result: dict[str, Any] = {"kind": "pruning", "method": method}
            try:
                yield result | _prune(model_folder, method, device, small)
            except Exception as error:  # the other methods are measured all the same
                message = f"{type(error).__name__}: {error}"
                yield result | {"passed": False, "message": message[-500:]}


def _prune(folder: Path, method: str, device: torch.device, small: bool) -> dict[str, Any]:
    from tamp_modifier.demo.run import sparsity_of

    model, processor, loader = _load(folder, small)
    calibration.reset_high_water()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    calibration.prune(model, processor, loader, method)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    sparsity = sparsity_of(model)
    return {
        "seconds": seconds,
        "device_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "host_bytes": calibration.high_water(),
        "sparsity": sparsity,
        "passed": abs(sparsity - calibration.SPARSITY) < 0.01,
    }
