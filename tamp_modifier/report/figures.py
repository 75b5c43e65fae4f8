"""Figures of a pruning report: sparsity, diversity and selected tokens by depth. Needs matplotlib.

Colours are those of Okabe and Ito and the viridis map, which colour-blind readers can tell apart.
Figures are made without pyplot, so nothing global changes and no display is needed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tamp_modifier.report.model import (
    LinearReport,
    PruningReport,
    Recovery,
    ReportError,
    layer_index,
    linear_type,
    weighted_sparsity,
)
from tamp_modifier.tokens import MODALITY_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MODALITY_COLOURS = dict(zip(MODALITY_NAMES, COLOURS, strict=False))
DPI = 150
INK, DARK = "#e6e8ea", "#1e2125"
"""Colours of text and ground on a dark page."""

LIGHT = {"#000000": INK, "#0072B2": "#3D9BE0"}
"""What lines of a dark colour have on a dark page."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure in inches, laid out so that labels never overlap."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            'figures need matplotlib: pip install "tamp-modifier[compress]"'
        ) from None
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG, making the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": "tamp-modifier"})
    return path


def draw_report(report: PruningReport, folder: Path) -> list[Path]:
    """Write ``sparsity.png``, and those of diversity, selection and attention that are known."""
    if not report.linears:
        raise ReportError("the report has no pruned Linear, there is nothing to draw")
    paths = [save_figure(sparsity_figure(report), folder / "sparsity.png")]
    if any(linear.importance is not None for linear in report.linears.values()):
        paths.append(save_figure(diversity_figure(report), folder / "diversity.png"))
    if report.token_types and any(linear.selected for linear in report.linears.values()):
        paths.append(save_figure(selection_figure(report), folder / "selected_tokens.png"))
    if report.attention:
        paths.append(save_figure(attention_figure(report), folder / "attention.png"))
    if report.recovery is not None:
        paths.append(save_figure(recovery_figure(report.recovery), folder / "recovery.png"))
    return paths


def by_type_and_layer(report: PruningReport) -> dict[str, dict[str, list[LinearReport]]]:
    """Return Linears as ``{type: {layer: [Linear, ...]}}``, types and layers in order of depth."""
    grid: dict[str, dict[str, list[LinearReport]]] = {}
    for name, linear in report.linears.items():
        grid.setdefault(linear_type(name), {}).setdefault(linear.layer, []).append(linear)
    return grid


def draw_sparsity_grid(
    axes: Axes, report: PruningReport, limits: tuple[float, float] | None = None
) -> AxesImage:
    """Heat map of the reached sparsity, Linear type against depth.

    Where Linears have patterns that differ, the cells tell the pattern instead of the percentage.

    Args:
        axes: Where to draw.
        report: What to draw.
        limits: Sparsities at the ends of the colour scale; chosen from the data if None.

    Returns:
        The picture, for `add_sparsity_bar`.
    """
    grid = by_type_and_layer(report)
    layers = _layers(report)
    cells = [
        [weighted_sparsity(row[layer]) if layer in row else math.nan for layer in layers]
        for row in grid.values()
    ]
    if limits is None:
        known = [value for row in cells for value in row if not math.isnan(value)]
        low, high = math.floor(10 * min(known)) / 10, math.ceil(10 * max(known)) / 10
        limits = max(0.0, min(low, high - 0.2)), min(1.0, max(high, low + 0.2))

    def text(layer: str, row: dict[str, list[LinearReport]]) -> str:
        patterns = {linear.pattern for linear in row[layer]}
        if report.is_mixed and len(patterns) == 1:
            return patterns.pop()
        return f"{100 * weighted_sparsity(row[layer]):.0f}"

    image = axes.imshow(cells, cmap="viridis", vmin=limits[0], vmax=limits[1], aspect="auto")
    axes.set_yticks(range(len(grid)), list(grid))
    _depth_axis(axes, layers)
    if len(layers) <= 16:
        for y, row in enumerate(grid.values()):
            for x, value in enumerate(cells[y]):
                if not math.isnan(value):
                    colour = "black" if value > sum(limits) / 2 else "white"
                    axes.text(x, y, text(layers[x], row), ha="center", va="center", color=colour)
    return image


