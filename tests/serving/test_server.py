"""A real OpenAI-compatible server on 127.0.0.1, started with the command of the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.serving.harness import Server, serve


@pytest.fixture(scope="module", params=["box", "box-packed"])
def server(
    request: pytest.FixtureRequest, checkpoints: dict[str, Path], work: Path
) -> Iterator[Server]:
    """A server of the pruned model in the box, dense with zeros on disk and packed."""
    folder = work / f"server-{request.param}"
    with serve(checkpoints[request.param], folder) as running:
        yield running


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
