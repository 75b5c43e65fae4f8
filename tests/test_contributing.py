"""What CONTRIBUTING.md, the issue forms, the hooks and the workflow name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_structure_names_every_folder_of_the_package_and_only_what_is_there() -> None:
    table = PAGE.split("## Structure")[1].split("## Checks")[0]
    cells = re.findall(r"^\| (`.*?`) \|", table, re.M)
    assert len(cells) == 11
    named = {name for cell in cells for name in re.findall(r"`(.+?)`", cell)}
    package = ROOT / "tamp_modifier"
    assert {name for name in named if not (package / name).exists()} == set()
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert folders - named == {"demo/"}


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make ([\w-]+)", PAGE, re.M))
    assert {"venv", "check", "test"} <= targets
    assert {t for t in targets if not re.search(rf"^{t}[ :]", makefile, re.M)} == set()


@pytest.mark.parametrize("name", ["bug", "model", "feature"])
def test_issue_forms_are_whole(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert form["name"] and form["description"]
    assert all(part["attributes"]["label"] for part in form["body"])
    assert any(part.get("validations", {}).get("required") for part in form["body"])


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert {"run": ".ci/run"} in job["steps"]
    assert "3.11" in [step.get("with", {}).get("python-version") for step in job["steps"]]


def test_hooks_use_the_tools_of_make_check() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    tools = {entry.split()[0].removeprefix(".venv/bin/") for entry in entries}
    check = (ROOT / "Makefile").read_text().split("\ncheck:")[1].split("\n\n")[0]
    assert {tool for tool in tools if f"$(BIN)/{tool}" not in check} == set()
