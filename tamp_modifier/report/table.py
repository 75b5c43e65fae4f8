"""The report as a table for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
from tamp_modifier.report.model import (
    LinearReport,
    PruningReport,
    layer_index,
    linear_type,
    weighted_sparsity,
)

MAX_LAYER_ROWS = 16


def report_table(report: PruningReport) -> Table:
    """Return requested and reached sparsity: by depth (at most 16 rows), by Linear type, total."""
    from rich.table import Table

    title = f"Sparsity, mask structure {report.mask_structure}, {report.samples} samples"
    table = Table(title=title, title_justify="left", show_footer=False)
    table.add_column("", overflow="fold")
    mixed = report.is_mixed
    extremes = () if mixed else ("lowest", "highest")  # the patterns tell them
    for name in ("Linears", "weights", "requested", "reached", *extremes):
        table.add_column(name, justify="right", no_wrap=True)
    if mixed:
        table.add_column("patterns")
    layers = _group(report.linears, lambda name, linear: linear.layer)
    for label, members in _merge_layers(layers):
        table.add_row(label, *_summary_cells(members, mixed))
    table.add_section()
    for label, members in _group(report.linears, lambda name, _: linear_type(name)).items():
        table.add_row(label, *_summary_cells(members, mixed))
    table.add_section()
    cells = _summary_cells(list(report.linears.values()), mixed)
    cells[2] = _percent(report.requested_sparsity)
    cells[3] = _percent(report.reached_sparsity)
    table.add_row("total", *cells, style="bold")
    return table


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def pattern_counts(linears: Iterable[LinearReport]) -> str:
    """How many Linears have which pattern, the densest first: ``"2 dense, 5 2:4"``."""
    counts = Counter(
        linear.pattern for linear in sorted(linears, key=lambda linear: linear.allocated)
    )
    return ", ".join(f"{count} {pattern}" for pattern, count in counts.items())


def _summary_cells(linears: Sequence[LinearReport], patterns: bool) -> list[str]:
    reached = [linear.reached for linear in linears] or [0.0]
    extremes = (
        [pattern_counts(linears)] if patterns else [_percent(min(reached)), _percent(max(reached))]
    )
    return [
        str(len(linears)),
        f"{sum(linear.numel for linear in linears):,}",
        _percent(weighted_sparsity(linears, "allocated")),
        _percent(weighted_sparsity(linears)),
        *extremes,
    ]


def _group(
    linears: Mapping[str, LinearReport], key: Callable[[str, LinearReport], str]
) -> dict[str, list[LinearReport]]:
    groups: dict[str, list[LinearReport]] = {}
    for name, linear in linears.items():
        groups.setdefault(key(name, linear), []).append(linear)
    return groups


def _merge_layers(layers: dict[str, list[LinearReport]]) -> list[tuple[str, list[LinearReport]]]:
    """Return decoder layers in order, neighbours merged so that at most ``MAX_LAYER_ROWS`` rows
    remain.
    """
    names = list(layers)
    step = -(-len(names) // MAX_LAYER_ROWS) or 1
    rows = []
    for start in range(0, len(names), step):
        chunk = names[start : start + step]
        first, last = (layer_index(chunk[0]), layer_index(chunk[-1]))
        if first is None or last is None:
            label = chunk[0] if len(chunk) == 1 else f"{chunk[0]} .. {chunk[-1]}"
        else:
            label = f"layer {first}" if len(chunk) == 1 else f"layers {first}-{last}"
        rows.append((label, [linear for name in chunk for linear in layers[name]]))
    return rows
