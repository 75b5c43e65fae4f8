"""A real OpenAI-compatible server on 127.0.0.1, started as ``make serve`` does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from devtools.vllm_process import ROOT
from tests.serving.harness import Server, serve
from tests.test_getting_started import question_block


@pytest.fixture(scope="module", params=["box", "box-packed"])
def server(
    request: pytest.FixtureRequest, checkpoints: dict[str, Path], work: Path
) -> Iterator[Server]:
    """A server of the pruned demo model, dense with zeros on disk and packed."""
    folder = work / f"server-{request.param}"
    with serve(checkpoints[request.param], folder) as running:
        yield running


def test_the_first_request_is_text_alone(
    server: Server, questions: list[dict[str, str]], served: dict[str, dict[str, Any]]
) -> None:
    """No picture has had a dense Linear ask for AMX before; see `tamp_modifier.sparse.amx`."""
    choice = server.chat(questions[100]["question"], max_tokens=8)
    expected = served["box"]["outputs"][100]["text"].split()
    assert "picture" not in questions[100] and choice["message"]["content"].split() == expected


def test_text_and_pictures_are_answered_as_in_process(
    server: Server, questions: list[dict[str, str]], served: dict[str, dict[str, Any]]
) -> None:
    expected = [output["text"].split() for output in served["box"]["outputs"]]
    asked = [*range(0, 10), *range(100, 110)]  # ten with a picture, ten without

    def ask(index: int) -> list[str]:
        entry = questions[index]
        picture = Path(entry["picture"]) if "picture" in entry else None
        choice = server.chat(entry["question"], picture, max_tokens=8)
        assert len(choice["logprobs"]["content"]) > 0
        return choice["message"]["content"].split()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, asked)) == [expected[index] for index in asked]


def test_the_documented_question_is_answered(
    server: Server,
    questions: list[dict[str, str]],
    served: dict[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    entry, output = questions[0], served["box"]["outputs"][0]
    lines = ask(server, tmp_path, entry["question"], "--picture", entry["picture"])
    assert lines[-1].split() == ["answer:", *output["text"].split()]
    # As `make ask` runs it; the picture is drawn and kept.
    *_, answer, right = ask(server, tmp_path)
    assert answer.startswith("answer: ") and right.startswith("right answer: ")
    assert (tmp_path / "output" / "question.png").is_file()


def test_the_question_of_the_page_on_getting_started_is_answered(
    server: Server,
    questions: list[dict[str, str]],
    served: dict[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    row = {"question": questions[0]["question"], "image": questions[0]["picture"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row) + "\n")
    block = question_block()
    assert "http://127.0.0.1:8000/v1" in block
    done = subprocess.run(
        [sys.executable, "-c", block.replace("http://127.0.0.1:8000", server.url)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer = served["box"]["outputs"][0]["text"]
    assert done.stdout.split() == [*row["question"].split(), *answer.split()]


def ask(server: Server, folder: Path, *options: str) -> list[str]:
    """Lines that the example prints."""
    script = str(ROOT / "examples" / "serving" / "ask.py")
    done = subprocess.run(
        [sys.executable, script, "--url", f"{server.url}/v1", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
