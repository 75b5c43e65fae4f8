"""Shared by the tests of the package. The serving tests run without llm-compressor, so nothing here
imports it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

# tests/serving needs vLLM, everything else llm-compressor; the two never share an environment.
collect_ignore: list[str] = []
if importlib.util.find_spec("vllm") is None:
    collect_ignore.append("serving")


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Lines that loguru, llm-compressor's logger, writes during a test."""
    from loguru import logger

    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    yield lines
    logger.remove(sink)