def add_sparsity_bar(figure: Figure, image: AxesImage, axes: Axes | Sequence[Axes]) -> None:
    """Add the colour scale of `draw_sparsity_grid` beside one or several axes."""
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("sparsity")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def sparsity_figure(report: PruningReport) -> Figure:
    """Reached sparsity per Linear type and decoder layer."""
    types, layers = len(by_type_and_layer(report)), len(_layers(report))
    figure = new_figure(min(14, 3.5 + 0.45 * max(layers, 6)), 1.6 + 0.34 * max(types, 3))
    axes = figure.add_subplot()
    add_sparsity_bar(figure, draw_sparsity_grid(axes, report), axes)
    axes.set_title(f"Sparsity of each Linear, {100 * report.reached_sparsity:.1f} % in total")
    return figure


def diversity_terms(report: PruningReport) -> list[str]:
    """Return what `draw_diversity` can draw: "importance", then its terms, the pairs."""
    linears = report.linears.values()
    pairs = dict.fromkeys(pair for linear in linears for pair in linear.similarities)
    return ["importance", *pairs]


def draw_diversity(axes: Axes, report: PruningReport, term: str) -> None:
    """DAS importance, or one of its terms (1 - mean cosine), by depth; one line a Linear type."""
    layers = _layers(report)
    for index, (kind, row) in enumerate(by_type_and_layer(report).items()):
        points = [
            (position, value)
            for position, layer in enumerate(layers)
            if (value := _mean_term(row.get(layer, []), term)) is not None
        ]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            label=kind,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            linewidth=1.3,
            linestyle="-" if index < len(COLOURS) else "--",
        )
    total = term == "importance"
    title = "importance (sum of the terms)" if total else f"diversity {term} (1 - mean cosine)"
    axes.set_title(title, fontsize=10)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    _depth_axis(axes, layers)


def diversity_figure(report: PruningReport) -> Figure:
    """All of `diversity_terms` in one figure."""
    panels = diversity_terms(report)
    columns = min(len(panels), 2 if len(panels) <= 4 else 4)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(1.5 + 4.2 * columns, 0.6 + 3.0 * rows)
    for number, panel in enumerate(panels):
        draw_diversity(figure.add_subplot(rows, columns, number + 1), report, panel)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def draw_selected_number(axes: Axes, report: PruningReport) -> None:
    """How many tokens were selected by depth and modality."""
    layers = _layers(report)
    counts = {layer: _picked(report, layer) for layer in layers}
    bottom = [0.0] * len(layers)
    for name in _present(report):
        heights = [counts[layer].get(name, 0.0) for layer in layers]
        colour = MODALITY_COLOURS[name]
        axes.bar(range(len(layers)), heights, bottom=bottom, label=name, color=colour)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_ylabel("tokens per sample and Linear")
    axes.set_title("selected tokens, mean", fontsize=10)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    _depth_axis(axes, layers)


def draw_selected_share(axes: Axes, report: PruningReport) -> None:
    """Share of each modality in the selected tokens by depth; dashed that in all tokens."""
    layers = _layers(report)
    counts = [_picked(report, layer) for layer in layers]
    total = sum(report.tokens.values())
    for index, name in enumerate(_present(report)):
        sums = [sum(found.values()) for found in counts]
        shares = [
            found.get(name, 0.0) / number if number else math.nan
            for found, number in zip(counts, sums, strict=True)
        ]
        colour = MODALITY_COLOURS[name]
        axes.plot(shares, color=colour, marker=MARKERS[index], markersize=4)
        axes.axhline(report.tokens[name] / total, color=colour, linestyle="--", linewidth=1)
    axes.plot([], [], color="grey", marker="o", markersize=4, label="selected tokens")
    axes.plot([], [], color="grey", linestyle="--", label="all tokens")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_title("share of each modality", fontsize=10)
    axes.grid(alpha=0.3)
    _depth_axis(axes, layers)


