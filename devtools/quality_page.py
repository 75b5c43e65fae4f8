"""Writes the tables of docs/quality.md and docs/benchmarks.md: ``python -m devtools.quality_page``.

They come from the cells in docs/results/quality alone, so that pages and results cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.cells import Cell, load_folder
from benchmarks.quality.methods import BEFORE, METHODS
from benchmarks.quality.table import OURS, Block, Row, as_markdown, blocks, markdown, setting_label

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "quality"
QUALITY, BENCHMARKS = ROOT / "docs" / "quality.md", ROOT / "docs" / "benchmarks.md"

SUMMARY = (OURS, BEFORE, "sparsegpt", "tamp", "wanda", "magnitude")
"""Methods of the summary."""
MODELS = {
    "smolav": "SmolAV",
    "smollm2": "SmolLM2",
    "smollm2_elsewhere": "SmolLM2, other kinds of text",
    "box": "demo model",
}
"""In the order of the summary, and what it calls them."""
FIRST, VERSUS, TABLES = (
    "| model | preset |",
    "| the preset against |",
    "![accuracy and NLL against sparsity]",
)
"""Where the two tables begin, and what follows all tables of docs/benchmarks.md."""
MARKS = {1: " *", 2: " **"}
"""Of cells with so many seeds."""


def summary(found: Sequence[Block]) -> str:
    """Return what each method retains and its NLL, a row for each model and setting."""
    head = ("model", *("preset" if name == OURS else METHODS[name].title for name in SUMMARY))
    rows = []
    for model, title in MODELS.items():
        for block in found:
            by_method = {row.method: row for row in block.rows}
            if block.model == model and any(name in by_method for name in SUMMARY):
                cells = (_cell(by_method.get(name)) for name in SUMMARY)
                rows.append((f"{title}, {setting_label(block.setting)}", *cells))
    return "\n".join(as_markdown(head, rows)).rstrip()


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    mark = MARKS.get(len(row.seeds), "")
    return f"{100 * row.kept.value:.1f} % / {row.nll.value:.3f}{mark}"


def render(quality: str, benchmarks: str, cells: Sequence[Cell]) -> tuple[str, str]:
    """Return both pages with the tables of the cells in the place of theirs."""
    found = blocks(cells)
    tables = markdown(found).rstrip()
    versus = tables.partition("\n\n")[0]
    quality = _replace(quality, FIRST, "\n\n", summary(found))
    quality = _replace(quality, VERSUS, "\n\n", versus)
    return quality, _replace(benchmarks, VERSUS, f"\n\n{TABLES}", tables)


def _replace(page: str, begin: str, end: str, text: str) -> str:
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the page has no part from {begin!r} to {end!r}")
    return before + text + ended + after


if __name__ == "__main__":
    first, second = QUALITY.read_text(encoding="utf-8"), BENCHMARKS.read_text(encoding="utf-8")
    texts = render(first, second, load_folder(RESULTS))
    for page, text in zip((QUALITY, BENCHMARKS), texts, strict=True):
        page.write_text(text, encoding="utf-8")
        print(f"wrote {page.relative_to(ROOT)}")
