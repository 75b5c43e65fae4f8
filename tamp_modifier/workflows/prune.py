"""From a model's folder to the folder of the pruned one: what ``tamp prune`` does."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
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
from tamp_modifier.files import check_output, check_unfinished, new_folder, only_writer, write_json
from tamp_modifier.modifier import TAMPModifier
from tamp_modifier.pruning.resume import forget
from tamp_modifier.report.card import Origin, write_card
from tamp_modifier.report.model import REPORT_FILE, SAMPLES_FILE, PruningReport
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
        data: a file or folder that `data.read_conversations` reads.
        samples: how many; None takes SAMPLES, or all where there are fewer.
        seed: of the choice.
        batch_size: samples of one batch.
        max_length: most tokens of a sample; None takes LONGEST, or what the model can read.
        frames: frames taken from a video.
        skip_bad: bad rows that are left out, at most.
        answers: how the dense model answers the questions itself; None takes the data's answers.
        default: how many are taken where ``samples`` is None; None takes all.
    """

    data: Path
    samples: int | None = None
    seed: int = 0
    batch_size: int = 1
    max_length: int | None = None
    frames: int = 8
    skip_bad: int = 0
    answers: Answering | None = None
    default: int | None = SAMPLES


@dataclass
class Prepared:
    """Calibration samples, encoded for one model.

    Attributes:
        model: folder or name of the model.
        config: its config.
        processor: its processor or tokenizer.
        conversations: the chosen ones.
        encoded: the same, as inputs of the model.
        sampling: how they were chosen.
    """

    model: str
    config: Any
    processor: Any
    conversations: list[Conversation]
    encoded: list[Encoded]
    sampling: Sampling
    ids: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def loader(self) -> Any:
        """Return a DataLoader of them, in the same order every time."""
        return make_loader(self.encoded, Collator(self.processor), self.sampling.batch_size)


def prepare(
    model: str,
    sampling: Sampling,
    step: Callable[[str, int, int], None] = lambda phase, done, total: None,
    answer: bool = True,
    dtype: str = "auto",
) -> Prepared:
    """Read, choose and encode the calibration samples of a model.

    The model's weights are loaded only where it answers the questions itself.

    Args:
        model: folder or name of the model.
        sampling: what to read and how.
        step: called after every sample with the phase ("answers", "samples"), how many are done,
            and of how many.
        answer: False leaves out the model's own answers, for a plan.
        dtype: type of the weights that answer, "auto" for that of the file.

    Raises:
        ValueError: data or a model that cannot be used; see `data` and `models`.
        OSError: no such file or folder.
    """
    bad = BadRows(sampling.skip_bad)
    rows = read_conversations(sampling.data, sampling.answers is None, bad)
    most = len(rows) if sampling.default is None else sampling.default
    rows = choose(rows, sampling.samples, most, sampling.seed)
    config = load_config(model)
    processor = load_processor(model)
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
        asked = Asked(model, config, processor, encoder, dtype)
        rows = answered(asked, rows, sampling.answers, bad, answering)
    rows, encoded = encode_all(encoder, rows, bad, functools.partial(step, "samples"))
    bad.tell()
    return Prepared(model, config, processor, rows, encoded, sampling, ids)


@dataclass(frozen=True)
class Pruned:
    """What came out.

    Attributes:
        report: the report of the run.
        seconds: wall time of loading, pruning and saving.
    """

    report: PruningReport
    seconds: dict[str, float]