def selection_figure(report: PruningReport) -> Figure:
    """How many tokens were selected by depth and modality, and the share of each modality."""
    figure = new_figure(11, 3.8)
    number, share = figure.subplots(1, 2)
    draw_selected_number(number, report)
    draw_selected_share(share, report)
    handles = [*number.get_legend_handles_labels()[0], *share.get_legend_handles_labels()[0]]
    labels = [*number.get_legend_handles_labels()[1], *share.get_legend_handles_labels()[1]]
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def panel_figure(draw: Callable[[Axes], None]) -> Figure:
    """Return a figure of one panel, with its legend below."""
    figure = new_figure(5.4, 3.8)
    draw(figure.add_subplot())
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def for_dark_pages(figure: Figure) -> Figure:
    """Turn a figure into one that is read on a dark page; dark colours of data become light."""
    from matplotlib.colors import to_hex
    from matplotlib.text import Text

    inside = {id(text) for axes in figure.axes for text in axes.texts}  # on a colour of data
    for text in figure.findobj(Text):
        if id(text) not in inside:
            text.set_color(INK)
    figure.patch.set_facecolor(DARK)
    for axes in figure.axes:
        axes.set_facecolor(DARK)
        axes.tick_params(which="both", color=INK, labelcolor=INK)
        for spine in axes.spines.values():
            spine.set_edgecolor(INK)
    lines = [line for axes in figure.axes for line in axes.lines]
    for line in [*lines, *(line for legend in figure.legends for line in legend.get_lines())]:
        line.set_color(LIGHT.get(to_hex(line.get_color()).upper(), line.get_color()))
    return figure


def attention_figure(report: PruningReport) -> Figure:
    """Share of the last token's attention that each modality gets, by depth.

    Dashed is the share of each modality in the tokens, which uniform attention would give.
    """
    layers = [layer for layer in _layers(report) if layer in report.attention]
    figure = new_figure(6, 3.8)
    axes = figure.add_subplot()
    total = sum(report.tokens.values())
    for index, name in enumerate(_present(report)):
        colour = MODALITY_COLOURS[name]
        shares = [report.attention[layer].get(name, 0.0) for layer in layers]
        axes.plot(shares, color=colour, marker=MARKERS[index], markersize=4, label=name)
        axes.axhline(report.tokens[name] / total, color=colour, linestyle="--", linewidth=1)
    axes.plot([], [], color="grey", linestyle="--", label="share of all tokens")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_title("attention of the last token, by modality", fontsize=10)
    axes.grid(alpha=0.3)
    _depth_axis(axes, layers)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _present(report: PruningReport) -> list[str]:
    """Return the modalities of the data."""
    return [name for name in MODALITY_NAMES if report.tokens.get(name)]


def _layers(report: PruningReport) -> list[str]:
    return list(dict.fromkeys(linear.layer for linear in report.linears.values()))


def _depth_axis(axes: Axes, layers: Sequence[str]) -> None:
    step = max(1, math.ceil(len(layers) / 16))
    positions = range(0, len(layers), step)
    labels = [layer_index(layers[position]) for position in positions]
    axes.set_xticks(
        positions,
        [str(p if label is None else label) for p, label in zip(positions, labels, strict=True)],
    )
    axes.set_xlabel("decoder layer")


def _mean_term(linears: Sequence[LinearReport], panel: str) -> float | None:
    if panel == "importance":
        values = [linear.importance for linear in linears if linear.importance is not None]
    else:
        values = [1 - lin.similarities[panel] for lin in linears if panel in lin.similarities]
    return sum(values) / len(values) if values else None


def _picked(report: PruningReport, layer: str) -> dict[str, float]:
    """Mean number of picked tokens per sample and Linear of one decoder layer, by modality name."""
    counts: Counter[str] = Counter()
    choices = 0
    for linear in report.linears.values():
        if linear.layer != layer or not linear.selected:
            continue
        for types, tokens in zip(report.token_types, linear.selected, strict=False):
            counts.update(MODALITY_NAMES[types[token]] for token in tokens if token < len(types))
            choices += 1
    return {name: count / choices for name, count in counts.items()} if choices else {}


def recovery_figure(recovery: Recovery) -> Figure:
    """Draw the held-out loss of a recovery against the minutes of training."""
    figure = new_figure(6, 3.2)
    axes = figure.subplots()
    minutes = [entry["seconds"] / 60 for entry in recovery.curve]
    losses = [entry["loss"] for entry in recovery.curve]
    axes.plot(minutes, losses, color=COLOURS[0], marker="o", markersize=4)
    axes.axhline(recovery.best, color=COLOURS[3], linewidth=1, linestyle="--")
    axes.annotate(
        f"kept: {recovery.best:.4f}",
        (minutes[-1], recovery.best),
        textcoords="offset points",
        xytext=(0, -12),
        ha="right",
        color=COLOURS[3],
    )
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("held-out KL to the dense model, nats")
    axes.set_ylim(bottom=0)
    return figure
