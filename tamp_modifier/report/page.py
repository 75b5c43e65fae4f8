"""A pruning report as one HTML file: figures and pictures inlined, no script, no network.

Pictures are read from one folder, which the caller names, and from nowhere else: a report may come
from anyone, and what it names must not end up on the page.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamp_modifier.files import whole_file
from tamp_modifier.report.figures import (
    attention_figure,
    diversity_terms,
    draw_diversity,
    draw_selected_number,
    draw_selected_share,
    for_dark_pages,
    panel_figure,
    recovery_figure,
    sparsity_figure,
)
from tamp_modifier.report.model import PruningReport, weighted_sparsity
from tamp_modifier.report.samples import find_medium
from tamp_modifier.report.table import pattern_counts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = 12
"""Samples whose pictures are shown, at most."""

SIDE = 420
"""Longer side of a picture on the page, in pixels."""

LEAST_SCALE, MOST_SCALE = 0.55, 1.2
"""How small a figure gets on a narrow page, before it scrolls, and how large on a wide one."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing from elsewhere, whatever a report holds."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6169; --line: #dfe2e6; --page: #fff;
  --card: #f6f7f9; --mark: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #9aa2ab; --line: #33383e;
  --page: #15171a; --card: #1e2125; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem 5rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .5rem; }
p { max-width: 44rem; margin: .4rem 0 1rem; } p, figcaption, dt, th { color: var(--soft); }
dl.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem;
  margin: 1.6rem 0 0; }
dl.tiles div { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; }
dl.tiles dt { font-size: .85rem; } dl.tiles dd { margin: 0; font-size: 1.35rem; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.figure img { display: block; width: 100%; height: auto; border-radius: .5rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1rem; }
code { overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr));
  gap: 1.2rem; }
