"""Every code block of the README runs, in order, in one folder, as a reader would run them."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tamp_modifier import cli
from tamp_modifier.demo.evaluation import MODEL_FOLDER
from tests.data.files import asked, jsonl, picture

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str | None = None) -> list[tuple[str, str]]:
    found = [(kind, text) for kind, text in BLOCK.findall((ROOT / "README.md").read_text())]
    return [block for block in found if language in (None, block[0])]


STANDS_FOR = {"MODEL": str(MODEL_FOLDER), "--minutes 60": "--tokens 400"}
"""What a reader replaces, and what takes too long."""

DATA = ("calibration.jsonl", "questions.jsonl", "training.jsonl")


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path: Path) -> None:
    """Python blocks and the `tamp` commands of shell blocks are run, with data of the reader's."""
    for number in range(4):
        picture(tmp_path / f"{number}.png", (60 + 20 * number, 50), 60 * number)
    rows = [asked(("image", f"{number % 4}.png"), question="what is it ?") for number in range(10)]
    for name in DATA:
        jsonl(tmp_path / name, rows)
    for kind, text in blocks():
        if kind == "python":
            run([sys.executable, "-c", text], tmp_path)
        elif kind == "bash":
            for arguments in tamp_commands(text):
                run([sys.executable, "-m", "tamp_modifier.cli", *arguments], tmp_path)
        else:
            assert kind == "mermaid", f"no test runs {kind} blocks"
    for folder in ("pruned", "pruned-model", "recovered"):
        assert (tmp_path / folder / "model.safetensors").is_file(), folder
    assert (tmp_path / "figures" / "sparsity.png").is_file()


def tamp_commands(text: str) -> list[list[str]]:
    """The arguments of each `tamp` command of a shell block."""
    for shown, taken in STANDS_FOR.items():
        text = text.replace(shown, taken)
    lines = [line for line in text.splitlines() if line.startswith("tamp ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


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


def test_pages_install_from_the_clone() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for command in re.findall(r"^.*pip install .*$", page.read_text(), re.MULTILINE):
            assert "tamp-modifier[" not in command, f"{page.name}: {command}"


def test_tamp_commands_in_the_readme_are_known() -> None:
    parser = cli.build_parser()
    for _, text in blocks("bash"):
        for arguments in tamp_commands(text):
            parser.parse_args(arguments)


def test_a_reader_is_led_to_the_first_steps_and_to_the_preset() -> None:
    assert "](docs/getting-started.md)" in (ROOT / "README.md").read_text()
    for page in ("README.md", "docs/getting-started.md", "docs/choosing.md"):
        written = re.search(r"^tamp prune .*--output.*", (ROOT / page).read_text(), re.MULTILINE)
        assert written and "--preset best" in written[0], page


def test_a_reader_sees_the_whole_readme() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_page_of_a_package_index_has_no_link_that_breaks() -> None:
    index_page = runpy.run_path(str(ROOT / "setup.py"))["index_page"]
    readme = (ROOT / "README.md").read_text()
    page = index_page(readme)
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert targets and all(target.startswith("https://") for target in targets), targets
    assert (
        "(quality, docs/quality.md)." in page
        and "choosing (docs/choosing.md) with" in page
        and "whole table (docs/quality.md)" in page
    )
    assert "![" not in page and "\n\n\n" not in page
    assert index_page("[a](https://b)\n![c](https://d)\n") == "[a](https://b)\n![c](https://d)\n"
    assert BLOCK.findall(page) == [
        block for block in BLOCK.findall(readme) if block[0] != "mermaid"
    ]
