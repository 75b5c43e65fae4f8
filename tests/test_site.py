"""The documentation site: its navigation, the pages made from code, and what it may ask for.

`make docs`, part of `make check`, builds the whole and is strict about links and anchors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from devtools.docs_site.api_page import SECTIONS
from devtools.docs_site.cli_page import cli_page
from devtools.docs_site.diagram import flowchart
from devtools.docs_site.hooks import MADE
from devtools.docs_site.markdown import for_site
from devtools.docs_site.outside import outside_requests
from devtools.docs_site.pages import OUTSIDE_DOCS, ROOT
from tamp_modifier.cli import build_parser


def pages_of(nav: Any) -> list[str]:
    """All pages that a navigation names, in order."""
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in pages_of(entry)]


def test_the_navigation_names_every_page_once() -> None:
    text = re.sub(r"!!python/\S+ \{.*\}", "null", (ROOT / "mkdocs.yml").read_text())
    named = pages_of(yaml.safe_load(text)["nav"])
    docs = ROOT / "docs"
    written = {str(path.relative_to(docs)) for path in docs.rglob("*.md")}
    assert len(named) == len(set(named))
    assert set(named) == {*written, *OUTSIDE_DOCS, *MADE}
    assert all((ROOT / path).is_file() for path in OUTSIDE_DOCS.values())
    assert not written & {*OUTSIDE_DOCS, *MADE}


def test_the_page_of_the_command_line_has_every_command_and_option() -> None:
    page = cli_page()
    parser = build_parser()
    commands = next(action.choices for action in parser._actions if action.choices)
    for name, command in dict(commands).items():
        section = page.split(f"\n## tamp {name}\n")[1].split("\n## ")[0]
        for action in command._actions:
            for option in set(action.option_strings) - {"-h", "--help"}:
                assert f"| `{option}" in section, f"tamp {name} {option}"
    assert "docs/data.md" not in page and "[data](../data.md)" in page


def test_public_names_are_there() -> None:
    for name in (name for section in SECTIONS for name in section.names):
        module, _, attribute = name.rpartition(".")
        assert hasattr(__import__(module, fromlist=[attribute]), attribute), name


def test_links_lead_to_pages_of_the_site_or_become_text() -> None:
    text = (
        "[quality](docs/quality.md#summary), [recipes/](recipes/README.md), "
        "![a](docs/figures/quality.png), [licence](LICENSE), [`setup.py`](setup.py), "
        "[web](https://a.b/c.md), [here](#there)"
    )
    assert for_site("index.md", text) == (
        "[quality](quality.md#summary), [recipes/](recipes.md), ![a](figures/quality.png),"
        " licence (`LICENSE`), `setup.py`, [web](https://a.b/c.md), [here](#there)"
    )
    assert for_site("results/smolav.md", "[a](../../docs/data.md)") == "[a](../data.md)"
    assert for_site("choosing.md", "[a](../recipes/README.md)") == "[a](recipes.md)"
    assert for_site("data.md", "```text\n[a](../LICENSE)\n```") == "```text\n[a](../LICENSE)\n```"


def test_blocks_inside_a_list_get_the_indentation_that_they_need() -> None:
    text = "- one\n  more\n\n  | a |\n  |---|\n  | b |\n\n  text\n- two\n\nafter\n\n  three"
    assert for_site("data.md", text) == (
        "- one\n  more\n\n    | a |\n    |---|\n    | b |\n\n    text\n- two\n\nafter\n\n  three"
    )


def test_a_flowchart_is_drawn_with_all_boxes_and_arrows() -> None:
    drawn = flowchart("flowchart LR\n  A[one] --> B[two<br>more] --> C\n  A --> C[last <b>]\n")
    assert re.findall(r">([^<>]+)</text>", drawn) == ["one", "two", "more", "last &lt;b&gt;"]
    assert drawn.count("<rect") == 3 and drawn.count('class="edge"') == 3
    assert "\n" not in drawn
    for text in ("graph TD\n A --> B", "flowchart LR\n A --> B --> A", "flowchart LR\n A -.- B"):
        with pytest.raises(ValueError):
            flowchart(text)


@pytest.mark.parametrize(
    ("page", "asked"),
    [
        ('<script src="https://a.example/x.js"></script>', "https://a.example/x.js"),
        ('<link rel="preconnect" href="//a.example">', "//a.example"),
        ('<img src="HTTP://a.example/x.png">', "HTTP://a.example/x.png"),
        ("<style>@import 'https://a.example/x.css';</style>", "https://a.example/x.css"),
        ('<p style="background: url(//a.example/x)">', "//a.example/x"),
        ('<pre class="mermaid">graph</pre>', "https://unpkg.com"),
        ('<a href="https://a.example">text</a><script src="../x.js"></script>', None),
    ],
)
def test_what_a_page_would_fetch_from_another_host_is_found(
    tmp_path: Path, page: str, asked: str | None
) -> None:
    (tmp_path / "index.html").write_text(page)
    (tmp_path / "own.css").write_text("a { background: url(../x.png) }")
    assert outside_requests(tmp_path) == ([] if asked is None else [f"index.html: {asked}"])
    (tmp_path / "own.css").write_text('a { background: url("https://b.example/x.png") }')
    assert "own.css: https://b.example/x.png" in outside_requests(tmp_path)
