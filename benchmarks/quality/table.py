"""The tables, from the cells alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.quality.cells import DENSE, Cell, ResultError
from benchmarks.quality.methods import METHODS, RIVALS, STEPS
from benchmarks.quality.models import MODELS
from benchmarks.quality.statistics import (
    Comparison,
    Interval,
    Items,
    asked,
    compare,
    items_of,
    kept_difference,
    nll_difference,
    summarise,
)

OURS = "best"
HEADERS = ("method", "seeds", "zeros", "retained (95 % interval)", "NLL (95 % interval)", "CPU s")
VERSUS = (
    "the preset against",
    "retained, difference",
    "NLL, difference",
    "NLL, seed by seed",
    "p",
)
STEP = ("step", *VERSUS[1:])


@dataclass(frozen=True)
class Row:
    """One method at one setting.

    Attributes:
        method: its name.
        seeds: calibration seeds.
        reached: share of zeros, mean over seeds.
        kept: retention, 1 being as good as dense.
        nll: nats.
        seconds: processor time of pruning, mean over seeds.
    """

    method: str
    seeds: tuple[int, ...]
    reached: float
    kept: Interval
    nll: Interval
    seconds: float


@dataclass(frozen=True)
class Block:
    """All methods at one setting of one model, and what the preset is ahead by.

    Attributes:
        model: its name.
        setting: sparsity or pattern.
        rows: the methods.
        versus: rival -> comparison.
        kinds: rival -> kind of task -> difference of retention, None where the dense model can do
            no task of it, and of NLL.
        steps: method -> comparison with the one before it in `STEPS`.
    """

    model: str
    setting: str
    rows: list[Row]
    versus: dict[str, Comparison]
    kinds: dict[str, dict[str, tuple[Interval | None, Interval]]]
    steps: dict[str, Comparison]


def blocks(cells: Sequence[Cell]) -> list[Block]:
    """Return the tables' contents, models and settings in the order of `MODELS`.

    Raises:
        ResultError: cells of a model without its dense one.
    """
    found = []
    for model in sorted({cell.model for cell in cells}, key=_model_order):
        mine = [cell for cell in cells if cell.model == model]
        dense_cells = [cell for cell in mine if cell.method == DENSE]
        if not dense_cells:
            raise ResultError(f"the results of {model} have no cell of the dense model")
        dense = items_of(dense_cells)
        for cell in mine:
            if asked(cell) != asked(dense_cells[0]):
                raise ResultError(
                    f"{' '.join(map(str, cell.key))} has other items than the dense model"
                )
        found.append(Block(model, "0", [_row(DENSE, dense_cells, dense)], {}, {}, {}))
        settings = {cell.setting for cell in mine if cell.method != DENSE}
        for setting in sorted(settings, key=setting_order):
            here = [cell for cell in mine if cell.setting == setting]
            found.append(_block(model, setting, here, dense))
    return found


def _block(model: str, setting: str, cells: Sequence[Cell], dense: Items) -> Block:
    by_method: dict[str, list[Cell]] = {}
    for name in (*METHODS, *sorted({c.method for c in cells} - set(METHODS))):
        members = [cell for cell in cells if cell.method == name]
        if members:
            by_method[name] = sorted(members, key=lambda cell: cell.seed)
    rows = [_row(name, members, dense) for name, members in by_method.items()]
    versus = {}
    kinds: dict[str, dict[str, tuple[Interval | None, Interval]]] = {}
    groups = {
        kind: [task for task in tasks if task in dense.nll]
        for kind, tasks in (MODELS[model].kinds() if model in MODELS else {}).items()
    }
    for rival in RIVALS:
        # With N:M TAMP is AMIA alone, and both have the same cells.
        pair = _pair(by_method, OURS, rival)
        if pair is not None:
            versus[rival] = compare(*pair, dense)
            kinds[rival] = {
                kind: (
                    kept_difference(*pair, dense, tasks) if dense.able_of(tasks) else None,
                    nll_difference(*pair, dense, tasks),
                )
                for kind, tasks in groups.items()
                if tasks
            }
    steps = {}
    for before, name in pairwise(step for step in STEPS if step in by_method):
        pair = _pair(by_method, name, before)
        if pair is not None:
            steps[name] = compare(*pair, dense)
    return Block(model, setting, rows, versus, kinds, steps)


def _pair(
    by_method: Mapping[str, Sequence[Cell]], first: str, second: str
) -> tuple[Items, Items] | None:
    """Items of two methods over the calibration seeds that both have; None where there are none."""
    seeds = {c.seed for c in by_method.get(first, ())} & {c.seed for c in by_method.get(second, ())}
    if not seeds:
        return None
    ours, theirs = (
        items_of([c for c in by_method[name] if c.seed in seeds]) for name in (first, second)
    )
    return ours, theirs


def _row(name: str, cells: Sequence[Cell], dense: Items) -> Row:
    kept, nll = summarise(items_of(cells), dense)
    count = len(cells)
    return Row(
        name,
        tuple(cell.seed for cell in cells),
        sum(cell.reached for cell in cells) / count,
        kept,
        nll,
        sum(cell.cpu_seconds for cell in cells) / count,
    )


def setting_order(setting: str) -> tuple[bool, float, float]:
    """Sparsities first, then patterns."""
    kept, _, group = setting.partition(":")
    return (bool(group), float(kept) / float(group or 1), float(group or 0))


def setting_label(setting: str) -> str:
    """Return a setting as people write it."""
    return setting if ":" in setting else f"{setting} %"


def title_of(method: str) -> str:
    """Return what a method is called in tables and figures."""
    return METHODS[method].title if method in METHODS else method


def model_title(model: str) -> str:
    """Return what a model is called in tables and figures."""
    return MODELS[model].title if model in MODELS else model


def _model_order(name: str) -> tuple[int, str]:
    names = list(MODELS)
    return (names.index(name) if name in names else len(names), name)


def cells_of_row(row: Row) -> tuple[str, ...]:
    """Text of one row."""
    return (
        title_of(row.method),
        str(len(row.seeds)),
        f"{100 * row.reached:.2f} %",
        f"{100 * row.kept.value:.1f} % ({100 * row.kept.low:.1f} to {100 * row.kept.high:.1f})",
        f"{row.nll.value:.3f} ({row.nll.low:.3f} to {row.nll.high:.3f})",
        f"{row.seconds:.0f}",
    )


def cells_of_comparison(rival: str, comparison: Comparison) -> tuple[str, ...]:
    """Text of one comparison."""
    kept, nll = comparison.retention, comparison.nll
    return (
        title_of(rival),
        points(kept),
        difference(nll),
        ", ".join(f"{value:+.3f}" for value in comparison.by_seed),
        f"{comparison.p:.4f}",
    )


def points(kept: Interval | None) -> str:
    """Text of a difference of retention, in points."""
    if kept is None:
        return ""
    return f"{100 * kept.value:+.1f} ({100 * kept.low:+.1f} to {100 * kept.high:+.1f})"


def difference(nll: Interval) -> str:
    """Text of a difference of NLL."""
    return f"{nll.value:+.3f} ({nll.low:+.3f} to {nll.high:+.3f})"


def summary(found: Sequence[Block]) -> list[str]:
    """Lines of one table of all comparisons: difference of what is kept, in points, and of NLL.

    Bold where the preset is ahead clearly, in italics where it is behind clearly: the interval
    leaves zero out and, for NLL, all calibration seeds are on one side.
    """
    rows = []
    for block in found:
        texts = []
        for rival in RIVALS:
            comparison = block.versus.get(rival)
            if comparison is None:
                texts.append("")
                continue
            kept, nll = comparison.retention, comparison.nll
            texts.append(
                f"{_marked(f'{100 * kept.value:+.1f}', kept.sign)} / "
                f"{_marked(f'{nll.value:+.3f}', -comparison.nll_sign)} "
                f"({len(comparison.by_seed)})"
            )
        if any(texts):
            rows.append((_heading(block), *texts))
    return as_markdown(("the preset against", *map(title_of, RIVALS)), rows) if rows else []


def _marked(text: str, side: int) -> str:
    return {1: f"**{text}**", 0: text, -1: f"_{text}_"}[side]


def _heading(block: Block) -> str:
    label = "dense" if block.setting == "0" else setting_label(block.setting)
    return f"{model_title(block.model)}, {label}"


def markdown(found: Sequence[Block]) -> str:
    """All tables in Markdown, the summary first."""
    lines = summary(found)
    for block in found:
        lines += [f"**{_heading(block)}**", ""]
        lines += as_markdown(HEADERS, [cells_of_row(row) for row in block.rows])
        if block.versus:
            lines += as_markdown(
                VERSUS, [cells_of_comparison(name, found) for name, found in block.versus.items()]
            )
        if block.steps:
            lines += as_markdown(
                STEP, [cells_of_comparison(name, found) for name, found in block.steps.items()]
            )
        kinds = next(iter(block.kinds.values()), {})
        if kinds:
            lines += as_markdown(
                ("retained against", *kinds),
                [
                    (title_of(name), *(points(kept) for kept, _ in values.values()))
                    for name, values in block.kinds.items()
                ],
            )
            lines += as_markdown(
                ("NLL against", *kinds),
                [
                    (title_of(name), *(difference(nll) for _, nll in values.values()))
                    for name, values in block.kinds.items()
                ],
            )
    return "\n".join(lines).rstrip() + "\n"


def as_markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown, numbers to the right."""
    lines = ["| " + " | ".join(headers) + " |", "|---|" + "---:|" * (len(headers) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]