def prune(
    prepared: Prepared,
    make_recipe: Callable[[str | None, str | None], list[Any]],
    out: Path,
    dtype: str = "auto",
    restart: bool = False,
    pipeline: str = "auto",
) -> Pruned:
    """Load the model, run the recipe and save model, processor and report.

    Finished decoder layers are kept in ``OUT.partial`` until the model is saved; a run that was
    killed goes on from there. While it lives, no other run writes to the same folder.

    Args:
        prepared: the calibration samples.
        make_recipe: given a report path, here None, and the resume path, the modifiers; one of
            them is a TAMPModifier with these paths.
        out: the folder to write.
        dtype: type of the weights, "auto" for that of the file.
        restart: forget what an earlier run has finished.
        pipeline: "sequential", "basic", or "auto": sequential, and basic where the model cannot be
            traced.

    Raises:
        ValueError: what the modifiers refuse.
        OSError: saving failed, or another run writes to the same folder.
        RuntimeError: calibration failed.
        KeyboardInterrupt: it was interrupted; says how to go on.
    """
    check_output(out)
    check_unfinished(out)
    with only_writer(out):
        try:
            return _prune(prepared, make_recipe, out, dtype, restart, pipeline)
        except KeyboardInterrupt:
            partial = out.with_name(out.name + ".partial")
            if any(partial.glob("*.safetensors")):
                raise KeyboardInterrupt(
                    f"the finished layers are kept in {partial}: the same command goes on from "
                    "there, with --restart it starts anew"
                ) from None
            raise


def _prune(
    prepared: Prepared,
    make_recipe: Callable[[str | None, str | None], list[Any]],
    out: Path,
    dtype: str,
    restart: bool,
    pipeline: str,
) -> Pruned:
    partial = out.with_name(out.name + ".partial")
    if restart:
        forget(partial)
    seconds: dict[str, float] = {}
    begin = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal begin
        now = time.perf_counter()
        seconds[name], begin = now - begin, now

    recipe = make_recipe(None, str(partial))
    ours = next(modifier for modifier in recipe if isinstance(modifier, TAMPModifier))
    given = ours.keep_indices
    if given is None:
        ours.keep_indices = True  # as where the run writes the report
    torch.manual_seed(prepared.sampling.seed)
    model = load_model(prepared.model, prepared.config, dtype)
    check_output(out, sum(p.numel() * p.element_size() for p in model.parameters()))
    lap("load")
    _run(model, prepared, recipe, pipeline)
    lap("prune")
    report = ours.report
    assert report is not None
    ours.report_path, ours.keep_indices = REPORT_FILE, given  # what the saved recipe says
    with new_folder(out, f"; the pruned layers are kept in {partial}") as folder:
        model.save_pretrained(folder)
        prepared.processor.save_pretrained(folder)
        report.save(folder / REPORT_FILE)
        write_json(folder / SAMPLES_FILE, describe_samples(prepared))
        write_card(folder, report, origin_of(prepared.model, prepared))
    lap("save")
    shutil.rmtree(partial, ignore_errors=True)
    return Pruned(report, seconds)


def _run(model: Any, prepared: Prepared, recipe: list[Any], pipeline: str) -> None:
    from llmcompressor import oneshot

    from tamp_modifier.upstream.fallback import calibrating

    arguments: dict[str, Any] = {}
    for modifier in recipe:
        if pipeline != "auto" and hasattr(modifier, "dense_pipeline"):
            modifier.dense_pipeline = pipeline
    if any(getattr(modifier, "one_pass", False) for modifier in recipe):
        arguments["propagate_error"] = False
    try:
        with calibrating(pipeline):
            oneshot(
                model=model,
                processor=prepared.processor,
                dataset=prepared.loader(),
                recipe=recipe,
                **arguments,
            )
    except (ValueError, RuntimeError, OSError, MemoryError):
        raise
    except Exception as error:  # what models and the tracing of them may raise
        raise RuntimeError(
            f"calibration failed with {type(error).__name__}: {error} (TAMP_DEBUG=1 shows where)"
        ) from error


def origin_of(base: str, prepared: Prepared) -> Origin:
    """Return what the model card says of a dense model and the samples that were read."""
    sampling = prepared.sampling
    own = sampling.answers is not None
    return Origin(base, sampling.data, len(prepared.encoded), own)


def describe_samples(prepared: Prepared) -> dict[str, Any]:
    """Name and media of every sample as JSON values, with where a picture's tokens are.

    A picture has ``first``, the index of its first token, and ``grid``, its rows and columns of
    tokens, where they follow from the inputs: from the grid that Qwen-VL's processors give, or
    because its tokens make a square.
    """
    samples = []
    data = prepared.sampling.data
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
