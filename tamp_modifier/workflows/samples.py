"""Calibration samples: which ones, encoded for one model, and what is told of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tamp_modifier.data import (
    Answering,
    BadRows,
    Collator,
    Conversation,
    Encoded,
    Encoder,
    choose,
    encode_all,
    longest_input,
    make_loader,
    read_conversations,
)
from tamp_modifier.files import name_of
from tamp_modifier.report.card import Origin, shown_name
from tamp_modifier.report.samples import shown_path
from tamp_modifier.tokens import modality_token_ids
from tamp_modifier.workflows.answers import Asked, answered
from tamp_modifier.workflows.models import load_config, load_model, load_processor

SAMPLES = 128
"""Calibration samples by default; all where the data have fewer."""

LONGEST = 4096
"""Most tokens of a calibration sample by default; fewer where the model reads fewer."""


@dataclass(frozen=True)
class Sampling:
    """How calibration samples are chosen and encoded.

    Attributes:
        data: what `data.read_conversations` reads: a file or folder, or rows in memory.
        samples: how many; None takes SAMPLES, or all where there are fewer.
        seed: of the choice.
        batch_size: samples of one batch.
        max_length: most tokens of a sample; None takes LONGEST, or what the model can read.
        frames: frames taken from a video.
        skip_bad: bad rows that are left out, at most.
        answers: how the dense model answers the questions itself; None takes the data's answers.
        default: how many are taken where ``samples`` is None; None takes all.
    """

    data: Path | Iterable[Any]
    samples: int | None = None
    seed: int = 0
    batch_size: int = 1
    max_length: int | None = None
    frames: int = 8
    skip_bad: int = 0
    answers: Answering | None = None
    default: int | None = SAMPLES

    @property
    def path(self) -> Path | None:
        """The file or folder; None for rows in memory."""
        return self.data if isinstance(self.data, Path) else None


@dataclass
class Prepared:
    """Calibration samples, encoded for one model.

    Attributes:
        model: folder or name of the model; of a loaded one what it was loaded from, "" if unknown.
        config: its config.
        processor: its processor or tokenizer.
        conversations: the chosen ones.
        encoded: the same, as inputs of the model.
        sampling: how they were chosen.
        ids: placeholder ids by modality.
        loaded: the model, where it was given loaded.
    """

    model: str
    config: Any
    processor: Any
    conversations: list[Conversation]
    encoded: list[Encoded]
    sampling: Sampling
    ids: Mapping[str, Sequence[int]] = field(default_factory=dict)
    loaded: Any = None

    def load(self, dtype: str = "auto") -> Any:
        """Return the model, loaded now unless it was given loaded; see `models.load_model`."""
        if self.loaded is not None:
            return self.loaded
        return load_model(self.model, self.config, dtype)

    def loader(self) -> Any:
        """Return a DataLoader of them, in the same order every time."""
        return make_loader(self.encoded, Collator(self.processor), self.sampling.batch_size)


def prepare(
    model: Any,
    sampling: Sampling,
    step: Callable[[str, int, int], None] = lambda phase, done, total: None,
    answer: bool = True,
    dtype: str = "auto",
    processor: Any = None,
) -> Prepared:
    """Read, choose and encode the calibration samples of a model.

    The model's weights are loaded only where it answers the questions itself.

    Args:
        model: folder or name of the model, or a loaded one.
        sampling: what to read and how.
        step: called after every sample with the phase ("answers", "samples"), how many are done,
            and of how many.
        answer: False leaves out the model's own answers, for a plan.
        dtype: type of the weights that answer, "auto" as in `models.load_to_run`.
        processor: processor or tokenizer; by default that in the model's folder.

    Raises:
        ValueError: data or a model that cannot be used; see `data` and `models`.
        OSError: no such file or folder.
    """
    name, loaded = _name_and_model(model, processor)
    bad = BadRows(sampling.skip_bad)
    rows = read_conversations(sampling.data, sampling.answers is None, bad)
    most = len(rows) if sampling.default is None else sampling.default
    rows = choose(rows, sampling.samples, most, sampling.seed)
    config = load_config(name) if loaded is None else loaded.config
    processor = load_processor(name) if processor is None else processor
    limit = longest_input(config, getattr(processor, "tokenizer", processor))
    max_length = sampling.max_length
    if max_length is None:
        max_length = min(LONGEST, limit or LONGEST)
    elif limit is not None and max_length > limit:
        raise ValueError(f"max length {max_length} is more than the {limit} tokens that it reads")
    ids = modality_token_ids(config)
    encoder = Encoder(processor, ids, max_length, sampling.frames)
    if sampling.answers is not None and answer:
        answering = functools.partial(step, "answers")
        asked = Asked(name, config, processor, encoder, dtype, loaded)
        rows = answered(asked, rows, sampling.answers, bad, answering)
    rows, encoded = encode_all(encoder, rows, bad, functools.partial(step, "samples"))
    bad.tell()
    return Prepared(name, config, processor, rows, encoded, sampling, ids, loaded)


def _name_and_model(model: Any, processor: Any) -> tuple[str, Any]:
    """Return folder or name of a model, and the model itself where it is loaded."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model), None
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            "model must be a folder, a name on the hub or a model of transformers, got "
            f"{type(model).__name__}"
        )
    if processor is None:
        raise ValueError("a loaded model needs its processor (or tokenizer), got None")
    return str(getattr(model, "name_or_path", "") or ""), model


