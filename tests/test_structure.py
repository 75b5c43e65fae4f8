"""Which room may know which: the rules of the design, read from all imports of the package.

Imports inside functions and for type checkers count, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "tamp_modifier"
MOST_TOP_FILES = 16

PURE = {"tokens", "diversity", "statistics", "masks", "permutation"}
"""The pure steps: modules at the top."""
PURE_ROOMS = {"selection", "allocation", "scores"}
LLM_COMPRESSOR = {"llmcompressor", "compressed_tensors"}

Edges = dict[str, dict[str, int]]
"""From an importing module to what it imports, with the line."""


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def _imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every module that is imported, by its full name, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"a relative import in line {node.lineno}"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module, node.lineno


ALL: Edges = {name: dict(reversed([*_imports(tree)])) for name, tree in TREES.items()}
OWN: Edges = {n: {to: line for to, line in e.items() if to in MODULES} for n, e in ALL.items()}


def room(module: str) -> str:
    """The folder that a module of ours is in, or its own name at the top; "" for the package."""
    return module.split(".")[1] if "." in module else ""


def reached(start: str) -> dict[str, str]:
    """All modules, foreign ones too, that an import of one leads to, and from where."""
    found: dict[str, str] = {}
    waiting = [start]
    while waiting:
        module = waiting.pop()
        for to in ALL.get(module, {}):
            if to not in found:
                found[to] = module
                waiting.append(to)
    return found


def top(module: str) -> str:
    """The package of a module."""
    return module.split(".")[0]


def cycles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The groups of nodes that lead to one another."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for to in graph.get(node, ()):
            if to not in index:
                visit(to)
                low[node] = min(low[node], low[to])
            elif to in stack:
                low[node] = min(low[node], index[to])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def edges_of(rooms: Iterable[str], banned: Iterable[str]) -> list[str]:
    """Imports in some rooms of banned ones: of ours by room, of others by package."""
    rooms, banned = set(rooms), set(banned)
    return [
        f"{module}:{line} imports {to}"
        for module, edges in ALL.items()
        if room(module) in rooms
        for to, line in edges.items()
        if (room(to) if top(to) == ROOT.name else top(to)) in banned
    ]


def test_there_are_few_files_at_the_top() -> None:
    files = sorted(path.name for path in ROOT.glob("*.py"))
    assert len(files) <= MOST_TOP_FILES, files


def test_no_module_imports_itself_in_a_circle() -> None:
    assert cycles(OWN) == []


def test_no_folder_imports_itself_in_a_circle() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    graph: dict[str, set[str]] = {folder: set() for folder in folders}
    for module, edges in OWN.items():
        if room(module) in folders:
            graph[room(module)] |= {room(to) for to in edges if room(to) in folders}
            graph[room(module)].discard(room(module))
    assert cycles(graph) == []


def test_the_pure_steps_and_rules_know_neither_calibration_nor_llm_compressor() -> None:
    """Neither by themselves nor through what they import."""
    for module in MODULES:
        if room(module) in PURE | PURE_ROOMS:
            found = reached(module)
            assert [
                f"{by} imports {to}"
                for to, by in found.items()
                if top(to) in LLM_COMPRESSOR or room(to) == "calibration"
            ] == [], f"of what {module} leads to"


def test_the_kernels_know_nothing_of_ours_but_themselves() -> None:
    strange = [
        f"{module}:{line} imports {to}"
        for module, edges in OWN.items()
        if room(module) == "sparse"
        for to, line in edges.items()
        if room(to) != "sparse"
    ]
    assert strange == []


def test_the_report_does_not_know_the_run() -> None:
    assert edges_of({"report"}, {"pruning", "calibration", "modifier"}) == []


def test_the_vllm_plugin_never_imports_llm_compressor() -> None:
    """Neither by itself nor through what it imports."""
    for module in MODULES:
        if room(module) == "vllm_plugin":
            found = reached(module)
            assert [
                f"{by} imports {to}" for to, by in found.items() if top(to) in LLM_COMPRESSOR
            ] == [], f"of what {module} leads to"


# -- only upstream assigns to what is not ours -----------------------------------------------------


def _foreign_names(tree: ast.Module) -> set[str]:
    """Names in a module that stand for modules, classes or functions of other packages."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                alias.asname or top(alias.name)
                for alias in node.names
                if top(alias.name) != ROOT.name
            }
        elif isinstance(node, ast.ImportFrom) and top(node.module or "") != ROOT.name:
            names |= {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(tree):  # oneshot: Any = Oneshot
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        value = getattr(node, "value", None)
        if isinstance(value, ast.Attribute | ast.Name) and _root(value) in names:
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def _root(node: ast.expr) -> str:
    """The first name of a chain of attributes and items."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def foreign_assignments(tree: ast.Module) -> list[int]:
    """Lines that assign to an attribute or item of something imported from elsewhere."""
    foreign = _foreign_names(tree)
    lines = []
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.Call) and _callee(node) in ("setattr", "delattr", "patch_attr"):
            targets = [ast.Attribute(node.args[0], "")]
        for target in targets:
            inside = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
            if any(
                isinstance(part, ast.Attribute | ast.Subscript) and _root(part) in foreign
                for part in inside
            ):
                lines.append(node.lineno)
    return lines


def _callee(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def test_only_upstream_assigns_to_what_is_not_ours() -> None:
    found = [
        f"{module}:{line}"
        for module, tree in TREES.items()
        if room(module) != "upstream"
        for line in foreign_assignments(tree)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("import a.b as c\nc.d.e = 1", [2]),
        ("from a import B\nB.c, d = 1, 2", [2]),
        ("from a import B\nsetattr(B, 'c', 1)", [2]),
        ("from a import B\nb: Any = B\nb.c += 1", [3]),
        ("import os\nos.environ['a'] = 'b'", [2]),
        ("from a import B\ndel B.c", [2]),
        ("from a import patch_attr, b\nwith patch_attr(b, 'c', d): pass", [2]),
        ("from a import B\nb = B()\nb.c = 1", []),  # an object of our own
        ("from tamp_modifier import a\na.b = 1", []),
    ],
)
def test_what_counts_as_an_assignment_to_what_is_not_ours(code: str, lines: list[int]) -> None:
    assert foreign_assignments(ast.parse(code)) == lines


def test_what_counts_as_a_circle() -> None:
    assert cycles({"a": ["b"], "b": ["c"], "c": ["b", "d"]}) == [["b", "c"]]
