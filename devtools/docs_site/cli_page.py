"""The page of the command line, from the parsers of ``tamp``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from tamp_modifier.cli import build_parser

HEAD = """# Command line

`tamp COMMAND --help` prints the same. Exit status: 0 done, 1 the run failed, 2 wrong arguments,
130 interrupted. A failure is one line on standard error; `TAMP_DEBUG=1` shows the traceback as
well.
"""
PAGES = {
    name: f"docs/{name}.md" for name in ("choosing", "data", "evaluation", "recovery", "scale")
}
"""Pages that help texts name by their path."""


def cli_page() -> str:
    """Return the Markdown: a section for each command, in the order of ``tamp --help``."""
    parser = build_parser()
    parts = [HEAD, "| command | what it does |", "|---|---|"]
    parsers = dict(_commands(parser))
    for name, (short, _) in parsers.items():
        parts.append(f"| [`tamp {name}`](#tamp-{name}) | {_cell(short)} |")
    for name, (_, command) in parsers.items():
        parts += ["", f"## tamp {name}", "", *_section(command)]
    return "\n".join(parts) + "\n"


def _commands(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[str, tuple[str, argparse.ArgumentParser]]]:
    """Each command with its line of help and its parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            shorts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                yield name, (shorts[name], command)


def _section(parser: argparse.ArgumentParser) -> list[str]:
    formatter = argparse.HelpFormatter(parser.prog, width=78)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    lines = [
        _text(parser.description or ""),
        "",
        "```text",
        *formatter.format_help().strip().split("\n"),
        "```",
        "",
    ]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions:
            title = str(group.title)
            lines += [f"| {_text(title[0].upper() + title[1:])} | |", "|---|---|"]
            lines += [
                f"| {_names(action)} | {_cell(formatter._expand_help(action))} |"
                for action in actions
            ]
            lines.append("")
    return lines


def _names(action: argparse.Action) -> str:
    """Return what one types, with the placeholder of its value."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = ""
    if action.nargs != 0:
        value = str(action.metavar or action.dest.upper())
        if action.choices is not None:
            value = "{" + ",".join(map(str, action.choices)) + "}"
        if action.nargs == "+":
            value += " ..."
    return ", ".join(f"`{option} {value}`".replace(" `", "`") for option in action.option_strings)


def _text(text: str) -> str:
    """Help text as Markdown: names of pages become links, options and placeholders code."""
    for name, path in PAGES.items():
        text = text.replace(path, f"[{name}](../{name}.md)")
    return re.sub(r"(?<![\w`-])--[a-z][a-z-]*|\b[A-Z]{3,}\b(?=[ ,.])", _code, text)


def _code(found: re.Match[str]) -> str:
    word = found[0]
    return f"`{word}`" if word.startswith("--") or word in ("DATA", "OUT", "DIR", "MODEL") else word


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|").replace("<", "&lt;")