def origin_of(base: str | None, prepared: Prepared) -> Origin:
    """Return what the model card says of a dense model and the samples that were read."""
    sampling = prepared.sampling
    own = sampling.answers is not None
    return Origin(base or None, sampling.path, len(prepared.encoded), own)


def describe_run(prepared: Prepared, command: str | None) -> dict[str, str]:
    """Return model, data and command of a run in words, for its report."""
    path = prepared.sampling.path
    found = {"data": "rows in memory" if path is None else name_of(path)}
    if prepared.model:
        found = {"model": shown_name(prepared.model), **found}
    return found if command is None else {**found, "command": command}


def describe_samples(prepared: Prepared) -> dict[str, Any]:
    """Name and media of every sample as JSON values, with where a picture's tokens are.

    A picture has ``first``, the index of its first token, and ``grid``, its rows and columns of
    tokens, where they follow from the inputs: from the grid that Qwen-VL's processors give, or
    because its tokens make a square.
    """
    samples = []
    data = prepared.sampling.path or Path() / "rows"
    folder = data if data.is_dir() else data.parent
    for row, encoded in zip(prepared.conversations, prepared.encoded, strict=True):
        grids = _grids(encoded, prepared.ids.get("image", ()), prepared.config)
        pictures = iter(grids)
        media = []
        for part in row.media:
            # No absolute path: the file goes where the model goes.
            path = "" if part.path is None else shown_path(part.path, folder)
            entry: dict[str, Any] = {"kind": part.kind, "path": path}
            found = next(pictures, None) if part.kind == "image" else None
            if found is not None:
                entry |= {"first": found[0], "grid": [found[1], found[2]]}
            media.append(entry)
        samples.append({"name": row.name.removeprefix(f"{folder}/"), "media": media})
    described: dict[str, Any] = {"seed": prepared.sampling.seed, "samples": samples}
    if prepared.sampling.answers is not None:
        described["answers"] = asdict(prepared.sampling.answers)
    return described


def _grids(encoded: Encoded, ids: Sequence[int], config: Any) -> list[tuple[int, int, int] | None]:
    """First token, rows and columns of every picture; None where they cannot be told."""
    tokens = encoded.inputs["input_ids"][0]
    positions = torch.isin(tokens, torch.tensor(list(ids))).nonzero().flatten().tolist()
    if not positions:
        return []
    grid = encoded.inputs.get("image_grid_thw")
    if grid is not None:
        vision = getattr(config, "vision_config", None)
        merge = getattr(vision, "spatial_merge_size", 1)
        sizes = [(int(h) // merge, int(w) // merge) for _, h, w in grid.tolist()]
    else:
        # Pixels are [pictures, 3, H, W]; with a dimension more they are tiles of the picture.
        pixels = encoded.inputs.get("pixel_values")
        count = pixels.shape[0] if pixels is not None and pixels.dim() == 4 else 0
        each = len(positions) // count if count else 0
        side = round(each**0.5)
        if not count or side * side != each or each * count != len(positions):
            return []
        sizes = [(side, side)] * count
    found: list[tuple[int, int, int] | None] = []
    start = 0
    for rows, columns in sizes:
        mine = positions[start : start + rows * columns]
        together = len(mine) == rows * columns and mine[-1] - mine[0] == len(mine) - 1
        found.append((mine[0], rows, columns) if together else None)
        start += rows * columns
    return found
