"""What a release promises: tested versions, extras, the Pythons of the matrix."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from devtools import constraints, matrix

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # of pytest's company on 3.10

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CLASSIFIERS: list[str] = PROJECT["classifiers"]


def versions(extra: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / f"{extra}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("name", constraints.COMPLETE)
def test_tested_versions_are_those_that_the_extras_ask_for(name: str) -> None:
    found = versions(name)
    asked = [line for extra in constraints.COMPLETE[name] for line in EXTRAS[extra]]
    for line in PROJECT["dependencies"] + asked:
        requirement = Requirement(line)
        package = constraints.canonical(requirement.name)
        assert requirement.specifier.contains(found[package], prereleases=True), line


@pytest.mark.parametrize("extra", constraints.COMPLETE)
def test_tested_versions_fit_every_machine(extra: str) -> None:
    """No hosts, no paths, no local labels: a name and a version a line, sorted."""
    lines = (ROOT / "constraints" / f"{extra}.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    names = [line.partition("==")[0] for line in pinned]
    assert names == sorted(names)
    for line in pinned:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line


def test_constraints_are_what_an_extra_draws_in() -> None:
    found = constraints.closure("tamp-modifier", frozenset(["compress"]))
    assert {"torch", "llmcompressor", "transformers", "pydantic"} <= found.keys()
    assert "ruff" not in found and "tamp-modifier" not in found and "+" not in found["torch"]


def test_what_the_readme_installs_is_an_extra() -> None:
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r'pip install "\.\[([\w-]+)\]"', readme)) == {"compress", "serve"}
    assert {"compress", "serve", "serve-cpu"} <= EXTRAS.keys()
    for path in re.findall(r"constraints/[\w-]+\.txt", readme):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("extra", ["serve", "serve-cpu"])
def test_extras_for_serving_add_nothing_on_a_python_that_vllm_does_not_run_on(extra: str) -> None:
    (line,) = EXTRAS[extra]
    marker = Requirement(line).marker
    assert marker is not None
    assert not marker.evaluate({"python_version": "3.10"})
    assert marker.evaluate({"python_version": "3.11"})


def test_the_matrix_has_every_python_of_the_metadata() -> None:
    named = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", c) for c in CLASSIFIERS]
    assert tuple(match[1] for match in named if match) == matrix.VERSIONS
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert all(allowed.contains(version) for version in matrix.VERSIONS)


def test_a_python_is_found_by_its_version_and_one_that_is_not_there_is_not() -> None:
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = matrix.find(here)
    assert found is None or found.exists()  # a virtual environment may hide the one it is of
    assert matrix.find("3.99") is None
    passed, said = matrix.run("3.99", matrix.TORCH, [])
    assert passed and said.startswith("not tested")
