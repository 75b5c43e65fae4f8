"""What several commands print: progress over the tensors of a checkpoint, and by phase."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def shard_progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a bar on standard error; yields what to call with (tensor name, shard, number of
    shards).
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # a line of its own for each error, and nothing else
    ) as progress:
        task = progress.add_task("", total=None)

        def step(name: str, shard: int, shards: int) -> None:
            progress.update(task, description=name, completed=shard, total=shards)

        yield step


@contextlib.contextmanager
def phases() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar a phase on standard error; yields what to call with (phase, steps done, steps)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    # The stream of now: the libraries' own output is redirected later.
    console = Console(file=sys.stderr)
    tasks: dict[str, Any] = {}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:

        def end(done: bool) -> None:
            """Stop the bar of the last phase: full where it is done, and where it was otherwise."""
            for name, task in list(tasks.items())[-1:]:
                found = progress.tasks[task]
                total = found.total or found.completed or 1
                progress.update(task, total=total, completed=total if done else found.completed)
                progress.stop_task(task)
                if not done:
                    progress.update(task, description=f"{name}: stopped")

        def step(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                end(True)  # a phase begins when the one before it is over
                tasks[phase] = progress.add_task(phase, total=None)
            progress.update(tasks[phase], completed=done, total=total or None)

        try:
            yield step
        except BaseException:
            end(False)
            raise
        end(True)
