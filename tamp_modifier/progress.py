"""Tell whoever listens how far a pruning run is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    """Tell all listeners."""
    for listener in _listeners:
        listener(phase, done, total)
