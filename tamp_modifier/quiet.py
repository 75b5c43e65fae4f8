"""Keep the output of the libraries away from the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _Gate(io.TextIOBase):
    """A standard stream that is shut for a while.

    A library that is imported meanwhile may keep the stream that it finds, as llm-compressor's log
    does. Afterwards it writes to what is then the standard stream.
    """

    def __init__(self, name: str) -> None:
        self.shut = True
        self._name = name

    def write(self, text: str) -> int:
        return len(text) if self.shut else getattr(sys, self._name).write(text)

    def flush(self) -> None:
        if not self.shut:
            getattr(sys, self._name).flush()


@contextmanager
def _quiet_streams() -> Iterator[None]:
    """Shut the standard streams, and keep Python's own logs and warnings away."""
    out, err = _Gate("stdout"), _Gate("stderr")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        out.shut = err.shut = False


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the bars, logs and warnings of the libraries out of the demo's own progress bar."""
    from tamp_modifier.upstream.sinks import hidden_sinks

    with hidden_sinks(), _quiet_streams():
        yield


@contextmanager
def library_silence(compressing: bool = True) -> Iterator[list[str]]:
    """Keep the libraries' bars, logs and warnings away; yields the list that our warnings go to.

    loguru's sinks are as before when the block ends. With ``TAMP_DEBUG`` set, everything is shown.

    Args:
        compressing: llm-compressor is used; it sets up its log when it is imported, so that has to
            happen first.

    Raises:
        ImportError: llm-compressor is needed and not installed.
    """
    found: list[str] = []
    if os.environ.get("TAMP_DEBUG"):
        yield found
        return
    from loguru import logger

    from tamp_modifier.upstream.sinks import hidden_sinks

    with _quiet_streams():
        if compressing:
            from tamp_modifier import TAMPModifier  # noqa: F401
        with hidden_sinks():
            sink = logger.add(
                lambda message: found.append(message.record["message"]),
                level="WARNING",
                filter="tamp_modifier",
            )
            try:
                yield found
            finally:
                with contextlib.suppress(ValueError):  # gone if a library set up its log anew
                    logger.remove(sink)
