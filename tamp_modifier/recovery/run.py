"""One recovery run, from two models and encoded samples to a student with the same zeros."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tamp_modifier.data import Collator, Encoded
from tamp_modifier.files import write_json
from tamp_modifier.recovery.batches import Numbered, NumberedCollator, split
from tamp_modifier.recovery.budget import Budget
from tamp_modifier.recovery.losses import counted_positions
from tamp_modifier.recovery.machine import check_alone, computes_in_bf16, peak_memory
from tamp_modifier.recovery.probe import (
    COMPARED,
    FACTORS,
    STEPS,
    Probe,
    probe,
    probe_batches,
    usual_rate,
)
from tamp_modifier.recovery.settings import RecoverySettings
from tamp_modifier.recovery.teacher import KeptTeacher, LiveTeacher, Teacher, ask_once
from tamp_modifier.recovery.trained import Trained, make_trainable, pruned_linears
from tamp_modifier.recovery.trainer import Diverged, Recovery, last_state
from tamp_modifier.zeros.freeze import freeze

PROBE_FILE = "probe.json"
START = "start"
"""Folder of the state before any training."""
PROBED = 0.1
"""Share of a run that the probe of learning rates may take; it does not count as training."""
Step = Callable[[str, int, int], None]


@dataclass
class Pair:
    """The two models and what they read.

    Attributes:
        student: the pruned model; changed by the run.
        teacher: the dense model; None where all that it says is kept already.
        processor: of both.
        samples: encoded for both.
        placeholders: ids of media tokens by modality.
    """

    student: Any
    teacher: Any
    processor: Any
    samples: Sequence[Encoded]
    placeholders: Mapping[str, Sequence[int]]

    @property
    def media_ids(self) -> list[int]:
        """Ids of media tokens of all modalities."""
        return [token for tokens in self.placeholders.values() for token in tokens]


@dataclass(frozen=True)
class Recovered:
    """What a run did.

    Attributes:
        settings: what was asked for.
        linears: names of the pruned Linears.
        zeros: weights of theirs that are zero, before and after.
        trained: number of weights that were trained.
        rate: highest learning rate.
        curve: of each comparison the seconds, tokens and samples of training before it, and the
            held-out loss in nats.
        best: the held-out loss of the state that was kept.
        reason: why the run ended.
        peak: largest memory of the process, or of the GPU, in bytes.
    """

    settings: RecoverySettings
    linears: list[str]
    zeros: int
    trained: int
    rate: float
    curve: list[dict[str, float]]
    best: float
    reason: str
    peak: int

    @property
    def before(self) -> float:
        """The held-out loss before any training."""
        return self.curve[0]["loss"]


class Session:
    """The parts of a run, ready for training; a context manager that keeps the zeros.

    Args:
        pair: models and samples.
        settings: what is asked for.
        folder: for states and for what the teacher says.
        step: called with (phase, done, total).

    Raises:
        ValueError: the student has no zeros, the samples are too few, or this is one of several
            processes.
    """

    def __init__(self, pair: Pair, settings: RecoverySettings, folder: Path, step: Step) -> None:
        check_alone()
        self.pair, self.settings, self.folder, self.step = pair, settings, folder, step
        self.training, self.held_out = split(pair.samples, settings.held_out, settings.seed)
        linears = pruned_linears(pair.student)
        self.zeros = {name: linear.weight == 0 for name, linear in linears.items()}
        self.bf16 = computes_in_bf16()
        stored = {name: p.dtype for name, p in pair.student.named_parameters()}
        if not self.bf16:
            pair.student.float()
            if pair.teacher is not None:
                pair.teacher.float()
        self.frozen = freeze(pair.student)
        self.trained: Trained = make_trainable(pair.student, linears, settings)
        self.trained.dtypes = stored
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        self.collator = Collator(pair.processor, padding_side="right", dtype=dtype)
        self.teacher = self._teacher()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: Any) -> None:
        self.frozen.remove()

    def _teacher(self) -> Teacher:
        settings, pair = self.settings, self.pair
        device = next(pair.student.parameters()).device
        if pair.teacher is not None:
            pair.teacher.requires_grad_(False).eval().to(device)
        if settings.top_k is None:
            return LiveTeacher(pair.teacher, settings.temperature, settings.hidden)
        folder = self.folder / "teacher"
        ask_once(
            pair.teacher,
            pair.samples,
            self.collator,
            folder,
            settings.top_k,
            settings.temperature,
            lambda batch: self.counted(batch),
            lambda done, total: self.step("teacher", done, total),
        )
        pair.teacher = None  # its memory is free from here on
        return KeptTeacher(folder, settings.temperature)

    def counted(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return which positions of a batch count, bool [samples, tokens - 1]."""
        return counted_positions(batch["input_ids"], batch["attention_mask"], self.pair.media_ids)

    def trainer(
        self, rate: float, budget: Budget, report: Callable[[float, float | None], None]
    ) -> Recovery:
        """Return the trainer of this run."""
        return Recovery(
            self.pair.student,
            self.teacher,
            self.training,
            self.held_out,
            self.collator,
            self.pair.media_ids,
            self.settings,
            rate,
            budget,
            self.folder,
            self.bf16,
            report,
        )

    def batches(self, samples: Numbered, count: int) -> list[Any]:
        """Return `count` batches, or all where there are fewer."""
        join = NumberedCollator(self.collator)
        size = self.settings.batch_size
        starts = range(0, len(samples), size)[:count]
        return [
            join([samples[i] for i in range(begin, min(begin + size, len(samples)))])
            for begin in starts
        ]

    def rate(self, trainer: Recovery, seconds: float) -> float:
        """Return a learning rate: that of a probe, or the usual one where the run is short.

        Args:
            trainer: of this session.
            seconds: that comparing took, on all samples that are held out.
        """
        usual = usual_rate(self.pair.student.config.get_text_config().hidden_size)
        batches = math.ceil(len(self.held_out) / self.settings.batch_size)
        samples = len(FACTORS) * STEPS * self.settings.batch_size
        tokens = sum(map(len, self.pair.samples)) / len(self.pair.samples)
        takes = {
            "minutes": probe_batches() * seconds / batches / 60,
            "samples": samples,
            "tokens": samples * tokens,
        }
        kind, limit = self.settings.limit
        losses: dict[str, float] = {}
        rate = usual
        if takes[kind] <= PROBED * limit:
            found = self.probe(trainer, [usual * factor for factor in FACTORS])
            losses = {f"{r:g}": loss for r, loss in found.losses.items() if loss == loss}
            rate = found.rate
        write_json(self.folder / PROBE_FILE, {"rate": rate, "losses": losses})
        return rate

    def probe(self, trainer: Recovery, rates: Sequence[float]) -> Probe:
        """Try learning rates; see `probe.probe`."""
        model = self.pair.student
        model.train()

        def loss_of(batch: Mapping[str, Any]) -> Tensor:
            inputs = trainer._prepare_inputs(dict(batch))
            with trainer.compute_loss_context_manager():
                try:
                    return trainer.compute_loss(model, inputs)
                except Diverged:
                    return torch.tensor(math.nan)

        found = probe(
            model,
            loss_of,
            self.batches(self.training, STEPS),
            self.batches(self.held_out, COMPARED),
            rates,
            step=lambda done, total: self.step("learning rate", done, total),
        )
        trainer.budget.tokens = trainer.budget.samples = 0
        return found

    def check_zeros(self) -> int:
        """Return the number of zeros, all of which must still be there.

        Raises:
            RuntimeError: some came back; names the Linears.
        """
        back = [
            name
            for name, linear in self.trained.linears.items()
            if bool((linear.weight[self.zeros[name].to(linear.weight.device)] != 0).any())
        ]
        if back:
            raise RuntimeError(f"zeros came back in {', '.join(back[:5])}; nothing was saved")
        return sum(int(mask.sum()) for mask in self.zeros.values())


