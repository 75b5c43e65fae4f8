"""The table: what each training brought back of what pruning cost."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.quality.cells import DENSE, ResultError
from benchmarks.quality.models import QualityModel
from benchmarks.quality.statistics import Interval, Items, gap_closed, items_of, summarise
from benchmarks.quality.table import as_markdown, model_title, setting_label, setting_order
from benchmarks.recovery.models import MODELS
from benchmarks.recovery.results import Result, Training

HEADERS = (
    "way",
    "tokens",
    "tokens/s",
    "held-out KL",
    "retained (95 % interval)",
    "NLL",
    "gap closed",
)


def markdown(results: Sequence[Result]) -> str:
    """Return a table for each model and setting."""
    lines: list[str] = []
    for model in sorted({r.cell.model for r in results}, key=_place):
        mine = [r for r in results if r.cell.model == model]
        dense = dense_of(mine)
        settings = sorted({r.cell.setting for r in mine}, key=setting_order)
        for setting in settings:
            here = [r for r in mine if r.cell.setting == setting]
            title = setting_label(setting) if setting != "0" else "nothing pruned"
            kinds = list(_kinds(model))
            lines += [f"**{model_title(model)}, {title}**", ""]
            head = (*HEADERS, *(f"gap closed, {kind}" for kind in kinds))
            rows = [_row(r, here, dense, model) for r in sorted(here, key=_order)]
            lines += as_markdown(head, rows)
    return "\n".join(lines).rstrip() + "\n"


def dense_of(results: Sequence[Result]) -> Items:
    """Return the items of the dense model.

    Raises:
        ResultError: there is no such cell.
    """
    cells = [r.cell for r in results if r.cell.method == DENSE]
    if not cells:
        raise ResultError(f"the results of {results[0].cell.model} have no dense cell")
    return items_of(cells)


def start_of(result: Result, others: Sequence[Result]) -> Result | None:
    """Return the same pruning without any training, in bf16; None where it was not measured."""
    pruning = result.cell.method.split("_")[0]
    for other in others:
        same = other.cell.setting == result.cell.setting and other.cell.seed == result.cell.seed
        if same and other.cell.method == f"{pruning}_0min_bf16":
            return other
    return None


def _row(result: Result, others: Sequence[Result], dense: Items, model: str) -> tuple[str, ...]:
    items = items_of([result.cell])
    kept, nll = summarise(items, dense)
    start = start_of(result, others)
    gaps = [""] * (1 + len(_kinds(model)))
    if start is not None and start is not result:
        first = items_of([start.cell])
        groups = [None, *_kinds(model).values()]
        gaps = [_percent(gap_closed(items, first, dense, tasks)) for tasks in groups]
    return (
        result.cell.method.replace("_", " "),
        *_training(result.training),
        _percent(kept),
        f"{nll.value:.3f} ({nll.low:.3f} to {nll.high:.3f})",
        *gaps,
    )


def _training(training: Training | None) -> tuple[str, str, str]:
    if training is None:
        return "", "", ""
    best = min(entry["loss"] for entry in training.curve)
    speed = training.tokens / max(training.seconds, 1e-9)
    return (
        f"{training.tokens:,}",
        f"{speed:.0f}",
        f"{training.curve[0]['loss']:.4f} to {best:.4f}",
    )


def _percent(found: Interval) -> str:
    return f"{100 * found.value:.0f} % ({100 * found.low:.0f} to {100 * found.high:.0f})"


def _kinds(model: str) -> dict[str, tuple[str, ...]]:
    known: type[QualityModel] | None = MODELS.get(model)
    return known.kinds() if known is not None else {}


def _order(result: Result) -> tuple[float, str]:
    seconds = result.training.seconds if result.training is not None else 0.0
    return (seconds, result.cell.method)


def _place(name: str) -> tuple[int, str]:
    names = list(MODELS)
    return (names.index(name) if name in names else len(names), name)
