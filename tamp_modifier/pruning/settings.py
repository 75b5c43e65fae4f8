"""What the fields of a TAMPModifier amount to: computed once, before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmcompressor.modifiers import Modifier
from loguru import logger
from torch import nn

from tamp_modifier.allocation.base import Allocation
from tamp_modifier.allocation.patterns import Structure
from tamp_modifier.allocation.registry import get_allocation
from tamp_modifier.calibration.batches import TokenTypesFunction, import_function
from tamp_modifier.calibration.distributed import ranks
from tamp_modifier.calibration.targets import (
    Target,
    find_decoder_layers,
    find_targets,
    warn_left_dense,
)
from tamp_modifier.pruning.checks import check_columns, check_quantized_before, check_weights
from tamp_modifier.pruning.columns import FreeColumns, find_free_columns
from tamp_modifier.scores.base import Score
from tamp_modifier.scores.registry import get_score
from tamp_modifier.selection.base import Selection
from tamp_modifier.selection.by_modality import AllTokens
from tamp_modifier.selection.registry import get_selection
from tamp_modifier.tokens import is_multimodal, modality_token_ids, parse_modality_token_ids


@dataclass(frozen=True, eq=False)
class Rules:
    """The rules that the fields name, whatever the model.

    Attributes:
        sparsity: share of the weights of all target Linears that is pruned.
        structure: the mask structure together with the sparsity that it shall reach.
        allocation: the allocation rule; None where sparsities are given by name or all Linears get
            the same N:M.
        given: the sparsity of every target Linear by name, or None.
        cap: highest sparsity of a single Linear.
        score: the score.
        selection: the selection rule; where the score looks at no token the one that costs nothing.
        one_pass: whether everything is measured in one pass over the dense model.
        permute_columns: whether input columns change places first.
    """

    sparsity: float
    structure: Structure
    allocation: Allocation | None
    given: Mapping[str, float] | None
    cap: float
    score: Score
    selection: Selection
    one_pass: bool
    permute_columns: bool

    @classmethod
    def of(cls, fields: Any) -> Rules:
        """Find the rules by name and give them their options.

        Args:
            fields: a TAMPModifier, for its fields.

        Raises:
            ValueError: an unknown rule, or options or a structure that cannot be.
        """
        selection = get_selection(fields.selection, **fields.selection_options)
        score = get_score(fields.score, **fields.score_options)
        named = given = None
        if isinstance(fields.allocation, str):
            named = get_allocation(fields.allocation, **fields.allocation_options)
        elif fields.allocation_options:
            raise ValueError("allocation_options are for a rule by name, not for given sparsities")
        else:
            given = fields.allocation
        structure = Structure.parse(fields.mask_structure, fields.sparsity, fields.max_sparsity)
        allocation = None if structure.is_fixed else named
        default = 1.0 if allocation is None else allocation.default_cap(fields.sparsity)
        return cls(
            sparsity=fields.sparsity,
            structure=structure,
            allocation=allocation,
            given=given,
            cap=structure.cap(default),
            score=score,
            selection=selection if score.needs_tokens else AllTokens(),
            one_pass=fields.one_pass,
            permute_columns=fields.permute_columns,
        )

    @property
    def passes(self) -> int:
        """Number of times that the samples pass the model.

        Two for pruning layer by layer, as each layer is passed again when it is pruned; one more
        for what the allocation measures, and one for the order of columns. One in all with
        ``one_pass``.
        """
        if self.one_pass:
            return 1
        measures = self.allocation is not None and self.allocation.needs_dense_pass
        return 2 + measures + self.permute_columns


@dataclass(frozen=True, eq=False)
class Settings(Rules):
    """What a run has to know: the rules, and what the other fields mean for one model.

    Attributes:
        layers: the decoder layers by name, in order of depth.
        targets: the Linears that are pruned.
        free_columns: input columns that change places; none without ``permute_columns``.
        placeholder_ids: placeholder ids of every modality.
        token_types: the user's function from a batch to its token types, or None.
        refuses_missing_attention: whether decoder layers without attention weights are refused.
        unreached_experts: what experts without a token are pruned by, or None for the default.
        dense_pipeline: pipeline of passes over the dense model.
        tracing_ignore: further function names that tracing skips in them.
        keep_indices: whether the report lists the selected tokens.
        resume_path: where finished decoder layers are kept, or None.
        told: the fields as JSON values, for the report.
        warnings: what was warned of, for the report.
    """

    layers: Mapping[str, nn.Module]
    targets: Sequence[Target]
    free_columns: Sequence[FreeColumns]
    placeholder_ids: Mapping[str, tuple[int, ...]]
    token_types: TokenTypesFunction | None
    refuses_missing_attention: bool
    unreached_experts: str | None
    dense_pipeline: str
    tracing_ignore: Sequence[str]
    keep_indices: bool
    resume_path: str | None
    told: Mapping[str, Any]
    warnings: Sequence[str]

    @classmethod
    def resolve(cls, fields: Any, model: nn.Module) -> Settings:
        """Find what the fields mean for a model, which is not changed.

        Args:
            fields: a TAMPModifier, for its fields.
            model: the model to prune; its weights may be on the meta device.

        Raises:
            ValueError: fields that do not fit the model.
        """
        rules = Rules.of(fields)
        layers = find_decoder_layers(model, _as_list(fields.sequential_targets))
        targets, unused = find_targets(
            model, layers, _as_list(fields.targets), _as_list(fields.ignore)
        )
        if unused:
            logger.warning(f"ignore={unused} match no module of the model")
        check_weights(targets)
        check_columns(targets, rules.structure.prune_m)
        check_quantized_before(targets, rules.score)
        if rules.permute_columns and ranks() > 1:
            raise ValueError("permute_columns works in one process only")
        keep_indices = fields.keep_indices
        if keep_indices is None:
            keep_indices = fields.report_path is not None
        fn = fields.token_types_fn
        return cls(
            **vars(rules),
            layers=layers,
            targets=targets,
            free_columns=find_free_columns(model, targets) if rules.permute_columns else (),
            placeholder_ids=_placeholder_ids(fields, model),
            token_types=import_function(fn) if isinstance(fn, str) else fn,
            refuses_missing_attention=fields.no_attention == "error",
            unreached_experts=fields.unreached_experts,
            dense_pipeline=fields.dense_pipeline,
            tracing_ignore=fields.tracing_ignore,
            keep_indices=keep_indices and rules.selection.is_listed,
            resume_path=fields.resume_path,
            told=fields.model_dump(exclude=set(Modifier.model_fields)),
            warnings=warn_left_dense(layers, targets),
        )

    @property
    def numel(self) -> dict[str, int]:
        """Number of weights of every target Linear."""
        return {target.name: target.module.weight.numel() for target in self.targets}


def _placeholder_ids(fields: Any, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return placeholder ids of every modality, from the user or the model's config.

    Raises:
        ValueError: a multimodal model whose modalities cannot be told.
    """
    if fields.modality_token_ids is not None:
        return parse_modality_token_ids(fields.modality_token_ids)
    config = getattr(model, "config", None)
    ids = modality_token_ids(config)
    if not ids and fields.token_types_fn is None and is_multimodal(config):
        raise ValueError(
            f"the config of {type(model).__name__} names no image, video or audio token id; "
            'give modality_token_ids (e.g. {"image": 32000}) or token_types_fn'
        )
    return ids


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