figure { margin: 0; } figure svg { width: 100%; height: auto; border-radius: .4rem; display: block;}
figcaption { font-size: .85rem; overflow-wrap: anywhere; padding-top: .3rem; }
rect.token { fill: var(--mark); } path.edge { fill: none; stroke: #000; stroke-width: 2.4; }
path.dash { stroke: #fff; stroke-width: 1.2; }
.wide { overflow-x: auto; } summary { cursor: pointer; color: var(--soft); }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; vertical-align: top; } th { font-weight: 500; }
th:first-child, td:first-child { text-align: left; } table.pairs td { text-align: left;
  white-space: normal; overflow-wrap: anywhere; }
@media print { body { max-width: none; } details { display: block; } }
"""


def write_page(
    report: PruningReport,
    path: Path,
    samples: Sequence[Mapping[str, Any]] = (),
    pictures: int = PICTURES,
    media: Path | None = None,
) -> Path:
    """Write the page; it appears whole or not at all.

    Args:
        report: what to show.
        path: the HTML file.
        samples: name and media of every sample, of `samples.read_samples`; pictures that are not
            in `media` are left out.
        pictures: samples whose pictures are shown, at most.
        media: the folder of the pictures; without it none is shown.

    Raises:
        OSError: the file cannot be written.
    """
    text = page(report, samples, pictures, media)
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")
    return path


def page(
    report: PruningReport,
    samples: Sequence[Mapping[str, Any]] = (),
    pictures: int = PICTURES,
    media: Path | None = None,
) -> str:
    """Return the text of the page; see `write_page`."""
    title = _title(report)
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{_method(report)}</p>",
        _facts(report),
        _tiles(report),
        _section(
            "Sparsity of each Linear",
            "One row a kind of Linear, one column a decoder layer. Lighter Linears lost more.",
            _image(sparsity_figure(report), "sparsity by kind of Linear and decoder layer"),
        ),
    ]
    if any(linear.importance is not None for linear in report.linears.values()):
        parts.append(
            _section(
                "Diversity",
                "How much the outputs of a Linear differ from token to token: one minus their mean "
                "cosine similarity, within a modality and between two. Linears with more of it "
                "keep more weights.",
                _panels(
                    (partial(draw_diversity, report=report, term=term), f"{term} by depth")
                    for term in diversity_terms(report)
                ),
            )
        )
    if report.recovery is not None:
        recovery = report.recovery
        parts.append(
            _section(
                "Recovery",
                f"The dense model taught {_short(recovery.trained)} weights; the zeros stayed. "
                f"The held-out loss {recovery.change} nats.",
                _image(recovery_figure(recovery), "held-out loss over the training")
                + _pairs({**recovery.settings, "learning rate": recovery.learning_rate}),
            )
        )
    if report.attention:
        parts.append(
            _section(
                "Attention",
                "What share of its attention the last token of a sample gives to each modality.",
                _image(attention_figure(report), "attention by modality and depth"),
            )
        )
    if report.token_types and any(linear.selected for linear in report.linears.values()):
        parts.append(_selection(report))
    shown = [] if media is None else list(_pictures(report, samples, pictures, media))
    if shown:
        parts.append(
            _section(
                "Selected tokens on the pictures",
                "Each square is a token of the picture that was selected; the stronger its colour, "
                "the more Linears selected it. Without squares every token was.",
                f'<div class="pictures">{"".join(shown)}</div>',
            )
        )
    parts += [
        f"<h2>All Linears</h2><details><summary>{len(report.linears)} rows</summary>"
        f'<div class="wide">{_linears(report)}</div></details>',
        f"<h2>Settings</h2>{_pairs(report.settings)}",
        f"<h2>Versions and times</h2>"
        f"{_pairs({**report.versions, **_times(report), 'seed': report.seed})}",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _selection(report: PruningReport) -> str:
    """Return the section on selected tokens; one sentence where all are."""
    every = [len(types) for types in report.token_types]
    if all([len(s) for s in linear.selected] == every for linear in report.linears.values()):
        return _section("Selected tokens", "Every token counts in every Linear.", "")
    return _section(
        "Selected tokens",
        "Only these tokens decide which weights of a Linear go.",
        _panels(
            (
                (partial(draw_selected_number, report=report), "selected tokens by depth"),
                (partial(draw_selected_share, report=report), "modalities by depth"),
            )
        ),
    )


def _title(report: PruningReport) -> str:
    model = report.run.get("model")
    sparsity = f"pruned to {100 * report.reached_sparsity:.1f} %"
    return f"{escape(model)}, {sparsity}" if model else sparsity.capitalize()


def _facts(report: PruningReport) -> str:
    """Return model, data, date and command of the run, as far as the report tells."""
    order = {name: report.run[name] for name in ("model", "data", "date") if name in report.run}
    rows = [f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in order.items()]
    command = report.run.get("command")
    if command is not None:
        rows.append(f"<tr><th>command</th><td><code>{escape(command)}</code></td></tr>")
    return f'<table class="pairs">{"".join(rows)}</table>' if rows else ""


def _method(report: PruningReport) -> str:
    settings = report.settings
    named = [
        f"{name} <b>{escape(str(settings[name]))}</b>"
        for name in ("allocation", "selection", "score")
        if isinstance(settings.get(name), str)
    ]
    return ", ".join(named) or "tamp-modifier"


def _tiles(report: PruningReport) -> str:
    linears = list(report.linears.values())
    tiles = {
        "asked for": f"{100 * report.requested_sparsity:.2f} %",
        "reached": f"{100 * report.reached_sparsity:.2f} %",
        "mask structure": report.mask_structure,
        "Linears": f"{len(linears):,}",
        "weights": _short(sum(linear.numel for linear in linears)),
        "samples": f"{report.samples:,}",
        **{f"{name} tokens": f"{count:,}" for name, count in report.tokens.items()},
    }
    if report.is_mixed:
        tiles["patterns"] = pattern_counts(linears)
    inside = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in tiles.items()
    )
    return f'<dl class="tiles">{inside}</dl>'


def _section(title: str, text: str, body: str) -> str:
    return f"<h2>{title}</h2><p>{text}</p>{body}"


def _image(figure: Figure, label: str) -> str:
    """One figure in two colourings; it scrolls where its text would become too small."""
    light, dark = _svg(figure), _svg(for_dark_pages(figure))
    width = 96 * figure.get_figwidth()
    least, most = round(LEAST_SCALE * width), round(MOST_SCALE * width)
    return (
        '<div class="wide figure"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{label}" style="min-width: {least}px; max-width: {most}px" src="{light}">'
        "</picture></div>"
    )


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "tamp-modifier"})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _panels(panels: Iterable[tuple[Callable[[Any], None], str]]) -> str:
    """Figures of one panel each, beside one another where there is room."""
    images = "".join(_image(panel_figure(draw), label) for draw, label in panels)
    return f'<div class="panels">{images}</div>'


def _pictures(
    report: PruningReport, samples: Sequence[Mapping[str, Any]], most: int, folder: Path
) -> Iterable[str]:
    shown = 0
    for number, sample in enumerate(samples):
        counts, choices = _selected(report, number)
        for media in sample["media"]:
            if media.get("kind") != "image" or "grid" not in media or not choices:
                continue
            if shown == most:
                return
            path = find_medium(media["path"], folder)
            picture = None if path is None else _thumbnail(path)
            if picture is not None:
                shown += 1
                yield _figure(*picture, media, counts, choices, str(sample["name"]))


def _selected(report: PruningReport, sample: int) -> tuple[Counter[int], int]:
    """How many Linears selected each token of a sample, and how many selected at all."""
    counts: Counter[int] = Counter()
    choices = 0
    for linear in report.linears.values():
        if sample < len(linear.selected):
            counts.update(linear.selected[sample])
            choices += 1
    return counts, choices


def _thumbnail(path: Path) -> tuple[str, int, int] | None:
    """Return a picture as base64 of a JPEG with its width and height; None if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    scale = SIDE / max(small.size)
    width, height = (max(1, round(side * scale)) for side in small.size)
    buffer = io.BytesIO()
    small.resize((width, height)).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode(), width, height


def _figure(
    data: str,
    width: int,
    height: int,
    media: Mapping[str, Any],
    counts: Counter[int],
    choices: int,
    name: str,
) -> str:
    rows, columns = media["grid"]
    tall, wide = height / rows, width / columns
    own = range(media["first"], media["first"] + rows * columns)
    # Squares all over would hide the picture and tell nothing.
    every = all(counts[token] == choices for token in own)
    squares, edges = [], []
    for token, count in sorted(counts.items()):
        cell = token - media["first"]
        if 0 <= cell < rows * columns and not every:
            y, x = divmod(cell, columns)
            share = count / choices
            edges.append(f"M{x * wide:.1f} {y * tall:.1f}h{wide:.1f}v{tall:.1f}h-{wide:.1f}z")
            squares.append(
                f'<rect class="token" x="{x * wide:.1f}" y="{y * tall:.1f}" width="{wide:.1f}" '
                f'height="{tall:.1f}" fill-opacity="{0.15 + 0.65 * share:.2f}">'
                f"<title>{count} of {choices} Linears</title></rect>"
            )
    told = f"all {rows * columns}" if every else f"{len(squares)} of {rows * columns}"
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}">'
        f'<image width="{width}" height="{height}" href="data:image/jpeg;base64,{data}"/>'
        f"{''.join(squares)}{_edges(''.join(edges), min(wide, tall))}</svg>"
        f"<figcaption>{escape(name)}: {told} tokens"
        "</figcaption></figure>"
    )


