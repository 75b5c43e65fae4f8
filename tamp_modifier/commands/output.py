"""What several commands print: sizes, and a progress bar over the tensors of a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


def mebibytes(size: int) -> str:
    """A size in MiB with three digits or so."""
    return f"{size / 2**20:,.{1 if size >= 10 << 20 else 2}f}"


@contextlib.contextmanager
def shard_progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error; yields what to call with (tensor name, shard, number of shards)."""
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
