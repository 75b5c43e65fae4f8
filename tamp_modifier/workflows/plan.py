"""What ``tamp prune`` would do and take, from the samples and the shapes of the model alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from tamp_modifier.calibration.targets import Target
from tamp_modifier.messages import duration, size_text
from tamp_modifier.pruning.decide import allocate_before
from tamp_modifier.pruning.settings import Settings
from tamp_modifier.report.model import linear_type
from tamp_modifier.tokens import MODALITY_NAMES, token_types
from tamp_modifier.upstream.experts import make_linear
from tamp_modifier.workflows.estimate import Machine, estimate
from tamp_modifier.workflows.models import empty_model
from tamp_modifier.workflows.precision import calibration_device, emulates
from tamp_modifier.workflows.recipes import only_prunes, ours
from tamp_modifier.workflows.samples import Prepared
from tamp_modifier.workflows.shapes import measure

if TYPE_CHECKING:
    from rich.table import Table

SIDE = 1024
"""Side of the square matrices whose product tells how fast this machine is."""


def plan(prepared: Prepared, recipe: list[Any], dtype: str = "auto") -> dict[str, Any]:
    """Find what would be pruned, and estimate memory and time on this machine.

    Args:
        prepared: the calibration samples.
        recipe: the modifiers; one is a TAMPModifier.
        dtype: type of the weights, "auto" for that of the file.

    Returns:
        JSON values: ``samples``, ``tokens`` by modality, ``longest`` (tokens of a sample),
        ``linears`` by kind with number, weights and shape, ``weights``, ``dtype`` (that it computes
        in), ``flops`` (a second, measured), ``estimate`` (see `estimate.Estimate`).

    Raises:
        ValueError: fields that do not fit the model.
    """
    modifier = ours(recipe)
    model = empty_model(prepared.config)
    make_linear(model)
    settings = Settings.resolve(modifier, model)
    allocate_before(settings)  # refuses what the run would refuse
    kinds = _kinds(settings.targets)
    tokens: Counter[str] = Counter()
    for sample in prepared.encoded:
        types = token_types(sample.inputs["input_ids"], prepared.ids)
        for code, name in enumerate(MODALITY_NAMES):
            tokens[name] += int((types == code).sum())
    lengths = [len(sample) for sample in prepared.encoded]
    stored = getattr(prepared.config, "dtype", None) or torch.float32
    real = stored if dtype == "auto" else getattr(torch, dtype)
    if dtype == "auto" and only_prunes(recipe) and emulates(real, calibration_device()):
        real = torch.float32  # as the run does where memory allows
    machine = this_machine(real)
    found = estimate(
        replace(measure(model), bytes=torch.empty(0, dtype=real).element_size()),
        samples=len(lengths),
        tokens=max(1, round(sum(lengths) / len(lengths))),
        batch_size=prepared.sampling.batch_size,
        passes=settings.passes,
        selection=settings.selection,
        score=settings.score,
        allocation=settings.allocation,
        machine=machine,
    )
    return {
        "model": prepared.model,
        "requested_sparsity": modifier.sparsity,
        "mask_structure": modifier.mask_structure,
        "samples": len(lengths),
        "tokens": {name: count for name, count in tokens.items() if count},
        "longest": max(lengths),
        "linears": kinds,
        "weights": sum(kind["weights"] for kind in kinds.values()),
        "dtype": str(real).removeprefix("torch."),
        "flops": machine.flops,
        "estimate": found.to_dict(),
    }


def _kinds(targets: Sequence[Target]) -> dict[str, dict[str, Any]]:
    """Sum the Linears of each kind up: number, weights and shape."""
    kinds: dict[str, dict[str, Any]] = {}
    for target in targets:
        shape = list(target.module.weight.shape)
        kind = kinds.setdefault(
            linear_type(target.name), {"linears": 0, "weights": 0, "shape": shape}
        )
        kind["linears"] += 1
        kind["weights"] += shape[0] * shape[1]
    return kinds


def this_machine(dtype: torch.dtype) -> Machine:
    """Speeds of this machine: products of matrices on the device that calibration would use.

    Without an accelerator nothing crosses a link, so that costs nothing.
    """
    device = calibration_device()
    left = torch.randn(SIDE, SIDE).to(device, dtype)
    float((left @ left)[0, 0])  # the first one sets things up
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.3:
        float((left @ left)[0, 0])
        count += 1
    flops = 2.0 * SIDE**3 * count / (time.perf_counter() - start)
    return Machine(flops=flops, link=1e15) if device.type == "cpu" else Machine(flops=flops)


def tables(found: dict[str, Any]) -> list[Table]:
    """Return the plan for the terminal: what would be pruned, and what it takes."""
    from rich.table import Table

    pruned = Table(title="Would be pruned", title_justify="left")
    for name in ("", "Linears", "shape", "weights"):
        pruned.add_column(name, justify="right" if name else "left")
    for kind, entry in found["linears"].items():
        shape = " x ".join(map(str, entry["shape"]))
        pruned.add_row(kind, str(entry["linears"]), shape, f"{entry['weights']:,}")
    pruned.add_section()
    total = sum(entry["linears"] for entry in found["linears"].values())
    pruned.add_row("total", str(total), "", f"{found['weights']:,}", style="bold")

    costs = found["estimate"]
    takes = Table(title="Would take, estimated", title_justify="left", show_header=False)
    tokens = ", ".join(f"{count:,} {name}" for name, count in found["tokens"].items())
    for label, value in (
        ("samples", f"{found['samples']}, the longest of {found['longest']} tokens"),
        ("tokens", tokens),
        ("weights", f"{size_text(costs['weights'])} in {found['dtype']}"),
        ("peak where layers are computed", size_text(costs["device_peak"])),
        ("peak of memory", size_text(costs["host_peak"])),
        ("speed of this machine", f"{found['flops'] / 1e12:.2f} TFLOP/s"),
        ("time", duration(costs["seconds"])),
    ):
        takes.add_row(label, value)
    return [pruned, takes]
