"""TAMPModifier: TAMP pruning inside an llm-compressor recipe."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from compressed_tensors.distributed import is_source_process
from llmcompressor.core import Event, State, active_session
from llmcompressor.modifiers import Modifier
from llmcompressor.modifiers.factory import ModifierFactory
from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from rich.console import Console

from tamp_modifier.calibration.targets import Target
from tamp_modifier.checkpoint.marker import CONFIG_KEY, config_marker
from tamp_modifier.fitted_gptq import FittedGPTQModifier
from tamp_modifier.messages import FieldError, refusals
from tamp_modifier.permutation import GROUP
from tamp_modifier.pruning.checks import check_others, check_writable, refuse_bool
from tamp_modifier.pruning.presets import with_preset
from tamp_modifier.pruning.renamed import renamed_in, with_new_names
from tamp_modifier.pruning.run import PruningRun
from tamp_modifier.pruning.settings import Rules, Settings
from tamp_modifier.report.model import PruningReport
from tamp_modifier.report.table import report_table
from tamp_modifier.tokens import parse_modality_token_ids
from tamp_modifier.transformers_plugin import register as register_with_transformers
from tamp_modifier.upstream.experts import check_experts
from tamp_modifier.upstream.tracing import complete_tracing
from tamp_modifier.zeros.keep import guard_zeros, refuse_lost_zeros, watch_zeros

__all__ = ["FittedGPTQModifier", "TAMPModifier"]  # recipes in YAML name both

_NUMBERS = ("sparsity", "allocation", "max_sparsity")


class TAMPModifier(Modifier):
    """Prune the text decoder of a multimodal LLM with TAMP (arXiv 2504.09897).

    TAMP adds two ideas to Wanda (arXiv 2306.11695), whose score of the weight W_ij is
    `|W_ij| sqrt(s_j)`:

    - DAS, diversity-aware sparsity: a Linear whose output tokens differ more from one another,
      within and between modalities, keeps more weights. One global budget is shared out by this
      importance.
    - AMIA, adaptive multimodal input activation: s_j is the mean of x_j^2 over a few tokens that
      represent the sample, picked by attention and output similarity, instead of over all tokens.

    A YAML recipe needs `from tamp_modifier import TAMPModifier` before it is read:

        pruning_stage:
          pruning_modifiers:
            TAMPModifier:
              sparsity: 0.5

    Lifecycle:

    - `on_initialize` finds the target Linears and refuses what cannot work.
    - `on_calibration_start` reads the token types of all batches, runs the dense pass that measures
      the diversity of every Linear (a nested session over the same batches), shares the budget out
      and registers the hooks of the pruning pass.
    - `on_sequential_epoch_end` prunes the decoder layers whose calibration is complete.
    - `on_calibration_end` shares out and prunes with `one_pass`, and checks the sparsity reached.
    - `on_finalize` checks that the zeros survived the rest of the recipe, keeps the report, and
      writes it to `report_path`.

    Zeros stay zero through what follows in the recipe, or in a later `oneshot` with the same model.
    A run in which one comes back fails.

    Attributes:
        preset: Named values for the fields that are not given. None, the default, is the method of
            the paper. "best" is what to try first (docs/quality.md says where it is ahead and where
            not): SparseGPT's sequential solver, which compares weights half within their row
            here, and a least-squares refit of the remaining weights. All samples, and in each of
            them all modalities, have equal weight. Above 50 % the sparsity rises with depth.
        sparsity: Share of the weights of all target Linears that is pruned, in (0, 1).
        mask_structure: "0:0" for unstructured, or "N:M": of every M consecutive weights of a row, N
            are pruned, as in WandaPruningModifier. With the sparsity N / M every Linear is N:M and
            `allocation` is not used; with less, `allocation` decides which Linears are N:M and
            which stay dense. "n:M", as "n:8" with a letter n, gives every Linear an N of its own,
            from 0 to M - 1, that `allocation` decides.
        allocation: "das" (as published: kept weights follow the importance), "das_numel" (the kept
            share of a Linear follows it), "owl" (decoder layers with more outliers keep more),
            "dlp" (those with a lower median metric keep more), "atp" (sparsity rises with depth;
            no dense pass), "uniform" (no dense pass), or the sparsity of every target Linear by
            name.
        allocation_options: Options of the allocation rule by name. das, das_numel: score_power (1),
            numel_power (0, 1) and positive_only (False; similarities within a modality over pairs
            with a positive cosine only, as in the official code). owl: m (5), lam (0.08). dlp:
            alpha (0.15). atp: share (0.5) of the largest slope allowed, or beta, the slope itself,
            or rise: the last decoder layer is sparser than the first by rise times what the
            sparsity is above 0.5.
        selection: "amia", "drift" (ATV-Pruning: text tokens and the visual ones that a decoder
            layer moves most), "text" (text tokens only), "all" (Wanda) or "balanced" (all, weighted
            so that every sample counts the same, and in it every modality).
        selection_options: Options of the selection rule by name. amia: num_neighbors (3; of its
            graph), threshold (0.1; of its stop criterion, larger selects fewer tokens) and
            positive_only (False; as for das). drift: alpha (1). balanced: modalities (1) and
            samples (1), how far each is balanced, from 0 to 1.
        max_sparsity: Cap of a single Linear, 1 at most. The default is `sparsity + 0.1` for das and
            das_numel, and 1 for the others. With "N:M" it is N / M; with "n:M" the default is
            rounded up to whole Ns.
        score: "wanda", "magnitude" (looks at no token, so `selection` is not used), or one that
            changes the remaining weights, from the Hessian of the selected tokens: "sparsegpt",
            "obs" (w^2 / [H^-1]_jj within each row) or "wanda_refit" (Wanda's mask).
        score_options: Options of the score by name. sparsegpt, obs and wanda_refit: damping (0.05)
            and refit (0 for sparsegpt, 8 for the others; steps of conjugate gradients that fit the
            remaining weights). sparsegpt: per_row (0; compare weights over all rows of a
            block of columns, at 1 within each row, between in a middle way).
        targets: Class names, matched inside the text decoder only, or module names or "re:"
            patterns, matched anywhere.
        ignore: What is left alone, in the same form. The output head and routers always are;
            routers can be targeted by name.
        sequential_targets: Class names of the decoder layers, where the model does not tell; by
            default the layers of `model.get_decoder()`.
        permute_columns: With N:4, first put the input columns of down_proj and o_proj into the
            order in which the pattern loses least. The rows of up_proj, gate_proj and v_proj
            follow, so that the model computes the same. Takes one more pass over the dense model,
            in one process.
        one_pass: Measure diversity and activation statistics of the dense model in one pass and
            prune at its end, without propagating the error of pruned layers. Give `oneshot` also
            `propagate_error=False` (or `pipeline="basic"`), or it repeats every layer for nothing.
        no_attention: What to do with decoder layers without softmax attention (linear attention,
            Mamba): "uniform" weighs all tokens the same, with one warning; "error" refuses.
        unreached_experts: How to prune experts that no calibration token was routed to: "pooled"
            (by what the other experts of the layer saw), "magnitude" or "error". The default, None,
            is "pooled" where at least half of the layer's experts were reached, and "error" below.
            Warning and report name them.
        modality_token_ids: Modality name ("image", "video", "audio") to placeholder ids, where the
            config of the model does not tell.
        token_types_fn: Function from a calibration batch to its token types, integers
            [batch, sequence] of the decoder's sequence (0 text, 1 image, 2 video, 3 audio, -1
            padding); for models whose ids do not tell. In YAML "package.module:function".
        dense_pipeline: Pipeline of the dense pass: "auto" (sequential, and basic where the model
            cannot be traced), "sequential" or "basic". The pass that prunes follows `pipeline` of
            `oneshot`, which falls back in the same way unless it is "sequential".
        tracing_ignore: Further function names that tracing skips in the dense pass.
        report_path: Where the JSON report goes, a path that ends in ".json"; none by default.
        keep_indices: Whether the report lists the tokens selected for every Linear, which takes
            memory with rules that select many. By default it does where it is written to a file.
        resume_path: A folder that keeps every finished decoder layer, so that a run that was killed
            resumes when it is started again; see `tamp_modifier.pruning.resume`. Remove it when the
            model is saved. With `one_pass` nothing is finished before the end.

    Raises:
        ValueError: A field out of range; a model, targets or data that cannot be pruned as asked.
            Everything that can be known before calibration is refused before it.

    `num_neighbors`, `threshold` and `positive_only`, fields of release 0.1, are accepted with a
    DeprecationWarning until 0.3.
    """

    requires_calibration_data: bool = True

    preset: str | None = None
    sparsity: float = 0.5
    mask_structure: str = "0:0"
    allocation: str | dict[str, float] = "das"
    allocation_options: dict[str, bool | float] = Field(default_factory=dict)
    selection: str = "amia"
    selection_options: dict[str, bool | float] = Field(default_factory=dict)
    max_sparsity: float | None = None
    score: str = "wanda"
    score_options: dict[str, bool | float] = Field(default_factory=dict)
    targets: str | list[str] = Field(default_factory=lambda: ["Linear"])
    ignore: str | list[str] = Field(default_factory=list)
    sequential_targets: str | list[str] | None = None
    permute_columns: bool = False
    one_pass: bool = False
    no_attention: Literal["uniform", "error"] = "uniform"
    unreached_experts: Literal["pooled", "magnitude", "error"] | None = None
    modality_token_ids: dict[str, int | list[int]] | None = None
    token_types_fn: str | Callable[[Mapping[str, Any]], torch.Tensor] | None = None
    dense_pipeline: Literal["auto", "sequential", "basic"] = "auto"
    tracing_ignore: list[str] = Field(default_factory=list)
    report_path: str | None = None
    keep_indices: bool | None = None
    # Left out of saved recipes: it belongs to one run.
    resume_path: str | None = Field(default=None, exclude=True)

    _run: PruningRun | None = PrivateAttr(default=None)
    _report: PruningReport | None = PrivateAttr(default=None)

    # -- fields

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise FieldError(refusals(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping):
            return fields
        fields = with_preset(fields)
        old = renamed_in(fields)
        if old:
            warnings.warn(
                f"{', '.join(old)}: fields of TAMPModifier until 0.3, give them in "
                "selection_options of 'amia' (and positive_only also in allocation_options of "
                "'das' or 'das_numel')",
                DeprecationWarning,
                stacklevel=4,
            )
        return with_new_names(fields)

    @field_validator(*_NUMBERS, mode="before")
    @classmethod
    def _check_number(cls, value: Any, info: ValidationInfo) -> Any:
        return refuse_bool(value, str(info.field_name))

    @field_validator("mask_structure", mode="before")
    @classmethod
    def _check_quoted(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            raise ValueError(
                f"mask_structure must be a string, got the number {value}, which is how YAML reads "
                f"{value // 60}:{value % 60} without quotes; write "
                f'mask_structure: "{value // 60}:{value % 60}"'
            )
        return value

    @field_validator("sparsity")
    @classmethod
    def _check_sparsity(cls, value: float) -> float:
        if not 0.0 < value < 1.0:
            raise ValueError(f"sparsity must be between 0 and 1, got {value}")
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
        return (
            value
            if value is None or isinstance(value, str)
            else f"{value.__module__}:{value.__qualname__}"
        )

    @model_validator(mode="after")
    def _check_fields(self) -> TAMPModifier:
        if self.modality_token_ids is not None and self.token_types_fn is not None:
            raise ValueError("give modality_token_ids or token_types_fn, not both")
        if self.max_sparsity is not None and not self.sparsity <= self.max_sparsity <= 1.0:
            raise ValueError(
                f"max_sparsity must be between sparsity ({self.sparsity}) and 1, "
                f"got {self.max_sparsity}"
            )
        structure = Rules.of(self).structure  # refuses names and options that are not known
        if self.permute_columns and not (structure.prune_n and structure.prune_m == GROUP):
            raise ValueError(
                "permute_columns needs mask_structure '1:4', '2:4' or '3:4', got "
                f"{self.mask_structure!r}"
            )
        if self.permute_columns and (self.one_pass or self.resume_path is not None):
            raise ValueError("permute_columns excludes one_pass and resume_path")
        return self

    # -- lifecycle

    def on_initialize(self, state: State, **kwargs: Any) -> bool:
        """Find the target Linears and refuse what cannot work.

        Raises:
            UpstreamChanged: llm-compressor lacks a name that is relied on.
            ValueError: see the class.
        """
        guard_zeros()
        if state.data.calib is None or len(state.data.calib) == 0:
            raise ValueError("TAMPModifier needs calibration data; give `dataset` to oneshot")
        if self.report_path is not None and is_source_process():
            check_writable(self.report_path)
        check_experts(state.model, active_session().lifecycle.recipe.modifiers)
        settings = Settings.resolve(self, state.model)
        check_others(settings.targets, self.report_path, self._others())
        self._run, self._report = PruningRun(settings, state.model), None
        complete_tracing()
        return True

    def on_calibration_start(self, state: State, event: Event, **kwargs: Any) -> None:
        """Read the batches, measure the dense model, and start to collect."""
        self.run.start(state.data.calib, self.register_hook)

    def on_sequential_epoch_end(
        self, state: State, event: Event, modules: list[torch.nn.Module], **kwargs: Any
    ) -> None:
        """Prune the Linears that have seen their calibration samples."""
        self.run.subgraph_done(modules)

    def on_calibration_end(self, state: State, event: Event, **kwargs: Any) -> None:
        """Prune what is left, check that no Linear was missed, and remove the hooks."""
        self.remove_hooks()
        self.run.finish()
        if is_source_process():
            Console(stderr=True).print(report_table(self.run.report))

    def on_finalize(self, state: State, **kwargs: Any) -> bool:
        """Check that the zeros are still there, mark the model, and keep the report.

        Raises:
            RuntimeError: the rest of the recipe brought pruned weights back.
        """
        run, self._run = self._run, None
        if run is None or not run.finished:
            return True  # refused before; the error has told why
        refuse_lost_zeros(state.model)
        # Saved with the model; by it vLLM knows, through the plugin, to serve the zeros sparse.
        setattr(state.model.config, CONFIG_KEY, config_marker("dense"))
        if is_source_process():
            self._report = run.report
            if self.report_path is not None:
                self._report.save(self.report_path)
        return True

    def abandon(self) -> None:
        """Clean up after an error or an interrupt in the middle of a run."""
        run, self._run = self._run, None
        if run is not None:
            run.abandon()

    def _others(self) -> list[tuple[Sequence[Target], str | None]]:
        """Targets and report path of the TAMPModifiers before this one in the recipe."""
        modifiers = active_session().lifecycle.recipe.modifiers or []
        return [
            (other.run.targets, other.report_path)
            for other in modifiers
            if isinstance(other, TAMPModifier) and other is not self and other._run is not None
        ]

    @property
    def run(self) -> PruningRun:
        """The run in progress, from initialization to finalization."""
        if self._run is None:
            raise RuntimeError("TAMPModifier is not initialized, or is finalized")
        return self._run

    @property
    def report(self) -> PruningReport | None:
        """The report of the finished run; None before finalization and in all processes but the
        first.
        """
        return self._report


ModifierFactory.register("TAMPModifier", TAMPModifier)
# Now, because a run that makes its modifiers from YAML has begun when they are initialised.
watch_zeros()
register_with_transformers()
