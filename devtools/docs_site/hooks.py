"""What mkdocs calls while it builds the site; mkdocs.yml names this file.

mkdocs is imported where it is used: tests look at `MADE` where the extra docs is not installed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devtools.docs_site import api_page, cli_page, results_pages
from devtools.docs_site.markdown import for_site
from devtools.docs_site.outside import outside_requests
from devtools.docs_site.pages import OUTSIDE_DOCS, ROOT

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

MADE = {"reference/cli.md": cli_page.cli_page, **api_page.PAGES, **results_pages.PAGES}
"""Pages that no file of the repository holds, and what writes each."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of docs/, and those that are made from code and results."""
    from mkdocs.structure.files import File

    for page, path in OUTSIDE_DOCS.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text("utf-8")))
    for page, make in MADE.items():
        files.append(File.generated(config, page, content=make()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite what GitHub reads otherwise than the site."""
    if page.parent is None:  # no neighbours, so no list of them beside it
        page.meta["hide"] = ["navigation"]
    return markdown if page.file.src_uri in MADE else for_site(page.file.src_uri, markdown)


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Refuse a site that asks another host for anything."""
    found = outside_requests(Path(config.site_dir))
    if found:
        from mkdocs.exceptions import PluginError

        raise PluginError("the site would ask other hosts:" + os.linesep + os.linesep.join(found))