def _edges(path: str, side: float) -> str:
    """Outlines in black with white dashes, which no colour of a picture hides."""
    dash = f"{side / 8:.1f}"
    return (
        f'<path class="edge" d="{path}"/><path class="edge dash" stroke-dasharray="{dash}" '
        f'd="{path}"/>'
        if path
        else ""
    )


def _linears(report: PruningReport) -> str:
    head = ("Linear", "shape", "pattern", "given", "reached", "importance", "tokens")
    rows = [
        (
            escape(name),
            " x ".join(map(str, linear.shape)),
            escape(linear.pattern),
            f"{100 * linear.allocated:.2f} %",
            f"{100 * linear.reached:.2f} %",
            "" if linear.importance is None else f"{linear.importance:.3f}",
            f"{linear.tokens_seen:,}",
        )
        for name, linear in report.linears.items()
    ]
    given = weighted_sparsity(report.linears.values(), "allocated")
    rows.append(
        ("all", "", "", f"{100 * given:.2f} %", f"{100 * report.reached_sparsity:.2f} %", "", "")
    )
    cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{cells}</table>"


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(str(key))}</th><td>{escape(_plain(value))}</td></tr>"
        for key, value in values.items()
    )
    return f'<div class="wide"><table class="pairs">{rows}</table></div>'


def _times(report: PruningReport) -> dict[str, str]:
    return {name.replace("_", " "): f"{value:.1f} s" for name, value in report.timings.items()}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _short(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:,}"
