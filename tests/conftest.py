"""Shared by all tests. The serving tests run without llm-compressor, so nothing here imports it."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# tests/serving needs vLLM, everything else llm-compressor; the two never share an environment.
collect_ignore: list[str] = []
if importlib.util.find_spec("vllm") is None:
    collect_ignore.append("serving")


@pytest.fixture(autouse=True)
def seed_everything() -> None:
    """Every test starts from the same random state."""
    import torch

    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Lines that loguru, llm-compressor's logger, writes during a test."""
    from loguru import logger

    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    yield lines
    logger.remove(sink)
