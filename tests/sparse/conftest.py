"""The paths of this machine, for tests that run on each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tamp_modifier.sparse import native


@pytest.fixture
def use_path() -> Iterator[Callable[[str], None]]:
    """`native.use` for the duration of a test."""
    before = native.backend()
    yield native.use
    native.use(before)


@pytest.fixture(params=native.paths())
def path(request: pytest.FixtureRequest, use_path: Callable[[str], None]) -> str:
    """Each path of this machine in turn, in use."""
    use_path(request.param)
    return request.param
