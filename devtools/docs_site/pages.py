"""Which file of the repository is which page of the site."""

from __future__ import annotations

import posixpath
from pathlib import Path

ROOT = Path(__file__).parents[2]

OUTSIDE_DOCS = {
    "index.md": "README.md",
    "recipes.md": "recipes/README.md",
    "examples.md": "examples/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "results/smolav.md": "benchmarks/smolav/README.md",
    "results/demo-model.md": "tamp_modifier/demo/model/README.md",
}
"""Pages of the site that are files outside of docs/."""

_SITE_PAGES = {path: page for page, path in OUTSIDE_DOCS.items()}


def repository_path(page: str) -> str:
    """Return the path in the repository of a page of the site."""
    return OUTSIDE_DOCS.get(page, f"docs/{page}")


def site_path(path: str) -> str | None:
    """Return the path in the site of a file of the repository; None if the site has none."""
    if path in _SITE_PAGES:
        return _SITE_PAGES[path]
    inside = path.removeprefix("docs/")
    return inside if inside != path and (ROOT / path).is_file() else None


def link_target(page: str, link: str) -> tuple[str, str]:
    """Return where a relative link of a page leads.

    Args:
        page: path of the page in the site.
        link: as it stands in the Markdown, relative to the page's file in the repository.

    Returns:
        The link as the site needs it, empty where the site has no such file, and the path of the
        target in the repository.
    """
    path, mark, anchor = link.partition("#")
    here = posixpath.dirname(repository_path(page))
    target = posixpath.normpath(posixpath.join(here, path))
    found = site_path(target)
    if found is None:
        return "", target
    return posixpath.relpath(found, posixpath.dirname(page) or ".") + mark + anchor, target
