"""What cannot be pruned as asked.

What can be known before calibration raises. What only calibration shows returns its message: the
run brings back what it has changed, and raises.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization.utils import is_module_quantized
from torch import nn

from tamp_modifier.calibration.distributed import all_of, any_of
from tamp_modifier.calibration.targets import Target
from tamp_modifier.checkpoint.marker import CONFIG_KEY
from tamp_modifier.messages import some
from tamp_modifier.report.model import ReportError
from tamp_modifier.scores.base import Score
from tamp_modifier.zeros.remembered import remembered

PRUNABLE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def check_weights(targets: Iterable[Target]) -> None:
    """Refuse Linears whose weights are stored quantized.

    Raises:
        ValueError: with the first such Linears.
    """
    dtypes = {t.name: getattr(getattr(t.module, "weight", None), "dtype", None) for t in targets}
    bad = [name for name, dtype in dtypes.items() if dtype not in PRUNABLE_DTYPES]
    if bad:
        raise ValueError(
            f"{len(bad)} target Linears are stored quantized and cannot be pruned: {some(bad)}. "
            "Prune the model that they were made from, and quantize after that"
        )


def check_columns(targets: Sequence[Target], prune_m: int) -> None:
    """Refuse Linears whose rows cannot be cut into groups of M.

    Args:
        targets: the Linears.
        prune_m: M; 0 for unstructured, which always fits.

    Raises:
        ValueError: input features that are not divisible by M, with the first such Linear.
    """
    bad = [t for t in targets if prune_m and t.module.in_features % prune_m]
    if bad:
        raise ValueError(
            f"this mask_structure needs input features divisible by {prune_m}; "
            f"{bad[0].name} has {bad[0].module.in_features}. Add it to ignore"
        )


def check_quantized_before(targets: Iterable[Target], score: Score) -> None:
    """Refuse a score that moves weights off the grid that an earlier quantization put them on.

    Scores that only set weights to zero are fine: zero is on every grid.

    Raises:
        ValueError: with the first such Linears.
    """
    if score.keeps_weights:
        return
    bad = [t.name for t in targets if is_module_quantized(t.module)]
    if bad:
        raise ValueError(
            f"score {score.name!r} changes the weights that stay, and {len(bad)} target Linears "
            f"are quantized before: {some(bad)}. Put the quantization after TAMPModifier, or use "
            "score 'wanda'"
        )


def check_others(
    targets: Sequence[Target],
    report_path: str | None,
    others: Iterable[tuple[Sequence[Target], str | None]],
) -> None:
    """Refuse two TAMPModifiers in a recipe that prune the same Linears or write the same report.

    Args:
        targets: what this modifier prunes.
        report_path: where its report goes.
        others: the same of every TAMPModifier before it.

    Raises:
        ValueError: with the first such Linears, or the path.
    """
    for other_targets, other_path in others:
        if report_path is not None and _same(report_path, other_path):
            raise ValueError(f"two TAMPModifiers have the same report_path {report_path!r}")
        modules = {target.module for target in other_targets}
        both = [target.name for target in targets if target.module in modules]
        if both:
            raise ValueError(
                f"two TAMPModifiers of the recipe prune the same {len(both)} Linears: "
                f"{some(both)}. Give them different targets or ignore"
            )


def refuse_bool(value: Any, field: str) -> Any:
    """Pass on a value that is not a bool, which Python would take for 0 or 1.

    Raises:
        ValueError: True or False, also inside of a dict.
    """
    for item in value.values() if isinstance(value, dict) else [value]:
        if isinstance(item, bool):
            raise ValueError(f"{field} must be a number, got {item}")
    return value


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a report path that cannot be written, before hours of work go into the report.

    Raises:
        ReportError: a folder, or a place where no file can be made.
    """
    path = Path(path)
    if path.is_dir():
        raise ReportError(f"report_path {str(path)!r} is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ReportError(
            f"report_path {str(path)!r} cannot be written: {error.strerror}"
        ) from None


# -- what only calibration shows


def unseen(names: Iterable[str], has_seen: Callable[[str], bool]) -> str | None:
    """Return why a run cannot continue: target Linears that saw no sample, in any process.

    Args:
        names: the target Linears.
        has_seen: whether a token passed through one of them, in this process.
    """
    names = list(names)
    missed = all_of(name for name in names if not has_seen(name))
    bad = [name for name in names if name in missed]
    if not bad:
        return None
    return (
        f"{len(bad)} target Linears saw no calibration sample, nothing was pruned: "
        f"{some(bad)}. Add them to ignore, give samples that reach them, or, if the "
        'model cannot be traced, use oneshot(pipeline="basic") and dense_pipeline="basic"'
    )


def not_finite(names: Iterable[str], is_finite: Callable[[str], bool]) -> str | None:
    """Return why a run cannot continue: Linears whose activations are NaN or infinite somewhere.

    Args:
        names: the Linears.
        is_finite: whether what was collected of one of them is finite, in this process.
    """
    names = list(names)
    found = any_of(name for name in names if not is_finite(name))
    bad = [name for name in names if name in found]
    if not bad:
        return None
    return (
        f"{len(bad)} target Linears have activations that are not finite, nothing was "
        f"pruned: {some(bad)}"
    )


def missing_attention(layers: Iterable[str], what_then: str = "") -> str | None:
    """Return which decoder layers give no attention weights, in any process.

    Args:
        layers: those of this process.
        what_then: what follows from it.
    """
    found = sorted(any_of(layers))
    if not found:
        return None
    return f"{len(found)} decoder layers give no attention weights{what_then}: {some(found)}"


def already_pruned(model: nn.Module) -> str | None:
    """Tell that a model was pruned before; None if it was not, as far as it says."""
    pruned = len(remembered(model))
    if not pruned and getattr(model.config, CONFIG_KEY, None) is None:
        return None
    return (
        f"{type(model).__name__} was pruned before: its zeros stay and count towards the sparsity "
        "that is asked for now, and importances are those of the pruned model"
    )


def nothing_to_prune(zeros: int, numel: int, sparsity: float) -> str | None:
    """Tell that the targets had as many zeros before as were asked for; None if they had not."""
    if zeros < sparsity * numel:
        return None
    return (
        f"sparsity {sparsity} asks for no more zeros than the {zeros / numel:.1%} that the target "
        "weights had before: next to nothing was pruned"
    )


def _same(path: str, other: str | None) -> bool:
    return other is not None and Path(path).resolve() == Path(other).resolve()
