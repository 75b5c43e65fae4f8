"""Every code block of the README runs, in order, in one folder, as a reader would run them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tamp_modifier import cli

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str | None = None) -> list[tuple[str, str]]:
    found = [(kind, text) for kind, text in BLOCK.findall((ROOT / "README.md").read_text())]
    return [block for block in found if language in (None, block[0])]


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path: Path) -> None:
    """Python blocks are run, YAML blocks are written to the file that their first line names, and
    `tamp` commands of shell blocks are run."""
    for kind, text in blocks():
        if kind == "yaml":
            name = text.splitlines()[0].removeprefix("# ")
            assert name.endswith(".yaml"), "a YAML block starts with the name of its file"
            (tmp_path / name).write_text(text)
        elif kind == "python":
            run([sys.executable, "-c", text], tmp_path)
        elif kind == "bash":
            for line in text.splitlines():
                if line.startswith("tamp "):
                    arguments = shlex.split(line)[1:]
                    run([sys.executable, "-m", "tamp_modifier.cli", *arguments], tmp_path)
        else:
            assert kind in ("mermaid", "text"), f"no test runs {kind} blocks"
    assert (tmp_path / "pruned" / "model.safetensors").is_file()
    assert (tmp_path / "figures" / "sparsity.png").is_file()


def run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make ([\w-]+)", "".join(text for _, text in blocks("bash")), re.M)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_to_files_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_tamp_commands_in_the_readme_are_known() -> None:
    parser = cli.build_parser()
    for _, text in blocks("bash"):
        for line in text.splitlines():
            if line.startswith("tamp "):
                parser.parse_args(shlex.split(line)[1:])
