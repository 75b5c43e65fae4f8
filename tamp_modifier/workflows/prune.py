"""From a model and data to the pruned model: what ``tamp prune`` does, as one call."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from loguru import logger

from tamp_modifier.data import Answering
from tamp_modifier.files import check_output, check_unfinished, new_folder, only_writer, write_json
from tamp_modifier.modifier import TAMPModifier
from tamp_modifier.progress import listening
from tamp_modifier.pruning.resume import forget, forget_useless, has_progress
from tamp_modifier.report.card import write_card
from tamp_modifier.report.model import REPORT_FILE, SAMPLES_FILE, PruningReport
from tamp_modifier.workflows.precision import (
    calibration_device,
    compute_faster,
    restore_types,
    types_of,
)
from tamp_modifier.workflows.recipes import make_recipe, only_prunes, ours
from tamp_modifier.workflows.samples import (
    Prepared,
    Sampling,
    describe_run,
    describe_samples,
    origin_of,
    prepare,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tamp_modifier.data import Conversation

Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pruned:
    """What came out of `prune`.

    Attributes:
        model: the pruned model, in memory.
        processor: its processor or tokenizer.
        report: sparsity of every Linear, selected tokens, settings, versions and times.
        output: the folder that was written, None without one.
        seconds: wall time of loading, pruning and, with `output`, saving.
    """

    model: Any
    processor: Any
    report: PruningReport
    output: Path | None
    seconds: dict[str, float]


def prune(
    model: str | os.PathLike[str] | PreTrainedModel,
    processor: Any = None,
    data: str | os.PathLike[str] | Iterable[dict[str, Any] | Conversation] | None = None,
    *,
    preset: str | None = None,
    sparsity: float | None = None,
    recipe: str | os.PathLike[str] | Sequence[Any] | Any = None,
    output: str | os.PathLike[str] | None = None,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 1,
    max_length: int | None = None,
    frames: int = 8,
    skip_bad: int = 0,
    answers: Answering | None = None,
    dtype: str = "auto",
    pipeline: str = "auto",
    restart: bool = False,
    progress: Step | None = None,
    command: str | None = None,
    **fields: Any,
) -> Pruned:
    """Prune a multimodal LLM with TAMP. ``tamp prune`` makes this call and no other.

    It reads and encodes the calibration data, loads the model, prunes the Linears of its text
    decoder layer by layer, and with `output` saves model, processor, report and model card. Only
    the model is kept in memory and changed where it was given loaded.

    With `output`, finished decoder layers are kept in ``OUTPUT.partial`` until the model is saved.
    A run that was killed goes on from there when the same call is made again.

    For example:

        import tamp_modifier

        done = tamp_modifier.prune(
            "MODEL", data="calibration.jsonl", output="pruned", preset="best", sparsity=0.5
        )
        print(done.report.reached_sparsity)

    Args:
        model: a folder, a name on the hub, or a model of transformers that is loaded already, which
            is then changed in place.
        processor: processor or tokenizer of the model; by default that in its folder. A loaded
            model needs one.
        data: conversations: a file or folder of a format in docs/data.md, a list of rows of such a
            format or of `data.Conversation`, or a dataset of Hugging Face. Required.
        preset: field of TAMPModifier; "best" is what to try first.
        sparsity: field of TAMPModifier, the share of the weights that goes; 0.5 by default.
        recipe: in place of fields: a YAML recipe, or modifiers of llm-compressor, one of them a
            TAMPModifier.
        output: the folder to write, which must not exist or be empty; None writes none.
        samples: how many are drawn from the data; by default 128, or all where there are fewer.
        seed: of the draw.
        batch_size: samples that pass through the model at once.
        max_length: most tokens of a sample; by default 4096, or what the model can read.
        frames: frames that are taken from a video.
        skip_bad: how many rows of the data may be left out because they cannot be used.
        answers: has the dense model answer the questions itself first, as `data.Answering` says;
            None takes the answers of the data.
        dtype: type that a model is loaded with, "auto" for that of its file. With "auto", a recipe
            of TAMPModifier alone computes in fp32 where the processor emulates that type and memory
            allows, and the pruned model has the type of the file again. A model that is given
            loaded computes in its own.
        pipeline: "sequential", "basic", or "auto": sequential, and basic where the model cannot be
            traced.
        restart: forget what a killed run has finished.
        progress: called with (phase, how much of it is done, of how much or 0 if unknown).
        command: what the report says was run, such as the command line.
        **fields: further fields of TAMPModifier, such as ``mask_structure="2:4"`` or
            ``ignore=["re:.*down_proj"]``.

    Returns:
        The pruned model with its processor and report.

    Raises:
        ValueError: an argument, a field, data or a model that cannot be used; all that can be known
            before calibration is refused before it. Data that cannot be used are a
            `data.DataError` that names file and line.
        TypeError: a model of another kind.
        OSError: no such file or folder, a full disk, or another run writes to the same folder.
        RuntimeError: calibration failed.
        KeyboardInterrupt: it was interrupted; tells what was kept and how to go on.
    """
    if data is None:
        raise ValueError("data must be a file, a folder or rows of conversations, got None")
    if not isinstance(model, str | os.PathLike) and dtype != "auto":
        raise ValueError(f"the model is loaded already, so dtype must be 'auto', got {dtype!r}")
    out = None if output is None else Path(output)
    if out is not None:
        check_output(out)
        check_unfinished(out)
    named = {"preset": preset, "sparsity": sparsity}
    given = {name: value for name, value in named.items() if value is not None}
    modifiers = make_recipe(recipe, {**given, **fields})
    step = progress or (lambda phase, done, total: None)
    source = Path(data) if isinstance(data, str | os.PathLike) else data
    sampling = Sampling(source, samples, seed, batch_size, max_length, frames, skip_bad, answers)
    try:
        prepared = prepare(model, sampling, step, dtype=dtype, processor=processor)
        if out is None:
            return _prune(prepared, modifiers, None, dtype, pipeline, step, command)
        with only_writer(out):
            if restart:
                forget(_partial(out))
            _keep_in(_partial(out), ours(modifiers))
            try:
                return _prune(prepared, modifiers, out, dtype, pipeline, step, command)
            except KeyboardInterrupt:
                forget_useless(_partial(out))
                raise
    except KeyboardInterrupt as interrupt:
        raise interrupt if interrupt.args else KeyboardInterrupt(_kept(out)) from None


def _partial(out: Path) -> Path:
    """Return where finished layers are kept until `out` is written."""
    return out.with_name(out.name + ".partial")


def _kept(out: Path | None) -> str:
    """Return what an interrupted run leaves, and how to go on."""
    if out is None or not has_progress(_partial(out)):
        return "nothing was written"
    finished = any(_partial(out).glob("*.safetensors"))
    return (
        f"{'the finished layers are' if finished else 'the dense pass is'} kept in "
        f"{_partial(out)}: run the same command to resume, or add --restart to start over"
    )


def _keep_in(partial: Path, modifier: TAMPModifier) -> None:
    """Have a run keep finished layers and selected tokens, for a folder that will hold its report.

    Warns of paths that the modifier has been given, which are not used.
    """
    ignored = [name for name in ("report_path", "resume_path") if getattr(modifier, name)]
    if ignored:  # a recipe that was saved with a model says where its report went
        logger.warning(f"{' and '.join(ignored)} is ignored, all goes to the output folder")
    modifier.report_path = None
    # Columns that change places cannot be resumed.
    modifier.resume_path = None if modifier.permute_columns else str(partial)


def _prune(
    prepared: Prepared,
    recipe: list[Any],
    out: Path | None,
    dtype: str,
    pipeline: str,
    step: Step,
    command: str | None,
) -> Pruned:
    seconds: dict[str, float] = {}
    begin = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal begin
        now = time.perf_counter()
        seconds[name], begin = now - begin, now

    step("loading the model", 0, 0)
    torch.manual_seed(prepared.sampling.seed)
    model = prepared.load(dtype)
    if out is not None:
        check_output(out, sum(p.numel() * p.element_size() for p in model.parameters()))
    modifier = ours(recipe)
    stored, converted = types_of(model), False
    if dtype == "auto" and prepared.loaded is None and only_prunes(recipe):
        converted = compute_faster(model, calibration_device())
    lap("load")
    given = modifier.keep_indices
    if out is not None and given is None:
        modifier.keep_indices = True  # as where the run itself writes the report
    with listening(step):
        _run(model, prepared, recipe, pipeline)
    if converted:
        restore_types(model, stored)
    lap("prune")
    report = modifier.report
    assert report is not None
    report.run |= describe_run(prepared, command)
    if out is not None:
        modifier.report_path, modifier.keep_indices = REPORT_FILE, given  # what the recipe says
        with new_folder(out, f"; the pruned layers are kept in {_partial(out)}") as folder:
            model.save_pretrained(folder)
            prepared.processor.save_pretrained(folder)
            report.save(folder / REPORT_FILE)
            write_json(folder / SAMPLES_FILE, describe_samples(prepared))
            write_card(folder, report, origin_of(prepared.model, prepared))
        shutil.rmtree(_partial(out), ignore_errors=True)
        lap("save")
    return Pruned(model, prepared.processor, report, out, seconds)


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
