"""Check that another package still has the names that are relied on.

Imports nothing but the standard library: the tables of `upstream.names` and `vllm_plugin.names`
are both checked here, and live in environments of their own.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class UpstreamChanged(ImportError):
    """A package lacks names that are relied on; the message tells them all."""


@dataclass(frozen=True)
class Name:
    """A name of another package that is patched or reached into.

    Attributes:
        owner: the module, or an object in it after a colon: "package.module:Class".
        attribute: the attribute of the owner. It may be one that only instances have.
        signature: the parameters relied on, "" where it is not called: "(first, second, *, word)".
            Those before the star are taken by position and have these names; those after it by
            name. With "..." at the end it may have others that need a value, because these are
            passed on.
        seen: the version of the package that this was written for.
        why: what it is needed for.
        issue: where it is discussed upstream, "" if nowhere.
    """

    owner: str
    attribute: str
    signature: str
    seen: str
    why: str
    issue: str = ""

    @property
    def package(self) -> str:
        """Name of the package."""
        return self.owner.partition(":")[0].partition(".")[0]

    def __str__(self) -> str:
        return f"{self.owner.replace(':', '.')}.{self.attribute}"


def problem(name: Name) -> str:
    """Say in a few words what is wrong with a name; empty if nothing is."""
    module, _, path = name.owner.partition(":")
    try:
        owner = importlib.import_module(module)
        for part in path.split(".") if path else ():
            owner = getattr(owner, part)
    except Exception as error:  # a module may fail in any way when it is imported
        return f"{name} ({type(error).__name__}: {error})"
    if not _has(owner, name.attribute):
        return str(name)
    if not name.signature:
        return ""
    try:
        found = inspect.signature(getattr(owner, name.attribute))
    except (AttributeError, TypeError, ValueError) as error:
        return f"{name}{name.signature} ({error})"
    return "" if _fits(found, name.signature) else f"{name}{name.signature}, which is now {found}"


def problems(names: Iterable[Name]) -> str:
    """Say in one line what is wrong with names; empty if nothing is.

    Returns:
        Per package the version found, the names that are missing or take other arguments, and the
        versions that are known to have them.
    """
    wrong: dict[str, list[str]] = {}
    seen: dict[str, dict[str, None]] = {}
    for name in names:
        seen.setdefault(name.package, {})[name.seen] = None
        found = problem(name)
        if found:
            wrong.setdefault(name.package, []).append(found)
    return "; ".join(
        f"{package} {version(package)} lacks {', '.join(found)} "
        f"(tested with {package} {', '.join(seen[package])})"
        for package, found in wrong.items()
    )


@functools.cache
def require(names: tuple[Name, ...]) -> None:
    """Check names, once in a process if all are there.

    Raises:
        UpstreamChanged: names what is missing, the versions found and the versions tested.
    """
    found = problems(names)
    if found:
        raise UpstreamChanged(f"tamp-modifier relies on names that are missing: {found}")


def version(package: str) -> str:
    """Return the version that a package tells of itself."""
    try:
        return str(importlib.import_module(package).__version__)
    except (ImportError, AttributeError):
        return "(not installed)"


def _has(owner: Any, attribute: str) -> bool:
    """Whether an object, or what a class makes, has an attribute."""
    if hasattr(owner, attribute):
        return True
    if not isinstance(owner, type):
        return False
    return any(
        attribute in inspect.get_annotations(cls)
        or any(attribute in names for names in map(_names_used, vars(cls).values()))
        for cls in owner.__mro__
    )


def _names_used(member: Any) -> tuple[str, ...]:
    """Return the attributes that a method reads or sets, such as those that ``__init__`` makes."""
    function = inspect.unwrap(getattr(member, "__func__", member))  # of a classmethod
    return function.__code__.co_names if inspect.isfunction(function) else ()


def _fits(found: inspect.Signature, signature: str) -> bool:
    """Whether a function can be called as `Name.signature` says."""
    wanted = [part.strip() for part in signature.strip("()").split(",") if part.strip()]
    passes_others = "..." in wanted
    wanted = [part for part in wanted if part != "..."]
    star = wanted.index("*") if "*" in wanted else len(wanted)
    by_position, by_name = wanted[:star], wanted[star + 1 :]

    parameters = list(found.parameters.values())
    kinds = {p.kind for p in parameters}
    positional = [p.name for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD]
    nameable = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    others = [
        p
        for p in parameters
        if p.name not in {*by_position, *by_name}
        and p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    in_place = positional[: len(by_position)] == by_position or (
        inspect.Parameter.VAR_POSITIONAL in kinds
        and by_position[: len(positional)] == positional[: len(by_position)]
    )
    named = inspect.Parameter.VAR_KEYWORD in kinds or nameable >= set(by_name)
    return in_place and named and (passes_others or not others)
