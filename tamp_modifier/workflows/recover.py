"""From a pruned model, the dense one and data to a recovered model: what ``tamp recover`` does."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tamp_modifier.checkpoint.marker import (
    CONFIG_KEY,
    INNER_KEY,
    QUANT_METHOD,
    config_marker,
    find_marker,
)
from tamp_modifier.checkpoint.memory import free_memory
from tamp_modifier.files import check_output, new_folder, only_writer, write_json
from tamp_modifier.recovery.machine import check_alone, computes_in_bf16, static_memory
from tamp_modifier.recovery.run import Costs, Pair, Recovered, measure_costs, recover_model
from tamp_modifier.recovery.settings import RecoverySettings
from tamp_modifier.report.card import write_card
from tamp_modifier.report.model import (
    REPORT_FILE,
    SAMPLES_FILE,
    LinearReport,
    PruningReport,
    Recovery,
    weighted_sparsity,
)
from tamp_modifier.workflows.models import empty_model, load_config, load_model
from tamp_modifier.workflows.samples import (
    Prepared,
    Sampling,
    describe_samples,
    origin_of,
    prepare,
)

SETTINGS_FILE = "settings.json"
Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """A recovery, before any weight is read.

    Attributes:
        student: folder of the pruned model.
        teacher: folder or name of the dense model.
        prepared: the samples, encoded for both.
        settings: what is asked for.
    """

    student: str
    teacher: str
    prepared: Prepared
    settings: RecoverySettings


def plan_recovery(
    student: str,
    teacher: str,
    sampling: Sampling,
    settings: RecoverySettings,
    step: Step = lambda *_: None,
) -> Job:
    """Check both models against each other, and encode the samples.

    Args:
        student: folder of the pruned model.
        teacher: folder or name of the dense model, which also gives the processor.
        sampling: what is read; ``answers`` are the dense model's own.
        settings: what is asked for.
        step: called with (phase, done, total).

    Raises:
        ValueError: models that do not fit each other, a student that is quantized, too little
            memory, or data that cannot be used.
        OSError: no such file or folder.
    """
    check_alone()
    pupil, master = load_config(student), load_config(teacher)
    _check_alike(student, pupil, teacher, master)
    _check_dense(student, pupil)
    _check_dense(teacher, master)
    _check_memory(pupil, settings)
    prepared = prepare(teacher, sampling, step)
    return Job(student, teacher, replace(prepared, config=pupil), settings)


def _check_alike(student: str, pupil: Any, teacher: str, master: Any) -> None:
    def text(config: Any) -> Any:
        return config.get_text_config()

    if Path(student).resolve() == Path(teacher).resolve():
        raise ValueError(f"{student} is student and teacher; --teacher is the dense model")
    for field in ("model_type",):
        mine, theirs = getattr(pupil, field), getattr(master, field)
        if mine != theirs:
            raise ValueError(f"{student} is a {mine} model, {teacher} a {theirs} model")
    for field in ("vocab_size", "hidden_size", "num_hidden_layers"):
        mine, theirs = (getattr(text(config), field, None) for config in (pupil, master))
        if mine != theirs:
            raise ValueError(
                f"{field} of {student} is {mine}, that of {teacher} is {theirs}; the teacher must "
                "be the model that was pruned"
            )


def _check_dense(name: str, config: Any) -> None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return
    get = quantization.get if isinstance(quantization, dict) else vars(quantization).get
    method = get("quant_method")
    if method != QUANT_METHOD or get(INNER_KEY):
        raise ValueError(
            f"{name} is quantized ({method}); give the model before quantization, and "
            "--quantized SCHEME to train against the rounded weights"
        )


def _check_memory(config: Any, settings: RecoverySettings) -> None:
    import torch

    if torch.cuda.is_available():
        return
    free = free_memory()
    model = empty_model(config)
    numel = sum(p.numel() for p in model.parameters())
    inner = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    )
    trained = inner if settings.train == "kept" else 0
    needed = static_memory(numel, trained, settings.top_k is None, computes_in_bf16())
    if free is not None and needed > free:
        raise ValueError(
            f"training takes {needed / 1e9:.1f} GB or more, and {free / 1e9:.1f} GB of memory are "
            "free; --train lora or --train norms take less, and so does --top-k, with which the "
            "dense model is not kept in memory"
        )


def dry_run(job: Job, folder: Path, step: Step = lambda *_: None) -> Costs:
    """Load both models, train a few steps on the longest samples, and write nothing that stays.

    Args:
        job: of `plan_recovery`.
        folder: temporary.
        step: called with (phase, done, total).
    """
    return measure_costs(_pair(job, step), job.settings, folder, step)


def recover(job: Job, out: Path, restart: bool = False, step: Step = lambda *_: None) -> Recovered:
    """Train, quantize where it is asked for, and save model, processor and report.

    The states of the training are kept in ``OUT.partial`` until the model is saved; a run that was
    killed goes on from there.

    Args:
        job: of `plan_recovery`.
        out: the folder to write.
        restart: forget what an earlier run has done.
        step: called with (phase, done, total).

    Raises:
        ValueError: the student has no zeros, or an earlier run had other settings.
        OSError: saving failed, or another run writes to the same folder.
        RuntimeError: a zero came back.
    """
    check_output(out)
    partial = out.with_name(out.name + ".partial")
    with only_writer(out):
        _claim(partial, job, restart)
        try:
            pair = _pair(job, step)
            done = recover_model(pair, job.settings, partial, step)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"the training so far is kept in {partial}: run the same command to resume, "
                "or add --restart to start over"
            ) from None
        step("saving", 0, 0)
        report = _report(job, done, pair.student)
        if find_marker(pair.student.config) is None:
            setattr(pair.student.config, CONFIG_KEY, config_marker("dense"))
        if job.settings.scheme is not None:
            quantize(pair.student, pair.processor, done.linears, job.settings)
        with new_folder(out, f"; the training is kept in {partial}") as folder:
            pair.student.save_pretrained(folder)
            job.prepared.processor.save_pretrained(folder)
            report.save(folder / REPORT_FILE)
            write_json(folder / SAMPLES_FILE, describe_samples(job.prepared))
            write_card(folder, report, origin_of(job.teacher, job.prepared))
        shutil.rmtree(partial, ignore_errors=True)
    return done


def _claim(partial: Path, job: Job, restart: bool) -> None:
    """Make the folder of the training, or resume in one with the same settings."""
    mine = {"student": job.student, "teacher": job.teacher, **job.settings.to_dict()}
    mine["samples"] = len(job.prepared.encoded)
    file = partial / SETTINGS_FILE
    if restart and file.is_file():
        shutil.rmtree(partial)
    if not partial.exists():
        partial.mkdir(parents=True)
        write_json(file, mine)
        return
    if not file.is_file():
        raise ValueError(f"{partial} is not of tamp recover; remove it or take another OUT")
    found = json.loads(file.read_text())
    differ = [name for name in mine if found.get(name) != mine[name]]
    if differ:
        raise ValueError(
            f"{partial} holds a training with another {', '.join(differ)}; --restart forgets it"
        )


def _pair(job: Job, step: Step) -> Pair:
    step("loading the models", 0, 0)
    prepared = job.prepared
    student = load_model(job.student, prepared.config)
    teacher = load_model(job.teacher, load_config(job.teacher))
    return Pair(student, teacher, prepared.processor, prepared.encoded, prepared.ids)


def quantize(
    student: Any, processor: Any, linears: Sequence[str], settings: RecoverySettings
) -> None:
    """Round the pruned Linears of a recovered model as the training did; their zeros stay.

    Args:
        student: changed in place.
        processor: of the model, which llm-compressor wants.
        linears: names of the pruned Linears; all others stay as they are.
        settings: with a scheme.
    """
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from torch import nn

    from tamp_modifier.zeros.keep import keep_zeros

    assert settings.scheme is not None
    keep_zeros(student)
    others = [
        name
        for name, module in student.named_modules()
        if isinstance(module, nn.Linear) and name not in set(linears)
    ]
    scheme = preset_name_to_scheme(settings.scheme, ["Linear"])
    if settings.scheme == "W4A16" and scheme.weights is not None:
        scheme.weights.group_size = settings.group
    recipe = QuantizationModifier(config_groups={"group_0": scheme}, ignore=others)
    oneshot(model=student, processor=processor, recipe=recipe, pipeline="datafree")


def _report(job: Job, done: Recovered, student: Any) -> PruningReport:
    """Return the report of the pruning, with what the recovery did."""
    file = Path(job.student) / REPORT_FILE
    report = PruningReport.load(file) if file.is_file() else _found(student, done.linears)
    return replace(report, recovery=report_section(done))


def report_section(done: Recovered) -> Recovery:
    """Return what a report says of a recovery.

    Args:
        done: the recovery.
    """
    return Recovery(
        settings=done.settings.to_dict(),
        learning_rate=done.rate,
        trained=done.trained,
        curve=done.curve,
        best=done.best,
        ended=done.reason,
    )


def _found(student: Any, linears: Sequence[str]) -> PruningReport:
    """Return a report of a model that another tool pruned: shapes and zeros, as they are."""
    rows: dict[str, LinearReport] = {}
    for name in linears:
        weight = student.get_submodule(name).weight
        zeros = float((weight == 0).double().mean())
        layer = re.match(r"(.*\.)?layers\.\d+", name)
        rows[name] = LinearReport(
            shape=(weight.shape[0], weight.shape[1]),
            numel=weight.numel(),
            importance=None,
            similarities={},
            allocated=zeros,
            pattern="0:0",
            reached=zeros,
            tokens_seen=0,
            selected=[],
            layer=layer[0] if layer else name,
        )
    reached = weighted_sparsity(rows.values())
    return PruningReport(
        requested_sparsity=reached,
        reached_sparsity=reached,
        mask_structure="0:0",
        settings={},
        versions={},
        seed=None,
        samples=0,
        tokens={},
        timings={},
        linears=rows,
    )