def recover_model(
    pair: Pair,
    settings: RecoverySettings,
    folder: Path,
    step: Step = lambda *_: None,
    clock: Callable[[], float] = time.monotonic,
) -> Recovered:
    """Train the student of a pair, with its zeros in place; the best state is left in it.

    Args:
        pair: models and samples; the student is changed.
        settings: what is asked for.
        folder: for the states of the run. A run that was killed resumes from there.
        step: called with (phase, done, total).
        clock: tells the seconds that count as time of training.

    Returns:
        What was trained, the curve of the held-out loss in nats, and why the run ended.

    Raises:
        ValueError: the student has no zeros, the samples are too few, or no rate can be found.
        RuntimeError: a zero came back.
    """
    with Session(pair, settings, folder, step) as session:
        budget = Budget(*settings.limit, clock)

        def report(fraction: float, loss: float | None) -> None:
            phase = "recovery" if loss is None else f"recovery, held-out KL {loss:.4f}"
            step(phase, round(1000 * fraction), 1000)

        checkpoint = last_state(folder)
        trainer = session.trainer(settings.learning_rate or 1.0, budget, report)
        seconds = 0.0
        if checkpoint is None:
            trainer.save_model(str(folder / START))
            seconds = trainer.evaluate()["eval_runtime"]
        else:
            budget.load(checkpoint)
        if settings.learning_rate is None:
            file = folder / PROBE_FILE
            known = json.loads(file.read_text())["rate"] if file.exists() else None
            trainer.args.learning_rate = known or session.rate(trainer, seconds)
        reason = _train(trainer, checkpoint)
        if budget.best == 0:
            trainer.load_trained(folder / START)
        count = session.trained.numel()
        session.trained.finish()
        zeros = session.check_zeros()
        return Recovered(
            settings=settings,
            linears=list(session.trained.linears),
            zeros=zeros,
            trained=count - zeros if settings.train == "kept" else count,
            rate=trainer.args.learning_rate,
            curve=budget.curve,
            best=budget.curve[budget.best]["loss"],
            reason=reason or budget.reason,
            peak=peak_memory(),
        )


