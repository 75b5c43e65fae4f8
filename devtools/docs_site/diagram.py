"""A mermaid flowchart as an inline SVG, so that the site needs no script from elsewhere.

Only what the README uses is understood: ``flowchart LR``, boxes ``A[text<br>text]`` and arrows.
"""

from __future__ import annotations

import re
from html import escape

BOX = re.compile(r"(\w+)(?:\[([^\]]*)\])?")
HEIGHT, GAP_X, GAP_Y, MARGIN = 54, 34, 26, 4
LETTERS = 7.4, 6.2
"""Pixels of a letter in the first line of a box, and in the lines below it."""
Place = tuple[float, float, float]
"""Left and upper edge of a box, and its width."""


def flowchart(text: str) -> str:
    """Return the SVG of a flowchart from left to right, as one block of HTML.

    Raises:
        ValueError: it is another kind of diagram, or its arrows run in a circle.
    """
    head, *lines = [line.strip() for line in text.strip().split("\n")]
    if head != "flowchart LR":
        raise ValueError(f"diagrams must be 'flowchart LR', got {head!r}")
    labels: dict[str, str] = {}
    edges: list[tuple[str, str]] = []
    for line in lines:
        names = []
        for part in line.split("-->"):
            found = BOX.fullmatch(part.strip())
            if found is None:
                raise ValueError(f"not a box of a flowchart: {part.strip()!r}")
            names.append(found[1])
            labels[found[1]] = found[2] or labels.get(found[1], found[1])
        edges += list(zip(names, names[1:], strict=False))
    return _draw(labels, edges, _places(labels, edges))


def _places(labels: dict[str, str], edges: list[tuple[str, str]]) -> dict[str, Place]:
    """Place the boxes: columns by the longest way to a box, rows by appearance."""
    names = list(labels)
    rank = dict.fromkeys(names, 0)
    for _ in names:
        for begin, end in edges:
            rank[end] = max(rank[end], rank[begin] + 1)
    if any(rank[begin] >= rank[end] for begin, end in edges):
        raise ValueError("the arrows of a flowchart must not run in a circle")
    columns = [[name for name in names if rank[name] == column] for column in range(len(names))]
    most = max(map(len, columns))
    places: dict[str, Place] = {}
    left = float(MARGIN)
    for column in filter(None, columns):
        width = max(_width(labels[name]) for name in column)
        for row, name in enumerate(column):
            top = MARGIN + (row + (most - len(column)) / 2) * (HEIGHT + GAP_Y)
            places[name] = (left, top, width)
        left += width + GAP_X
    return places


def _width(label: str) -> float:
    first, *others = label.split("<br>")
    large, small = LETTERS
    return 28 + max([large * len(first), *(small * len(line) for line in others)])


def _draw(labels: dict[str, str], edges: list[tuple[str, str]], places: dict[str, Place]) -> str:
    width = max(x + box for x, _, box in places.values()) + MARGIN
    height = max(y for _, y, _ in places.values()) + HEIGHT + MARGIN
    parts = [
        f'<div class="diagram"><svg viewBox="0 0 {width:g} {height:g}" role="img">',
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>',
    ]
    for begin, end in edges:
        (x, y, box), (stop, to_y, _) = places[begin], places[end]
        start, y, to_y = x + box, y + HEIGHT / 2, to_y + HEIGHT / 2
        middle = (start + stop) / 2
        parts.append(
            f'<path class="edge" marker-end="url(#arrow)" d="M{start:g} {y:g}'
            f'C{middle:g} {y:g} {middle:g} {to_y:g} {stop:g} {to_y:g}"/>'
        )
    for name, label in labels.items():
        x, y, box = places[name]
        parts.append(f'<rect x="{x:g}" y="{y:g}" width="{box:g}" height="{HEIGHT}" rx="6"/>')
        lines = label.split("<br>")
        for row, line in enumerate(lines):
            baseline = y + HEIGHT / 2 + 5 + (row - (len(lines) - 1) / 2) * 18
            kind = "" if row == 0 else ' class="detail"'
            parts.append(f'<text{kind} x="{x + box / 2:g}" y="{baseline:g}">{escape(line)}</text>')
    return "".join([*parts, "</svg></div>"])
