"""What a built site would fetch from other hosts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

REMOTE = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
CSS = re.compile(r"(?:url\(\s*|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)", re.IGNORECASE)
FETCHED = ("src", "srcset", "poster", "data", "action")
"""Attributes whose address is asked for without a click; of a link element, ``href`` is too."""
ON_DEMAND = {"mermaid": "https://unpkg.com"}
"""Classes of elements for which the theme's script loads something, and from where."""


def outside_requests(folder: Path) -> list[str]:
    """Return a line for each address on another host that a page or style sheet asks for.

    Links to click are not counted.

    Args:
        folder: the built site.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".html":
            addresses = _of_page(path.read_text(encoding="utf-8"))
        elif path.suffix == ".css":
            addresses = iter(CSS.findall(path.read_text(encoding="utf-8")))
        else:
            continue
        found += [f"{path.relative_to(folder)}: {address}" for address in addresses]
    return found


def _of_page(html: str) -> Iterator[str]:
    page = _Page()
    page.feed(html)
    yield from page.addresses


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self._style = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        for name, value in attributes:
            asked = name in FETCHED or (name, tag) == ("href", "link")
            if asked and value and REMOTE.match(value):
                self.addresses.append(value)
            if name == "style" and value:
                self.addresses += CSS.findall(value)
            if name == "class" and value:
                self.addresses += [ON_DEMAND[kind] for kind in value.split() if kind in ON_DEMAND]

    def handle_data(self, data: str) -> None:
        if self._style:
            self.addresses += CSS.findall(data)
            self._style = False
