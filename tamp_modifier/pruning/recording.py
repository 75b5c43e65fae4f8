"""The report of a pruning run, from what the run knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from importlib import metadata

import torch

from tamp_modifier.calibration.batches import TokenBatch, count_tokens
from tamp_modifier.calibration.collect import SelectionCollector
from tamp_modifier.calibration.measurement import Measurement
from tamp_modifier.pruning.decide import Decision
from tamp_modifier.pruning.settings import Settings
from tamp_modifier.report.model import LinearReport, PruningReport, pair_name, weighted_sparsity

PACKAGES = ("tamp-modifier", "llmcompressor", "compressed-tensors", "transformers", "torch")


def build_report(
    settings: Settings,
    batches: Sequence[TokenBatch],
    decision: Decision,
    reached: Mapping[str, float],
    measured: Measurement | None,
    selected: SelectionCollector,
    timings: Mapping[str, float],
    warnings: Sequence[str] = (),
) -> PruningReport:
    """Return the report of a finished run.

    Args:
        settings: what was asked for.
        batches: the calibration batches.
        decision: what was allocated.
        reached: share of zeros after pruning, by Linear.
        measured: importance and similarities; None where the allocation needs none.
        selected: selected tokens.
        timings: seconds by phase.
        warnings: what the run warned of.
    """
    samples = sum(batch.types.shape[0] for batch in batches)
    linears = {}
    for target in settings.targets:
        name = target.name
        similarities = measured.similarities(name) if measured is not None else {}
        linears[name] = LinearReport(
            shape=tuple(target.module.weight.shape),  # type: ignore[arg-type]
            numel=target.module.weight.numel(),
            importance=measured.importance(name) if measured is not None else None,
            similarities={pair_name(pair): value for pair, value in similarities.items()},
            allocated=decision.sparsities[name],
            pattern=decision.patterns[name],
            reached=reached[name],
            tokens_seen=selected.tokens_seen(name),
            selected=selected.indices(name, samples),
            layer=target.layer or name.rpartition(".")[0],
        )
    shares = selected.attention()
    return PruningReport(
        requested_sparsity=settings.sparsity,
        reached_sparsity=weighted_sparsity(linears.values()),
        mask_structure=settings.told["mask_structure"],
        settings=dict(settings.told),
        versions={name: installed_version(name) for name in PACKAGES},
        seed=torch.initial_seed(),
        samples=samples,
        tokens=count_tokens(batches),
        timings=dict(timings),
        linears=linears,
        token_types=[types[types >= 0].tolist() for batch in batches for types in batch.types],
        attention={x.layer: shares[x.layer] for x in linears.values() if x.layer in shares},
        warnings=list(warnings),
        run={"date": date.today().isoformat()},
    )


def installed_version(package: str) -> str:
    """Version of an installed package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
