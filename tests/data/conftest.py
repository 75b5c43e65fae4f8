"""The demo model, shared by the tests in which a model writes."""

from __future__ import annotations

from typing import Any

import pytest

from tamp_modifier.demo.evaluation import load_model, load_processor


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model()


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor()
