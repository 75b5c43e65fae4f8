"""One pruning run: the passes over the calibration batches and what happens between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from compressed_tensors.distributed import is_distributed
from llmcompressor.core import active_session
from loguru import logger

from tamp_modifier import progress
from tamp_modifier.calibration.activations import Activations
from tamp_modifier.calibration.batches import (
    TokenBatch,
    count_tokens,
    join_batches,
    number_samples,
    read_batches,
)
from tamp_modifier.calibration.collect import SelectionCollector
from tamp_modifier.calibration.collect_layer import collector_for
from tamp_modifier.calibration.dense_pass import run_dense_pass
from tamp_modifier.calibration.distributed import agree, any_of, assign_owners, gather, ranks
from tamp_modifier.calibration.loader import RepeatableLoader
from tamp_modifier.calibration.measurement import Measurement, measurement_for
from tamp_modifier.calibration.observer import Observer, RegisterHook
from tamp_modifier.calibration.targets import Target
from tamp_modifier.calibration.unreached import MAGNITUDE, told, unreached_experts, why_not
from tamp_modifier.pruning.checks import (
    already_pruned,
    missing_attention,
    not_finite,
    nothing_to_prune,
    unseen,
)
from tamp_modifier.pruning.columns import ColumnOrder
from tamp_modifier.pruning.decide import allocate, allocate_before
from tamp_modifier.pruning.pruner import Pruner
from tamp_modifier.pruning.recording import PACKAGES, build_report, installed_version
from tamp_modifier.pruning.resume import Resume, SavedMeasurement, fingerprint
from tamp_modifier.pruning.settings import Settings
from tamp_modifier.report.model import PruningReport
from tamp_modifier.upstream.fallback import calibrating


class PruningRun:
    """What TAMPModifier does with one model.

    Making one changes nothing.

    Args:
        settings: what is asked for.
        model: the model to prune, which the settings were resolved for.

    Raises:
        ValueError: an allocation that does not fit the model.
    """

    def __init__(self, settings: Settings, model: torch.nn.Module) -> None:
        self._settings = settings
        self._model = model
        self._numel = settings.numel
        self._batches: list[TokenBatch] = []
        self._timings: dict[str, float] = {}
        self._warned_of_attention = False
        self._warnings = list(settings.warnings)
        self._columns: ColumnOrder | None = None
        if settings.free_columns:
            assert settings.structure.prune_n
            self._columns = ColumnOrder(model, settings.free_columns, settings.structure.prune_n)
        self._measurement = measurement_for(settings.allocation, settings.targets)
        self._decision = allocate_before(settings)
        selection, score = settings.selection, settings.score
        self._selected = collector_for(selection, score, settings.keep_indices)
        # The single pass finds unseen Linears and bad statistics before it touches a weight, and so
        # does a dense pass that looks at all that the selection looks at. Without them, what is
        # pruned is kept so that it can be undone.
        checked_before = settings.one_pass or (
            self._measurement is not None
            and self._measurement.sees_outputs
            and not selection.needs_states
        )
        self._pruner = Pruner(score, keep_removed=not checked_before)
        path = settings.resume_path
        self._resume = Resume(path) if path is not None else None

    @property
    def targets(self) -> Sequence[Target]:
        """What is pruned."""
        return self._settings.targets

    @property
    def finished(self) -> bool:
        """Whether every target is pruned."""
        return len(self._pruner.reached) == len(self.targets)

    def start(self, dataloader: Any, register_hook: RegisterHook) -> None:
        """Read the batches, run the dense pass if there is one, and hook the pruning pass.

        Raises:
            ValueError: batches that cannot be used.
            RuntimeError: target Linears without a sample or with activations that are not finite.
        """
        start = time.perf_counter()
        message = already_pruned(self._model)
        if message is not None:
            logger.warning(message)
        loader = self._read(dataloader)
        if self._resume is not None:
            self._open(self._resume, loader)
        if self._columns is not None:
            self._permute(loader, self._columns)
            self._timings["permutation"] = time.perf_counter() - start
        collectors = [self._selected.collect]
        if self._measurement is not None and self._settings.one_pass:
            collectors.append(self._measurement.collect)
        elif self._measurement is not None:
            if not isinstance(self._measurement, SavedMeasurement):
                self._measure(loader, self._measurement)
            before = self._timings.get("permutation", 0.0)
            self._timings["dense_pass"] = time.perf_counter() - start - before
            self._decision = allocate(self._settings, self._measurement)
        loader.rewind()
        self._observer = self._observe(collectors, self.targets, selects=True)
        self._observer.register(self._model, register_hook)
        if self._resume is not None:
            self._resume.watch(self.targets, register_hook)
        self._tell_missing_attention()
        self._started = self._layer_started = time.perf_counter()

    def subgraph_done(self, modules: Collection[torch.nn.Module]) -> None:
        """Prune the Linears that have seen all their samples.

        Args:
            modules: all that the samples have passed since the last call.
        """
        self._tell_missing_attention()
        if not self._settings.one_pass:
            self._prune_ready(set(modules))

    def finish(self) -> None:
        """Prune what is left.

        Raises:
            RuntimeError: target Linears that saw no sample; all weights are as they were.
        """
        self._tell_missing_attention()
        self._refuse_unseen(self._selected)
        if self._settings.one_pass:
            if self._measurement is not None:
                self._measurement.join()
                self._refuse(not_finite(self._numel, self._measurement.is_finite))
                self._decision = allocate(self._settings, self._measurement)
            self._prune_ready({target.module for target in self.targets})
        self._pruner.forget()
        zeros = sum(sum(found.values()) for found in gather(self._pruner.zeros_before))
        message = nothing_to_prune(zeros, sum(self._numel.values()), self._settings.sparsity)
        if message is not None:
            logger.warning(message)
        self._selected.join()
        reached = {name for name in self._numel if self._selected.reached(name)}
        unreached = unreached_experts(self.targets, reached)
        self._warnings += told(unreached, self._settings.unreached_experts)
        if self._resume is not None:
            self._resume.close()
        self._batches = join_batches(self._batches)
        self._timings["pruning_pass"] = time.perf_counter() - self._started

    def abandon(self) -> None:
        """Take back what can be taken back of a run that ended early."""
        if self._resume is not None:
            self._resume.close()
        if self.finished:
            return
        if not is_distributed():  # the other processes may be elsewhere
            self._pruner.undo()
        if self._pruner.reached:
            logger.warning(
                f"{len(self._pruner.reached)} of {len(self.targets)} Linears are pruned and stay "
                "so; load the model again"
            )
        elif self._columns is not None:
            self._columns.undo()

    @cached_property
    def report(self) -> PruningReport:
        """The report of the finished run."""
        assert self._decision is not None
        return build_report(
            self._settings,
            self._batches,
            self._decision,
            self._pruner.reached,
            self._measurement,
            self._selected,
            self._timings,
            self._warnings,
        )

    def _read(self, dataloader: Any) -> RepeatableLoader:
        """Read the token types of all batches."""
        loader = RepeatableLoader(dataloader)
        ids, function = self._settings.placeholder_ids, self._settings.token_types
        self._batches = agree(lambda: read_batches(loader, ids, function))
        number_samples(self._batches)
        if ids and set(count_tokens(self._batches)) <= {"text"}:
            logger.warning(
                f"no calibration sample has a token of {ids}: everything is pruned as text"
            )
        return loader

    def _open(self, resume: Resume, loader: RepeatableLoader) -> None:
        """Find what an earlier run of the same kind has finished, the dense pass first of all.

        Raises:
            ValueError: what it finds is of another run, or there are several processes.
        """
        if ranks() > 1:
            raise ValueError("resume_path is for runs of one process; leave it out with torchrun")
        resume.open(
            fingerprint(
                self._model,
                loader,
                {n: v for n, v in self._settings.told.items() if n != "report_path"},
                {name: installed_version(name) for name in PACKAGES},
            )
        )
        if self._measurement is not None and not self._settings.one_pass:
            self._measurement = resume.load_measurement() or self._measurement
        if resume.finished:
            logger.info(f"TAMP continues after {len(resume.finished)} Linears of an earlier run")

    def _permute(self, loader: RepeatableLoader, columns: ColumnOrder) -> None:
        """Give columns another order, after a pass that looks at their activations."""
        logger.info(f"TAMP permutation: columns of {len(columns.targets)} Linears")
        self._run_dense_pass(loader, columns.collect, columns.targets)
        columns.apply(next(iter(loader)))

    def _measure(self, loader: RepeatableLoader, measurement: Measurement) -> None:
        """Run the dense pass."""
        assert self._settings.allocation is not None
        samples = sum(batch.types.shape[0] for batch in self._batches)
        logger.info(
            f"TAMP dense pass: {self._settings.allocation.measure} of {len(self.targets)} Linears "
            f"over {samples} samples"
        )
        self._run_dense_pass(loader, measurement.collect, self.targets)
        measurement.join()
        self._refuse_unseen(measurement)
        self._refuse(not_finite(self._numel, measurement.is_finite))
        if self._resume is not None:
            self._resume.save_measurement(measurement, list(self._numel))

    def _run_dense_pass(
        self,
        loader: RepeatableLoader,
        collect: Callable[[Activations], None],
        targets: Sequence[Target],
    ) -> None:
        with calibrating(self._settings.dense_pipeline):
            run_dense_pass(
                self._model,
                loader,
                self._observe([collect], targets, selects=False),
                {type(layer).__name__ for layer in self._settings.layers.values()},
                self._settings.dense_pipeline,
                self._settings.tracing_ignore,
            )

    def _prune_ready(self, passed: Collection[torch.nn.Module]) -> None:
        decision = self._decision
        assert decision is not None
        if self._resume is not None:
            restored = self._resume.restore_passed(self.targets, self._pruner, self._selected)
            self._tell_progress(restored)
        seen = any_of(
            name
            for name in self._numel
            if name not in self._pruner.reached and self._selected.has_seen(name)
        )
        reached = any_of(name for name in seen if self._selected.reached(name))
        left = [t for t in self.targets if t.name not in self._pruner.reached]
        here = [t for t in left if t.name in seen or t.module in passed]
        unreached = unreached_experts(here, reached)
        ready = [t for t in here if t.name in seen or t.name in unreached]
        self._refuse(why_not(ready, reached, self._settings.unreached_experts))
        self._selected.settle(ready)
        for target in ready:
            if target.name in unreached:
                by_magnitude = self._settings.unreached_experts == MAGNITUDE
                self._selected.stand_in(target, unreached[target.name], by_magnitude)
        self._refuse(not_finite((target.name for target in ready), self._selected.is_finite))
        by_layer: dict[str, list[Target]] = {}
        for target in ready:
            by_layer.setdefault(target.layer or target.name.rpartition(".")[0], []).append(target)
        for layer, members in by_layer.items():
            owners = assign_owners(members)
            statistics = self._selected.statistics(members, owners)
            self._pruner.prune_layer(
                members, statistics, decision.sparsities, decision.patterns, owners
            )
            if self._resume is not None:
                self._resume.save_layer(members, self._selected, self._pruner.keeps_weights)
            self._log_layer(layer, members)
            self._tell_progress(members)

    def _tell_progress(self, pruned: list[Target]) -> None:
        if pruned:
            progress.tell("pruning", len(self._pruner.reached), len(self.targets))

    def _log_layer(self, layer: str, members: list[Target]) -> None:
        now = time.perf_counter()
        seconds, self._layer_started = now - self._layer_started, now
        weights = sum(self._numel[t.name] for t in members)
        zeros = sum(self._pruner.reached[t.name] * self._numel[t.name] for t in members)
        picked = sum(self._selected.mean_selected(t.name) for t in members) / len(members)
        logger.info(
            f"TAMP {layer}: {len(members)} Linears, sparsity {zeros / weights:.4f}, "
            f"{picked:.1f} tokens selected per sample, {seconds:.1f} s"
        )

    def _observe(
        self,
        collectors: Iterable[Callable[[Activations], None]],
        targets: Sequence[Target],
        selects: bool,
    ) -> Observer:
        """Return what hands activations on; if it `selects`, with what the selection looks at."""

        def consume(activations: Activations) -> None:
            for collect in collectors:
                collect(activations)

        finished = self._resume.finished if self._resume is not None else set()
        selection = self._settings.selection
        return Observer(
            [target for target in targets if target.name not in finished],
            self._settings.layers,
            self._batches,
            lambda: active_session().state.current_batch_idx,
            consume,
            selects and selection.needs_attention,
            self._selected.layer_done if selects and selection.needs_states else None,
        )

    def _refuse(self, message: str | None) -> None:
        """Bring back what was changed and raise, if there is a message."""
        if message is None:
            return
        self._pruner.undo()
        if self._columns is not None:
            self._columns.undo()
        raise RuntimeError(message)

    def _refuse_unseen(self, collector: Measurement | SelectionCollector) -> None:
        """Refuse Linears that saw no sample, but for experts that others can stand in for."""
        reached = any_of(name for name in self._numel if collector.reached(name))
        self._refuse(why_not(self.targets, reached, self._settings.unreached_experts))
        stand_ins = unreached_experts(self.targets, reached)
        names = [name for name in self._numel if name not in stand_ins]
        self._refuse(unseen(names, collector.has_seen))

    def _tell_missing_attention(self) -> None:
        """Warn of decoder layers without attention weights once, or refuse them."""
        layers = self._observer.layers_without_attention
        if self._settings.refuses_missing_attention:
            self._refuse(missing_attention(layers))
            return
        message = missing_attention(layers, ", all their tokens weigh the same")
        if message is not None and not self._warned_of_attention:
            self._warned_of_attention = True
            logger.warning(message)
