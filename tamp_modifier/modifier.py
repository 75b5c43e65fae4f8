"""TAMPModifier: TAMP pruning inside an llm-compressor recipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from compressed_tensors.utils import align_module_device, update_offload_parameter
from llmcompressor.args.dataset_arguments import DatasetArguments
from llmcompressor.core import Event, State, active_session, create_session
from llmcompressor.modifiers import Modifier
from llmcompressor.modifiers.factory import ModifierFactory
from llmcompressor.pipelines.registry import CalibrationPipeline
from loguru import logger
from pydantic import Field, PrivateAttr, field_serializer, field_validator, model_validator
from rich.console import Console

from tamp_modifier.allocation import ALLOCATIONS, explicit_allocation, get_allocation, round_to_budget
from tamp_modifier.batches import RepeatableLoader, TokenBatch, import_function, read_batches
from tamp_modifier.collect import DiversityCollector, SelectionCollector
from tamp_modifier.masks import apply_mask, parse_mask_structure, verify_sparsity, wanda_mask
from tamp_modifier.observer import Activations, Observer
from tamp_modifier.recording import build_report
from tamp_modifier.selection import SELECTIONS, get_selection
from tamp_modifier.targets import Target, find_decoder_layers, find_targets
from tamp_modifier.tokens import (
    is_multimodal,
    modality_token_ids,
    parse_modality_token_ids,
)
from tamp_modifier.tracing import complete_tracing

__all__ = ["TAMPModifier"]

SCORES = ("wanda",)


class TAMPModifier(Modifier):
    """Prunes the text decoder of a multimodal LLM with TAMP (arXiv 2504.09897).

    Two ideas on top of Wanda (arXiv 2306.11695), whose metric for weight W_ij is |W_ij| sqrt(s_j):

    - DAS, diversity-aware sparsity: a Linear whose output tokens differ more from one another, within
      and between modalities, keeps more weights; one global budget is shared out by this importance.
    - AMIA, adaptive multimodal input activation: s_j is the mean of x_j^2 over a few tokens that
      represent the sample, picked by attention and output similarity, instead of over all tokens.

    Sample recipe::

        pruning_stage:
          pruning_modifiers:
            TAMPModifier:
              sparsity: 0.5

    A YAML recipe needs ``from tamp_modifier import TAMPModifier`` before it is read.

    Lifecycle:

    - on_initialize: finds the target Linears and refuses what cannot work
    - on_calibration_start: reads the token types of all batches; runs the dense pass that measures the
      diversity of every Linear (a nested session over the same batches), shares the budget out and
      registers the hooks of the pruning pass
    - on_sequential_epoch_end: prunes the decoder layers whose calibration is complete
    - on_calibration_end: with ``one_pass``, shares out and prunes; checks what was reached
    - on_finalize: checks that zeros survived the rest of the recipe; writes the report

    Args:
        sparsity: share of the weights of all target Linears that is pruned, in (0, 1).
        mask_structure: "0:0" for unstructured, or "N:M": of every M consecutive weights of a row, N are
            pruned, as in WandaPruningModifier. N:M has the same sparsity everywhere, so ``sparsity`` must
            be N / M and ``allocation`` is not used.
        allocation: "das" (as published: kept weights follow the importance), "das_numel" (the kept share
            of a Linear follows it), "uniform", or the sparsity of every target Linear by name.
        selection: "amia", "text" (text tokens only) or "all" (Wanda).
        max_sparsity: cap of a single Linear; ``sparsity + 0.1`` by default, 1 at most.
        score: "wanda".
        targets: class names, matched inside the text decoder only, or module names or "re:" patterns,
            matched anywhere.
        ignore: what is left alone, in the same form. The output head and routers always are, unless
            targeted by name.
        sequential_targets: class names of the decoder layers, where the model does not tell; by default
            those given to ``oneshot``, else the layers of ``model.get_decoder()``.
        one_pass: measure diversity and activation statistics of the dense model in one pass and prune at
            its end, without propagating the error of pruned layers. Give ``oneshot`` also
            ``propagate_error=False`` (or ``pipeline="basic"``), or it repeats every layer for nothing.
        positive_only: intra-modality similarities over pairs with a positive cosine only, as the official
            code has it.
        num_neighbors: neighbours in AMIA's graph.
        threshold: factor of AMIA's stop criterion; larger selects fewer tokens.
        no_attention: what to do for decoder layers without softmax attention (linear attention, Mamba):
            "uniform" weighs all tokens the same, with one warning; "error" refuses.
        modality_token_ids: modality name ("image", "video", "audio") to placeholder ids, where the config
            of the model does not tell.
        token_types_fn: function from a calibration batch to its token types, integers
            [batch, sequence] of the decoder's sequence (0 text, 1 image, 2 video, 3 audio, -1 padding);
            for models whose ids do not tell. In YAML "package.module:function".
        dense_pipeline: pipeline of the dense pass; "basic" for models that cannot be traced.
        tracing_ignore: further function names that tracing skips in the dense pass.
        report_path: where the JSON report goes, a path that ends in ".json"; none by default.

    Raises:
        ValueError: a field out of range; a model, targets or data that cannot be pruned as asked.
            Everything that can be known before calibration is refused before it.
    """

    requires_calibration_data: bool = True

    sparsity: float = 0.5
    mask_structure: str = "0:0"
    allocation: str | dict[str, float] = "das"
    selection: str = "amia"
    max_sparsity: float | None = None
    score: str = "wanda"
    targets: str | list[str] = Field(default_factory=lambda: ["Linear"])
    ignore: str | list[str] = Field(default_factory=list)
    sequential_targets: str | list[str] | None = None
    one_pass: bool = False
    positive_only: bool = False
    num_neighbors: int = 3
    threshold: float = 0.1
    no_attention: Literal["uniform", "error"] = "uniform"
    modality_token_ids: dict[str, int | list[int]] | None = None
    token_types_fn: str | Callable[[Mapping[str, Any]], torch.Tensor] | None = None
    dense_pipeline: Literal["sequential", "basic"] = "sequential"
    tracing_ignore: list[str] = Field(default_factory=list)
    report_path: str | None = None

    _targets: list[Target] = PrivateAttr(default_factory=list)
    _layers: dict[str, torch.nn.Module] = PrivateAttr(default_factory=dict)
    _batches: list[TokenBatch] = PrivateAttr(default_factory=list)
    _diversity: DiversityCollector | None = PrivateAttr(default=None)
    _selected: SelectionCollector | None = PrivateAttr(default=None)
    _observer: Observer | None = PrivateAttr(default=None)
    _sparsities: dict[str, float] = PrivateAttr(default_factory=dict)
    _reached: dict[str, float] = PrivateAttr(default_factory=dict)
    _removed: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)
    _timings: dict[str, float] = PrivateAttr(default_factory=dict)
    _started: float = PrivateAttr(default=0.0)
    _layer_started: float = PrivateAttr(default=0.0)
    _warned_attention: bool = PrivateAttr(default=False)

    # -- fields -------------------------------------------------------------------------------------

    @field_validator("sparsity")
    @classmethod
    def _check_sparsity(cls, value: float) -> float:
        if not 0.0 < value < 1.0:
            raise ValueError(f"sparsity must be between 0 and 1, got {value}")
        return value

    @field_validator("allocation")
    @classmethod
    def _check_allocation(cls, value: str | dict[str, float]) -> str | dict[str, float]:
        if isinstance(value, str):
            get_allocation(value)
        return value

    @field_validator("score")
    @classmethod
    def _check_score(cls, value: str) -> str:
        if value not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {value!r}")
        return value

    @field_validator("modality_token_ids")
    @classmethod
    def _check_ids(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            parse_modality_token_ids(value)
        return value

    @field_validator("report_path")
    @classmethod
    def _check_report_path(cls, value: str | None) -> str | None:
        if value is not None and not value.endswith(".json"):
            raise ValueError(f"report_path must end with .json, got {value!r}")
        return value

    @field_serializer("token_types_fn")
    def _name_of_function(self, value: Any) -> str | None:
        # A recipe is saved as YAML next to the model.
        return value if value is None or isinstance(value, str) else f"{value.__module__}:{value.__qualname__}"

    @model_validator(mode="after")
    def _check_fields(self) -> TAMPModifier:
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got {self.selection!r}")
        self._make_selection()  # refuses its options
        prune_n, prune_m = parse_mask_structure(self.mask_structure)
        if prune_m and abs(self.sparsity - prune_n / prune_m) > 1e-6:
            raise ValueError(
                f"sparsity must be {prune_n / prune_m:g} with mask_structure {self.mask_structure!r}, "
                f"got {self.sparsity}"
            )
        if self.max_sparsity is not None and not self.sparsity <= self.max_sparsity <= 1.0:
            raise ValueError(
                f"max_sparsity must be between sparsity ({self.sparsity}) and 1, got {self.max_sparsity}"
            )
        return self

    # -- lifecycle ----------------------------------------------------------------------------------

    def on_initialize(self, state: State, **kwargs: Any) -> bool:
        """Finds the target Linears and refuses what cannot work."""
        model = state.model
        if state.data.calib is None:
            raise ValueError("TAMPModifier needs calibration data; give `dataset` to oneshot")
        self._layers = find_decoder_layers(model, _as_list(self.sequential_targets))
        self._targets, unused = find_targets(
            model, self._layers, _as_list(self.targets), _as_list(self.ignore)
        )
        if unused:
            logger.warning(f"ignore={unused} match no module of the model")
        self._check_columns()
        if isinstance(self.allocation, dict):
            explicit_allocation(self.allocation, self._numel())
        if isinstance(self.token_types_fn, str):
            import_function(self.token_types_fn)
        self._token_ids(model)
        complete_tracing()
        return True

    def on_calibration_start(self, state: State, event: Event, **kwargs: Any) -> None:
        """Reads the batches, measures the diversity of the dense model, and starts to collect."""
        start = time.perf_counter()
        token_types_fn = self.token_types_fn
        if isinstance(token_types_fn, str):
            token_types_fn = import_function(token_types_fn)
        loader = RepeatableLoader(state.data.calib)
        self._batches = read_batches(loader, self._token_ids(state.model), token_types_fn)
        if self._needs_diversity:
            self._diversity = DiversityCollector(self.positive_only)
            if not self.one_pass:
                self._run_dense_pass(state, loader)
                self._timings["dense_pass"] = time.perf_counter() - start
                self._allocate()
        else:
            self._allocate()

        loader.rewind()
        keep_indices = self.report_path is not None and self.selection != "all"
        self._selected = SelectionCollector(self._make_selection(), keep_indices)
        collectors: list[Callable[[Activations], None]] = [self._selected.collect]
        if self.one_pass and self._diversity is not None:
            collectors.append(self._diversity.collect)
        self._observer = self._observe(collectors, SELECTIONS[self.selection].needs_attention)
        self._observer.register(state.model, self.register_hook)
        self._refuse_missing_attention()
        self._started = self._layer_started = time.perf_counter()

    def on_sequential_epoch_end(self, state: State, event: Event, **kwargs: Any) -> None:
        """Prunes the Linears that have seen their calibration samples."""
        self._refuse_missing_attention()
        if not self.one_pass:
            self._prune_ready()

    def on_calibration_end(self, state: State, event: Event, **kwargs: Any) -> None:
        """Prunes what is left, checks that no Linear was missed, and removes the hooks."""
        self.remove_hooks()
        self._refuse_missing_attention()
        self._refuse_unseen()
        if self.one_pass:
            if self._diversity is not None:
                self._refuse_not_finite(self._targets, self._diversity)
                self._allocate()
            self._prune_ready()
        self._removed.clear()
        self._timings["pruning_pass"] = time.perf_counter() - self._started
        Console(stderr=True).print(self._report().table())

    def on_finalize(self, state: State, **kwargs: Any) -> bool:
        """Checks that the zeros are still there and writes the report."""
        if len(self._reached) < len(self._targets):
            return True  # refused before; the error has told why
        lost = [
            target.name
            for target in self._targets
            if self._zeros(target) < self._reached[target.name] * target.module.weight.numel() - 0.5
        ]
        if lost:
            logger.warning(
                f"modifiers after TAMPModifier brought pruned weights back in {len(lost)} Linears: "
                f"{_some(lost)}"
            )
        if self.report_path is not None:
            self._report().save(self.report_path)
        self._layers, self._targets, self._batches = {}, [], []
        return True

    # -- the dense pass -----------------------------------------------------------------------------

    @property
    def _needs_diversity(self) -> bool:
        structured = parse_mask_structure(self.mask_structure)[1] > 0
        return (
            not structured
            and isinstance(self.allocation, str)
            and ALLOCATIONS[self.allocation].needs_importance
        )

    def _run_dense_pass(self, state: State, loader: RepeatableLoader) -> None:
        """Runs all samples through the dense model in a session of its own, collecting diversity.

        This is done at the start of calibration, not at initialization, so that it sees what earlier
        modifiers of the recipe did to the model.
        """
        samples = sum(batch.types.shape[0] for batch in self._batches)
        logger.info(f"TAMP dense pass: diversity of {len(self._targets)} Linears over {samples} samples")
        assert self._diversity is not None
        observer = self._observe([self._diversity.collect], needs_attention=False)
        arguments = DatasetArguments(
            # Vision blocks are sequential targets by default; here they would only add subgraphs.
            sequential_targets=sorted({type(layer).__name__ for layer in self._layers.values()}),
            propagate_error=False,
        )
        arguments.tracing_ignore = [*arguments.tracing_ignore, *self.tracing_ignore]
        with create_session() as session:
            session.initialize(
                model=state.model,
                recipe=[_DensePass(observer=observer)],
                calib_data=loader,
                copy_data=False,
            )
            pipeline = CalibrationPipeline.load_from_registry(self.dense_pipeline)
            pipeline(state.model, loader, arguments)
            session.finalize()
        self._refuse_unseen()
        self._refuse_not_finite(self._targets, self._diversity)

    def _allocate(self) -> None:
        """Shares the budget out."""
        numel = self._numel()
        if isinstance(self.allocation, dict):
            sparsities = explicit_allocation(self.allocation, numel)
        elif not self._needs_diversity:
            sparsities = dict.fromkeys(numel, self.sparsity)
        else:
            assert self._diversity is not None
            importance = self._diversity.importance_of(list(numel))
            cap = min(1.0, self.sparsity + 0.1) if self.max_sparsity is None else self.max_sparsity
            sparsities = get_allocation(self.allocation)(importance, numel, self.sparsity, cap)
        if not parse_mask_structure(self.mask_structure)[1]:
            shapes = {t.name: tuple(t.module.weight.shape) for t in self._targets}
            sparsities = round_to_budget(sparsities, shapes)
        self._sparsities = sparsities

    # -- pruning ------------------------------------------------------------------------------------

    def _prune_ready(self) -> None:
        assert self._selected is not None
        ready = [
            target
            for target in self._targets
            if target.name not in self._reached and self._selected.has_seen(target.name)
        ]
        by_layer: dict[str, list[Target]] = {}
        for target in ready:
            by_layer.setdefault(target.layer or target.name.rpartition(".")[0], []).append(target)
        self._refuse_not_finite(ready, self._selected)
        for layer, members in by_layer.items():
            for target in members:
                self._prune(target, self._selected.row_scalars(target.name))
            self._log_layer(layer, members)

    @torch.no_grad()
    def _prune(self, target: Target, row_scalars: torch.Tensor) -> None:
        with align_module_device(target.module):
            weight = target.module.weight.detach().clone()
            mask = wanda_mask(weight, row_scalars, self._sparsities[target.name], self.mask_structure)
            if not self._checked_before_pruning:
                self._removed[target.name] = weight[~mask].cpu()
            apply_mask(weight, mask)
        update_offload_parameter(target.module, "weight", weight)
        reached = verify_sparsity({target.name: weight}, self._sparsities, self.mask_structure)
        self._reached.update(reached)

    @property
    def _checked_before_pruning(self) -> bool:
        """Whether unseen Linears and bad statistics are found before the first weight is touched.

        The dense pass finds them, and so does the single pass. Without either, what is pruned has to be
        kept until the end, so that a refusal leaves the weights as they were.
        """
        return self.one_pass or self._needs_diversity

    @torch.no_grad()
    def _undo(self) -> None:
        for target in self._targets:
            removed = self._removed.pop(target.name, None)
            if removed is None:
                continue
            with align_module_device(target.module):
                weight = target.module.weight.detach().clone()
                weight[weight == 0] = removed.to(weight)
            update_offload_parameter(target.module, "weight", weight)

    def _log_layer(self, layer: str, members: list[Target]) -> None:
        now = time.perf_counter()
        seconds, self._layer_started = now - self._layer_started, now
        weights = sum(t.module.weight.numel() for t in members)
        zeros = sum(self._reached[t.name] * t.module.weight.numel() for t in members)
        assert self._selected is not None
        picked = sum(self._selected.mean_selected(t.name) for t in members) / len(members)
        logger.info(
            f"TAMP {layer}: {len(members)} Linears, sparsity {zeros / weights:.4f}, "
            f"{picked:.1f} tokens selected per sample, {seconds:.1f} s"
        )

    def _zeros(self, target: Target) -> int:
        with align_module_device(target.module):
            weight = target.module.weight
            return weight.numel() - int(torch.count_nonzero(weight))

    # -- checks and small helpers -------------------------------------------------------------------

    def _refuse_unseen(self) -> None:
        """Refuses target Linears that saw no sample, by name."""
        collectors = [c for c in (self._diversity, self._selected) if c is not None]
        unseen = [t.name for t in self._targets if not all(c.has_seen(t.name) for c in collectors)]
        if unseen:
            self._undo()
            raise RuntimeError(
                f"{len(unseen)} target Linears saw no calibration sample, nothing was pruned: "
                f"{_some(unseen)}. Add them to ignore, give samples that reach them, or, if the model "
                'cannot be traced, use oneshot(pipeline="basic") and dense_pipeline="basic"'
            )

    def _refuse_not_finite(
        self, targets: list[Target], collector: DiversityCollector | SelectionCollector
    ) -> None:
        """Refuses Linears whose activations are NaN or infinite, by name."""
        bad = [target.name for target in targets if not collector.is_finite(target.name)]
        if bad:
            self._undo()
            raise RuntimeError(
                f"{len(bad)} target Linears have activations that are not finite, nothing was pruned: "
                f"{_some(bad)}"
            )

    def _refuse_missing_attention(self) -> None:
        assert self._observer is not None
        layers = sorted(self._observer.layers_without_attention)
        if not layers:
            return
        if self.no_attention == "error":
            self._undo()
            raise RuntimeError(f"{len(layers)} decoder layers give no attention weights: {_some(layers)}")
        if not self._warned_attention:
            self._warned_attention = True
            logger.warning(
                f"{len(layers)} decoder layers give no attention weights, all their tokens weigh the same: "
                f"{_some(layers)}"
            )

    def _check_columns(self) -> None:
        prune_m = parse_mask_structure(self.mask_structure)[1]
        bad = [t for t in self._targets if prune_m and t.module.weight.shape[1] % prune_m]
        if bad:
            raise ValueError(
                f"mask_structure {self.mask_structure!r} needs input features divisible by {prune_m}; "
                f"{bad[0].name} has {bad[0].module.weight.shape[1]}. Add it to ignore"
            )

    def _token_ids(self, model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
        """Placeholder ids of every modality, from the user or the model's config."""
        if self.modality_token_ids is not None:
            return parse_modality_token_ids(self.modality_token_ids)
        config = getattr(model, "config", None)
        ids = modality_token_ids(config) if config is not None else {}
        if not ids and self.token_types_fn is None and config is not None and is_multimodal(config):
            raise ValueError(
                f"the config of {type(model).__name__} names no image, video or audio token id; give "
                'modality_token_ids (e.g. {"image": 32000}) or token_types_fn'
            )
        return ids

    def _make_selection(self) -> Any:
        if self.selection != "amia":
            return get_selection(self.selection)
        return get_selection(
            "amia",
            num_neighbors=self.num_neighbors,
            threshold=self.threshold,
            positive_only=self.positive_only,
        )

    def _observe(
        self, collectors: list[Callable[[Activations], None]], needs_attention: bool
    ) -> Observer:
        def consume(activations: Activations) -> None:
            for collect in collectors:
                collect(activations)

        return Observer(
            self._targets,
            self._layers,
            self._batches,
            lambda: active_session().state.current_batch_idx,
            consume,
            needs_attention,
        )

    def _numel(self) -> dict[str, int]:
        return {target.name: target.module.weight.numel() for target in self._targets}

    def _report(self) -> Any:
        return build_report(
            self.model_dump(exclude=set(Modifier.model_fields)),
            self._targets,
            self._batches,
            self._sparsities,
            self._reached,
            self._diversity,
            self._selected,
            self._timings,
        )


class _DensePass(Modifier):
    """The recipe of the nested session: it only observes."""

    requires_calibration_data: bool = True
    observer: Any

    def on_initialize(self, state: State, **kwargs: Any) -> bool:
        return True

    def on_calibration_start(self, state: State, event: Event, **kwargs: Any) -> None:
        self.observer.register(state.model, self.register_hook)

    def on_calibration_end(self, state: State, event: Event, **kwargs: Any) -> None:
        self.remove_hooks()


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


ModifierFactory.register("TAMPModifier", TAMPModifier)
