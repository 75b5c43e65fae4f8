"""One pruning run: the passes over the calibration batches and what happens between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from compressed_tensors.distributed import is_distributed
from llmcompressor.core import active_session
from llmcompressor.modifiers import Modifier
from loguru import logger

from tamp_modifier import progress
from tamp_modifier.allocation.base import Allocation
from tamp_modifier.allocation.registry import explicit_allocation
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
from tamp_modifier.calibration.distributed import agree, all_of, any_of, assign_owners, ranks
from tamp_modifier.calibration.loader import RepeatableLoader
from tamp_modifier.calibration.measurement import DiversityCollector, Measurement, measurement_for
from tamp_modifier.calibration.observer import Observer, RegisterHook
from tamp_modifier.calibration.targets import (
    Target,
    check_columns,
    find_decoder_layers,
    find_targets,
)
from tamp_modifier.messages import some
from tamp_modifier.pruning.checks import check_quantized_before, check_weights
from tamp_modifier.pruning.columns import ColumnOrder
from tamp_modifier.pruning.pruner import Pruner
from tamp_modifier.pruning.recording import PACKAGES, build_report, installed_version
from tamp_modifier.pruning.resume import Resume, SavedMeasurement, fingerprint
from tamp_modifier.report.model import PruningReport

if TYPE_CHECKING:
    from tamp_modifier.modifier import TAMPModifier


class PruningRun:
    """What TAMPModifier does with one model.

    Making one finds the target Linears and changes nothing.

    Args:
        fields: the modifier, for its fields.
        model: the model to prune.

    Raises:
        ValueError: fields that do not fit the model.
    """

    def __init__(self, fields: TAMPModifier, model: torch.nn.Module) -> None:
        self._fields = fields
        self._model = model
        self._layers = find_decoder_layers(model, _as_list(fields.sequential_targets))
        self._targets, unused = find_targets(
            model, self._layers, _as_list(fields.targets), _as_list(fields.ignore)
        )
        if unused:
            logger.warning(f"ignore={unused} match no module of the model")
        check_weights(self._targets)
        self._structure = fields.structure()
        check_columns(self._targets, self._structure.prune_m)
        self._numel = {target.name: target.module.weight.numel() for target in self._targets}
        self._columns: ColumnOrder | None = None
        if fields.permute_columns:
            if ranks() > 1:
                raise ValueError("permute_columns works in one process only")
            assert self._structure.prune_n
            self._columns = ColumnOrder(model, self._targets, self._structure.prune_n)
        self._rule = fields.make_allocation()
        self._token_types_fn = fields.token_types_function()
        self._ids = fields.placeholder_ids(model)

        self._batches: list[TokenBatch] = []
        self._sparsities: dict[str, float] = {}
        self._patterns: dict[str, str] = {}
        self._timings: dict[str, float] = {}
        self._warned_of_attention = False
        self._measurement: Measurement | None = None
        if self._rule is not None:
            self._measurement = measurement_for(self._rule, self._targets, fields.positive_only)
        if self._measurement is None:
            self._allocate()
        score = fields.make_score()
        check_quantized_before(self._targets, score)
        selection = fields.make_selection()
        self._needs_attention = selection.needs_attention
        keep_indices = fields.report_path is not None and selection.is_listed
        self._needs_states = selection.needs_states
        self._selected = collector_for(selection, score, keep_indices)
        # The single pass finds unseen Linears and bad statistics before it touches a weight, and so
        # does a dense pass that looks at all that the selection looks at. Without them, what is
        # pruned is kept so that it can be undone.
        checked_before = fields.one_pass or (
            isinstance(self._measurement, DiversityCollector) and not selection.needs_states
        )
        self._pruner = Pruner(score, keep_removed=not checked_before)
        self._resume = Resume(fields.resume_path) if fields.resume_path is not None else None

    @property
    def targets(self) -> list[Target]:
        """What is pruned."""
        return self._targets

    @property
    def finished(self) -> bool:
        """Whether every target is pruned."""
        return len(self._pruner.reached) == len(self._targets)

    def start(self, dataloader: Any, register_hook: RegisterHook) -> None:
        """Read the batches, runs the dense pass if there is one, and hooks the pruning pass.

        Raises:
            ValueError: batches that cannot be used.
            RuntimeError: target Linears without a sample or with activations that are not finite.
        """
        start = time.perf_counter()
        loader = RepeatableLoader(dataloader)
        self._batches = agree(lambda: read_batches(loader, self._ids, self._token_types_fn))
        number_samples(self._batches)
        if self._ids and set(count_tokens(self._batches)) <= {"text"}:
            logger.warning(
                f"no calibration sample has a token of {self._ids}: everything is pruned as text"
            )
        if self._resume is not None:
            self._open(self._resume, loader)
        if self._columns is not None:
            self._permute(loader, self._columns)
            self._timings["permutation"] = time.perf_counter() - start
        collectors = [self._selected.collect]
        if self._measurement is not None and self._fields.one_pass:
            collectors.append(self._measurement.collect)
        elif self._measurement is not None:
            if not isinstance(self._measurement, SavedMeasurement):
                self._measure(loader, self._measurement)
            before = self._timings.get("permutation", 0.0)
            self._timings["dense_pass"] = time.perf_counter() - start - before
            self._allocate()
        loader.rewind()
        self._observer = self._observe(
            collectors, self._needs_attention, self._targets, self._selected
        )
        self._observer.register(self._model, register_hook)
        if self._resume is not None:
            self._resume.watch(self._targets, register_hook)
        self._tell_missing_attention()
        self._started = self._layer_started = time.perf_counter()

    def subgraph_done(self) -> None:
        """Prunes the Linears that have seen all their samples."""
        self._tell_missing_attention()
        if not self._fields.one_pass:
            self._prune_ready()

    def finish(self) -> None:
        """Prunes what is left.

        Raises:
            RuntimeError: target Linears that saw no sample; all weights are as they were.
        """
        self._tell_missing_attention()
        self._refuse_unseen(self._selected)
        if self._fields.one_pass:
            if self._measurement is not None:
                self._measurement.join()
                self._refuse_not_finite(self._targets, self._measurement)
                self._allocate()
            self._prune_ready()
        self._pruner.forget()
        self._selected.join()
        self._batches = join_batches(self._batches)
        self._timings["pruning_pass"] = time.perf_counter() - self._started

    def abandon(self) -> None:
        """Take back what can be taken back of a run that ended early."""
        if self.finished:
            return
        if not is_distributed():  # the other processes may be elsewhere
            self._pruner.undo()
        if self._pruner.reached:
            logger.warning(
                f"{len(self._pruner.reached)} of {len(self._targets)} Linears are pruned and stay "
                "so; load the model anew"
            )
        elif self._columns is not None:
            self._columns.undo()

    def report(self) -> PruningReport:
        """Return the report of the finished run."""
        return build_report(
            self._fields.model_dump(exclude=set(Modifier.model_fields)),
            self._targets,
            self._batches,
            self._sparsities,
            self._patterns,
            self._pruner.reached,
            self._measurement,
            self._selected,
            self._timings,
        )

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
                self._fields.model_dump(exclude={*Modifier.model_fields, "report_path"}),
                {name: installed_version(name) for name in PACKAGES},
            )
        )
        if self._measurement is not None and not self._fields.one_pass:
            self._measurement = resume.load_measurement() or self._measurement
        if resume.finished:
            logger.info(f"TAMP goes on after {len(resume.finished)} Linears of an earlier run")

    def _permute(self, loader: RepeatableLoader, columns: ColumnOrder) -> None:
        """Give columns another order, after a pass that looks at their activations."""
        logger.info(f"TAMP permutation: columns of {len(columns.targets)} Linears")
        self._run_dense_pass(loader, columns.collect, columns.targets)
        columns.apply(next(iter(loader)))

    def _measure(self, loader: RepeatableLoader, measurement: Measurement) -> None:
        """Run the dense pass."""
        assert self._rule is not None
        samples = sum(batch.types.shape[0] for batch in self._batches)
        logger.info(
            f"TAMP dense pass: {self._rule.measure} of {len(self._targets)} Linears over {samples} "
            "samples"
        )
        self._run_dense_pass(loader, measurement.collect, self._targets)
        measurement.join()
        self._refuse_unseen(measurement)
        self._refuse_not_finite(self._targets, measurement)
        if self._resume is not None:
            self._resume.save_measurement(measurement, list(self._numel))

    def _run_dense_pass(
        self,
        loader: RepeatableLoader,
        collect: Callable[[Activations], None],
        targets: Sequence[Target],
    ) -> None:
        run_dense_pass(
            self._model,
            loader,
            self._observe([collect], False, targets),
            {type(layer).__name__ for layer in self._layers.values()},
            self._fields.dense_pipeline,
            self._fields.tracing_ignore,
        )

    def _allocate(self) -> None:
        """Shares the budget out."""
        fields = self._fields
        shapes = {t.name: (t.module.out_features, t.module.in_features) for t in self._targets}
        if isinstance(fields.allocation, dict):
            sparsities = explicit_allocation(fields.allocation, self._numel)
            if self._structure.prune_m:
                self._sparsities, self._patterns = self._structure.check_given(sparsities)
                return
        elif self._rule is None:
            sparsities = dict.fromkeys(self._numel, fields.sparsity)
        else:
            importance = self._importance(self._rule)
            sparsities = self._rule(importance, self._numel, fields.sparsity, fields.cap)
        self._sparsities, self._patterns = self._structure.choose(sparsities, shapes, fields.cap)

    def _importance(self, rule: Allocation) -> dict[str, float]:
        """Return what the rule measures, by Linear."""
        if self._measurement is not None:
            return self._measurement.importance_of(list(self._numel))
        if rule.measure != "depth":
            return {}
        depths = {layer: float(depth) for depth, layer in enumerate(self._layers)}
        return {t.name: depths[t.layer] for t in self._targets if t.layer is not None}

    def _prune_ready(self) -> None:
        if self._resume is not None:
            restored = self._resume.restore_passed(self._targets, self._pruner, self._selected)
            self._tell_progress(restored)
        seen = any_of(
            name
            for name in self._numel
            if name not in self._pruner.reached and self._selected.has_seen(name)
        )
        ready = [target for target in self._targets if target.name in seen]
        self._selected.settle(ready)
        self._refuse_not_finite(ready, self._selected)
        by_layer: dict[str, list[Target]] = {}
        for target in ready:
            by_layer.setdefault(target.layer or target.name.rpartition(".")[0], []).append(target)
        for layer, members in by_layer.items():
            owners = assign_owners(members)
            statistics = self._selected.statistics(members, owners)
            self._pruner.prune_layer(members, statistics, self._sparsities, self._patterns, owners)
            if self._resume is not None:
                self._resume.save_layer(members, self._selected, self._pruner.keeps_weights)
            self._log_layer(layer, members)
            self._tell_progress(members)

    def _tell_progress(self, pruned: list[Target]) -> None:
        if pruned:
            progress.tell("pruning", len(self._pruner.reached), len(self._targets))

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
        needs_attention: bool,
        targets: Sequence[Target],
        selected: SelectionCollector | None = None,
    ) -> Observer:
        def consume(activations: Activations) -> None:
            for collect in collectors:
                collect(activations)

        finished = self._resume.finished if self._resume is not None else set()
        return Observer(
            [target for target in targets if target.name not in finished],
            self._layers,
            self._batches,
            lambda: active_session().state.current_batch_idx,
            consume,
            needs_attention,
            selected.layer_done if selected is not None and self._needs_states else None,
        )

    def _refuse(self, message: str) -> NoReturn:
        self._pruner.undo()
        if self._columns is not None:
            self._columns.undo()
        raise RuntimeError(message)

    def _refuse_unseen(self, collector: Measurement | SelectionCollector) -> None:
        """Refuses target Linears that saw no sample, by name."""
        missed = all_of(name for name in self._numel if not collector.has_seen(name))
        unseen = [name for name in self._numel if name in missed]
        if unseen:
            self._refuse(
                f"{len(unseen)} target Linears saw no calibration sample, nothing was pruned: "
                f"{some(unseen)}. Add them to ignore, give samples that reach them, or, if the "
                'model cannot be traced, use oneshot(pipeline="basic") and dense_pipeline="basic"'
            )

    def _refuse_not_finite(
        self, targets: list[Target], collector: Measurement | SelectionCollector
    ) -> None:
        """Refuses Linears whose activations are NaN or infinite, by name."""
        found = any_of(t.name for t in targets if not collector.is_finite(t.name))
        bad = [target.name for target in targets if target.name in found]
        if bad:
            self._refuse(
                f"{len(bad)} target Linears have activations that are not finite, nothing was "
                f"pruned: {some(bad)}"
            )

    def _tell_missing_attention(self) -> None:
        """Warns of decoder layers without attention weights once, or refuses them."""
        layers = sorted(any_of(self._observer.layers_without_attention))
        if not layers:
            return
        if self._fields.no_attention == "error":
            self._refuse(f"{len(layers)} decoder layers give no attention weights: {some(layers)}")
        if not self._warned_of_attention:
            self._warned_of_attention = True
            logger.warning(
                f"{len(layers)} decoder layers give no attention weights, all their tokens weigh "
                f"the same: {some(layers)}"
            )


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
