"""The pages on quality show the committed cells."""

from __future__ import annotations

import pytest

from benchmarks.quality.cells import load_folder
from devtools import quality_page


def test_the_pages_have_the_tables_of_the_committed_cells() -> None:
    quality, benchmarks = quality_page.QUALITY.read_text(), quality_page.BENCHMARKS.read_text()
    cells = load_folder(quality_page.RESULTS)
    assert quality_page.render(quality, benchmarks, cells) == (quality, benchmarks)


def test_a_page_without_its_table_is_refused() -> None:
    cells = load_folder(quality_page.RESULTS)
    with pytest.raises(ValueError, match=r"no part from '\| model \| preset \|'"):
        quality_page.render("# Quality\n", "", cells)
