"""Shared by the tests of the package and of the benchmarks. The serving tests run without
llm-compressor, so nothing here imports it."""

from __future__ import annotations

import os
import random

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def seed_everything() -> None:
    """Start every test from the same random state."""
    import torch

    random.seed(0)
    torch.manual_seed(0)
