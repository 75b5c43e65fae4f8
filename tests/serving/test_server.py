"""A real OpenAI-compatible server on 127.0.0.1, started with the command of the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import QUESTIONS
from tests.serving.harness import Server, serve


@pytest.fixture(scope="module", params=["llava", "llava-packed"])
def server(
    request: pytest.FixtureRequest, checkpoints: dict[str, Path], work: Path
) -> Iterator[Server]:
    """A server of the LLaVA, dense with zeros on disk and packed."""
    folder = work / f"server-{request.param}"
    with serve(checkpoints[request.param], folder) as running:
        yield running


def test_text_and_pictures_are_answered_as_in_process(
    server: Server, pictures: list[Path], served: dict[str, dict[str, Any]]
) -> None:
    expected = [output["text"].split() for output in served["llava"]["outputs"]]
    texts = [server.chat(question, max_tokens=8) for question in QUESTIONS]
    pairs = zip(QUESTIONS, pictures, strict=True)
    seen = [server.chat(question, picture, max_tokens=8) for question, picture in pairs]
    assert [choice["message"]["content"].split() for choice in texts + seen] == expected


def test_requests_at_the_same_time_are_answered_alike(server: Server, pictures: list[Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(_: int) -> str:
        return server.chat(QUESTIONS[0], pictures[0], max_tokens=8)["message"]["content"]

    with ThreadPoolExecutor(4) as pool:
        answers = set(pool.map(ask, range(8)))
    assert len(answers) == 1
