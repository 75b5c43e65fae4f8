"""Markdown as GitHub shows it, rewritten for Python-Markdown and for the paths of the site."""

from __future__ import annotations

import re
from collections.abc import Iterator

from devtools.docs_site.diagram import flowchart
from devtools.docs_site.pages import link_target

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?://|#|mailto:)([^)\s]+)\)")
FENCE = re.compile(r"^( *)(`{3,})(.*)$")
ITEM = re.compile(r"^ *([-*+]|\d+\.) ")
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)


def for_site(page: str, text: str) -> str:
    """Return the Markdown of a page for the site.

    Args:
        page: path of the page in the site.
        text: its Markdown in the repository.
    """
    lines: list[str] = []
    for fenced, block in _blocks(FRONT_MATTER.sub("", text)):
        if not fenced:
            lines += _nested(with_site_links(page, "\n".join(block)).split("\n"))
        elif block[0].strip() == "```mermaid":
            lines += flowchart("\n".join(block[1:-1])).split("\n")
        else:
            lines += block
    return "\n".join(lines)


def with_site_links(page: str, text: str) -> str:
    """Return text without a code block, with links that lead to pages of the site.

    A link to a file that the site lacks becomes its text and, where the text does not say it, the
    file's path.
    """

    def link(found: re.Match[str]) -> str:
        picture, label, target = found.groups()
        there, path = link_target(page, target)
        if there:
            return f"{picture}[{label}]({there})"
        plain = label.replace("`", "").rstrip("/")
        return f"`{path}`" if plain in path else f"{label} (`{path}`)"

    return LINK.sub(link, text)


def _blocks(text: str) -> Iterator[tuple[bool, list[str]]]:
    """Yield the lines of each code block with its fences, and those between two."""
    block: list[str] = []
    fence = ""
    for line in text.split("\n"):
        found = FENCE.match(line)
        if not fence and found:
            if block:
                yield False, block
            block, fence = [line], found[2]
        elif fence and found and found[2].startswith(fence) and not found[3].strip():
            yield True, [*block, line]
            block, fence = [], ""
        else:
            block.append(line)
    if block:
        yield bool(fence), block


def _nested(lines: list[str]) -> list[str]:
    """Lines with paragraphs and tables of a list's item at the four spaces that they need here."""
    result: list[str] = []
    in_list = inside = False
    previous = ""
    for line in lines:
        indent = len(line) - len(line.lstrip(" "))
        if line.strip():
            if not previous.strip():  # a new paragraph
                in_list = bool(ITEM.match(line)) or (in_list and indent >= 2)
                inside = in_list and indent in (2, 3) and not ITEM.match(line)
            elif ITEM.match(line):
                in_list, inside = True, False
        result.append(" " * (4 - indent) + line if inside and 0 < indent < 4 else line)
        previous = line
    return result
