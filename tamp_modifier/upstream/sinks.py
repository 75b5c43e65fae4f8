"""Hide loguru's sinks for a while.

loguru's public functions add sinks and delete them; a sink that is deleted is closed and cannot be
added again. Its log files and those of the user are therefore set aside, unseen and untouched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tamp_modifier.upstream.check import require
from tamp_modifier.upstream.names import LOGURU


@contextmanager
def hidden_sinks() -> Iterator[None]:
    """Let no sink that there is get a message while the block runs.

    Sinks that are added inside work as usual and stay until they are removed.

    Raises:
        UpstreamChanged: this loguru keeps its sinks elsewhere.
    """
    require(LOGURU)
    from loguru import logger

    core: Any = logger._core  # type: ignore[attr-defined]
    with core.lock:
        hidden, core.handlers, core.min_level = core.handlers, {}, float("inf")
    try:
        yield
    finally:
        with core.lock:
            core.handlers = hidden | core.handlers
            levels = (handler.levelno for handler in core.handlers.values())
            core.min_level = min(levels, default=float("inf"))
