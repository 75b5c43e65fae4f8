"""A file of texts that a model makes up: what ``tamp generate`` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tamp_modifier.data import Generating, generate_texts
from tamp_modifier.files import only_writer, probe, whole_file
from tamp_modifier.workflows.models import load_config, load_processor, load_to_run


def write_texts(
    model: str,
    out: Path,
    generating: Generating,
    dtype: str = "auto",
    restart: bool = False,
    step: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Path:
    """Write rows ``{"text": ...}``, which ``tamp prune`` and ``tamp recover`` read.

    Batches are added to ``OUT.partial`` as they are made, so that a killed run goes on.

    Args:
        model: folder or name of the model.
        out: a ``.jsonl`` file that does not exist.
        generating: how many, and how.
        dtype: type of the weights; "auto" as in `models.load_to_run`.
        restart: forget what an earlier run has made.
        step: called with (phase, done, total).

    Raises:
        ValueError: `out` is taken or of another kind, an earlier run was of another model or other
            settings, or the model cannot be loaded.
        OSError: nothing can be written there.
    """
    if out.suffix != ".jsonl":
        raise ValueError(f"{out}: rows go into a file whose name ends in .jsonl")
    if out.exists():
        raise ValueError(f"{out} exists; give another file, or remove it")
    probe(out.absolute().parent)
    config, processor = load_config(model), load_processor(model)
    partial = out.with_name(f"{out.name}.partial")
    with only_writer(out):
        settings = {"model": model, "dtype": dtype, **asdict(generating)}
        rows = [] if restart else _rows(partial, settings)
        lines = [json.dumps(settings), *rows]
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        try:
            step("texts", len(rows), generating.samples)
            first = len(rows) // generating.batch_size
            loaded = load_to_run(model, config, dtype)
            for texts in generate_texts(loaded, processor, generating, first):
                made = [json.dumps({"text": text}) for text in texts]
                with open(partial, "a", encoding="utf-8") as file:
                    file.write("".join(f"{row}\n" for row in made))
                rows += made
                step("texts", len(rows), generating.samples)
        except BaseException as error:
            if not rows:
                partial.unlink()
            elif isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(
                    f"the texts so far are kept in {partial}: run the same command to resume, or "
                    "add --restart to start over"
                ) from None
            raise
        with whole_file(out) as whole:
            whole.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        partial.unlink()
    return out


def _rows(partial: Path, settings: dict[str, Any]) -> list[str]:
    """Return the rows of whole batches that an earlier run has made.

    Raises:
        ValueError: it had other settings.
    """
    if not partial.is_file():
        return []
    lines = partial.read_text(encoding="utf-8").split("\n")[:-1]  # the last may be cut off
    try:
        found = json.loads(lines[0])
    except (IndexError, ValueError):
        found = None
    if not isinstance(found, dict) or found.keys() != settings.keys():
        raise ValueError(f"{partial} is in the way and is not ours; move it, or add --restart")
    differ = [name for name in settings if found[name] != settings[name]]
    if differ:
        raise ValueError(
            f"{partial} was made with another {', '.join(differ)}; --restart forgets it"
        )
    rows = lines[1:]
    return rows[: len(rows) - len(rows) % settings["batch_size"]]
