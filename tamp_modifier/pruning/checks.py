"""What TAMPModifier cannot share a recipe with: refused before any work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from compressed_tensors.quantization.utils import is_module_quantized

from tamp_modifier.calibration.targets import Target
from tamp_modifier.messages import some
from tamp_modifier.scores.base import Score

if TYPE_CHECKING:
    pass
from tamp_modifier.report.model import ReportError

PRUNABLE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def check_weights(targets: Iterable[Target]) -> None:
    """Refuses Linears whose weights are stored quantized.

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


def check_quantized_before(targets: Iterable[Target], score: Score) -> None:
    """Refuses a score that moves weights off the grid that an earlier quantization put them on.

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
    """Refuses two TAMPModifiers in a recipe that prune the same Linears or write the same report.

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
    """Pass on what is no truth value, which Python would take for 0 or 1.

    Raises:
        ValueError: True or False, also inside of a dict.
    """
    for item in value.values() if isinstance(value, dict) else [value]:
        if isinstance(item, bool):
            raise ValueError(f"{field}: {item} is no number")
    return value


def _same(path: str, other: str | None) -> bool:
    return other is not None and Path(path).resolve() == Path(other).resolve()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuses a report path that cannot be written, before hours of work go into the report.

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
