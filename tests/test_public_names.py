"""Tests go through public names of the package, so that its insides can change without them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def private_names(source: str) -> list[str]:
    """Private names of tamp_modifier that a test imports, reads or patches."""
    tree = ast.parse(source)
    found, ours = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tamp_modifier"):
            names = {alias.name for alias in node.names}
            ours |= {alias.asname or alias.name for alias in node.names}
            found += [name for name in names if is_private(name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner, name = node.value.id, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "getattr")):
            owner, name = [ast.unparse(part).strip("'") for part in node.args[:2]]
            if owner.startswith("tamp_modifier."):  # setattr("tamp_modifier.x._y", value)
                owner, _, name = owner.rpartition(".")
        else:
            continue
        if is_private(name) and owner.split(".")[0] in {*ours, "tamp_modifier"}:
            found.append(f"{owner}.{name}")
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize(
    "code",
    [
        "from tamp_modifier.sparse.ops import _check",
        "from tamp_modifier.sparse import ops\nops._check(1)",
        "from tamp_modifier.sparse import ops\npatch.setattr(ops, '_check', 1)",
        "patch.setattr('tamp_modifier.sparse.ops._check', 1)",
    ],
)
def test_each_way_into_a_private_name_is_found(code: str) -> None:
    (name,) = private_names(code)
    assert name.endswith("_check")


def test_no_test_reaches_into_private_names_of_the_package() -> None:
    found = {
        path.relative_to(TESTS).as_posix(): names
        for path in sorted(TESTS.rglob("*.py"))
        if (names := private_names(path.read_text()))
    }
    assert found == {}
