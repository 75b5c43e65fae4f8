"""Tells whoever listens how far a pruning run is."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

Listener = Callable[[str, int, int], None]
"""Called with the phase ("dense pass", "pruning"), how much of it is done, and of how much."""

_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call the listener for every step while the context is open."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(phase: str, done: int, total: int) -> None:
    """Tells all listeners."""
    for listener in _listeners:
        listener(phase, done, total)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the bars, logs and warnings of the libraries out of the demo's own progress bar."""
    # Imported before the redirection: loguru keeps the stream that it finds.
    from loguru import logger

    names = ("llmcompressor", "compressed_tensors", "tamp_modifier", "transformers")
    for name in names:
        logger.disable(name)
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        for name in names:
            logger.enable(name)


@contextlib.contextmanager
def library_silence(compressing: bool = True) -> Iterator[list[str]]:
    """Keep the libraries' bars, logs and warnings away; yields the list that our warnings go to.

    With ``TAMP_DEBUG`` set, everything is shown.

    Args:
        compressing: llm-compressor is used; it sets up its log when it is imported, so that has to
            happen first.
    """
    warnings: list[str] = []
    if os.environ.get("TAMP_DEBUG"):
        yield warnings
        return
    from loguru import logger

    from tamp_modifier.progress import quiet

    with quiet():
        if compressing:
            import tamp_modifier.modifier  # noqa: F401
        logger.enable("tamp_modifier")
        logger.remove()  # llm-compressor's, which would print our lines as they come
        sink = logger.add(
            lambda message: warnings.append(message.record["message"]),
            level="WARNING",
            filter="tamp_modifier",
        )
        try:
            yield warnings
        finally:
            with contextlib.suppress(ValueError):  # gone if a library set up its log anew
                logger.remove(sink)
