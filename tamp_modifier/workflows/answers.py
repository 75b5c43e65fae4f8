"""Have the dense model answer the questions of the data, once: answers are kept in a file.

The file is ``tamp-modifier/answers/DIGEST.jsonl`` in the user's folder for caches
(``XDG_CACHE_HOME``, by default ``~/.cache``). The digest is that of the model: its config and the
names, sizes and times of its weight files. A line is one answer, by the digest of its question and
of the settings. A line is written as soon as its answer is there, so that a killed run goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamp_modifier.data import (
    Answering,
    BadRows,
    Conversation,
    DataError,
    Encoded,
    Encoder,
    answer_all,
    with_answer,
)
from tamp_modifier.workflows.models import load_to_run


@dataclass(frozen=True)
class Asked:
    """The model that answers.

    Attributes:
        model: folder or name of the model.
        config: its config.
        processor: its processor or tokenizer.
        encoder: encodes the questions.
        dtype: type of the weights; "auto" as in `models.load_to_run`.
        loaded: the model, where it is loaded already; its answers are not kept in a file.
    """

    model: str
    config: Any
    processor: Any
    encoder: Encoder
    dtype: str = "auto"
    loaded: Any = None

    def load(self) -> Any:
        """Return the model, loaded now unless it is already."""
        if self.loaded is not None:
            return self.loaded
        return load_to_run(self.model, self.config, self.dtype)


def answered(
    asked: Asked,
    rows: Sequence[Conversation],
    answering: Answering,
    bad: BadRows,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Conversation]:
    """Return the conversations with the model's own answers, new ones and those kept in the file.

    Args:
        asked: the model; loaded for the time of the answers, unless all are in the file.
        rows: the questions.
        answering: how answers are generated.
        bad: takes note of questions that cannot be encoded, as many as it tolerates.
        step: called after every question with how many are answered, and of how many.

    Raises:
        DataError: one more than tolerated cannot be asked, or none can.
        ValueError: the model cannot be loaded.
        OSError: the file of answers cannot be written.
    """
    rows, questions = _encodable(asked.encoder, rows, bad)
    cache: MutableMapping[str, str] = {}
    if asked.loaded is None:  # which weights a loaded model has, nobody can tell
        file = cache_folder() / f"{model_digest(asked.model, asked.config)}.jsonl"
        cache = AnswerFile(file)
    try:
        answers = answer_all(asked.load, asked.processor, questions, answering, cache, step)
    except KeyboardInterrupt:
        if not cache or asked.loaded is not None:
            raise
        raise KeyboardInterrupt(
            f"the answers so far are kept in {file}: run the same command to resume"
        ) from None
    return [with_answer(row, answer) for row, answer in zip(rows, answers, strict=True)]


def _encodable(
    encoder: Encoder, rows: Sequence[Conversation], bad: BadRows
) -> tuple[list[Conversation], list[Encoded]]:
    """Return the rows that can be asked, and what is asked, before the model is loaded."""
    kept, questions = [], []
    for row in rows:
        try:
            questions.append(encoder.question(row))
            kept.append(row)
        except DataError as error:
            bad.add(error)
    if not kept:
        raise DataError(f"no question is left, all were skipped; the first: {bad.messages[0]}")
    return kept, questions


def cache_folder() -> Path:
    """Return where answers are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "tamp-modifier" / "answers"


def model_digest(model: str, config: Any) -> str:
    """Return what changes when a model does: of its config, and of its files if it is a folder."""
    digest = hashlib.sha256(model.encode())
    digest.update(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
    folder = Path(model)
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        found = file.stat()
        digest.update(f"{file.name} {found.st_size} {found.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


class AnswerFile(MutableMapping[str, str]):
    """Answers by key in a file of JSON lines, to which every new one is added at once.

    Args:
        path: the file; made with the first answer. A line that was cut off is passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, str] = {}
        stored = path.read_bytes() if path.is_file() else b""
        self._cut = bool(stored) and not stored.endswith(
            b"\n"
        )  # a killed run may leave half a line
        for line in stored.splitlines():
            try:
                entry = json.loads(line)
                self._found[entry["key"]] = entry["answer"]
            except (ValueError, KeyError, TypeError):
                continue

    def __getitem__(self, key: str) -> str:
        return self._found[key]

    def __setitem__(self, key: str, answer: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key, "answer": answer}) + "\n"
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n" + line if self._cut else line)
        self._cut = False
        self._found[key] = answer

    def __delitem__(self, key: str) -> None:
        raise TypeError("answers are only ever added; remove the file to forget them")

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