def _train(trainer: Recovery, checkpoint: Path | None) -> str:
    """Train; returns why it broke off, "" where it did not. The best state is in the model then."""
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except Diverged as error:
        best = trainer.state.best_model_checkpoint
        if best is not None:
            trainer._load_best_model()
        return f"{error}; the best state before is kept"
    return ""


@dataclass(frozen=True)
class Costs:
    """What a run takes, by its first steps.

    Attributes:
        peak: largest memory in bytes, of the process or of the GPU.
        seconds: of a step.
        tokens: of a step, mean over the samples.
        trained: number of weights that are trained.
        training: samples that are trained on.
        held_out: samples that are compared.
    """

    peak: int
    seconds: float
    tokens: float
    trained: int
    training: int
    held_out: int

    def minutes(self, settings: RecoverySettings) -> float:
        """Wall time of the training that `settings` ask for, comparisons left out."""
        kind, limit = settings.limit
        per_step = {
            "minutes": self.seconds / 60,
            "tokens": self.tokens,
            "samples": settings.batch_size * settings.accumulation,
        }
        return limit / per_step[kind] * self.seconds / 60


def measure_costs(
    pair: Pair, settings: RecoverySettings, folder: Path, step: Step = lambda *_: None
) -> Costs:
    """Train a few steps on the longest samples, and forget them; what `Costs` tells.

    Args:
        pair: models and samples; the student is changed.
        settings: what is asked for.
        folder: for what the teacher says.
        step: called with (phase, done, total).
    """
    with Session(pair, settings, folder, step) as session:
        trainer = session.trainer(1.0, Budget(*settings.limit), lambda *_: None)
        samples, training = pair.samples, session.training
        training.numbers.sort(key=lambda number: -len(samples[number]))
        found = session.probe(trainer, [1e-5])
        seen = min(len(training.numbers), STEPS * settings.batch_size)
        longest = sum(len(samples[n]) for n in training.numbers[:seen])
        each = settings.batch_size * settings.accumulation
        mean = sum(len(sample) for sample in samples) / len(samples)
        # Time goes with the tokens; those of the probe are the longest.
        seconds = settings.accumulation * found.seconds * mean / (longest / seen)
        return Costs(
            peak=peak_memory(),
            seconds=seconds,
            tokens=mean * each,
            trained=session.trained.numel(),
            training=len(training),
            held_out=len(session.held_out),
        )
