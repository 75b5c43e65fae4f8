"""How sparse each target Linear gets, and in which pattern."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tamp_modifier.allocation.registry import explicit_allocation
from tamp_modifier.calibration.measurement import Measurement
from tamp_modifier.pruning.settings import Settings


@dataclass(frozen=True)
class Decision:
    """What was decided.

    Attributes:
        sparsities: Linear -> share of its weights that goes.
        patterns: Linear -> "0:0", "N:M" or "dense".
    """

    sparsities: Mapping[str, float]
    patterns: Mapping[str, str]


def allocate(settings: Settings, measured: Measurement | None = None) -> Decision:
    """Share the budget out.

    Args:
        settings: the rule, or the sparsities that are given, and the Linears.
        measured: what the rule looks at; None where it needs no dense pass.

    Raises:
        ValueError: sparsities or options that do not fit the model.
    """
    numel, structure, rule = settings.numel, settings.structure, settings.allocation
    if settings.given is not None:
        sparsities = explicit_allocation(settings.given, numel)
        if structure.prune_m:
            return Decision(*structure.check_given(sparsities))
    elif rule is None:
        sparsities = dict.fromkeys(numel, settings.sparsity)
    else:
        found = importance(settings, measured)
        sparsities = rule(found, numel, settings.sparsity, settings.cap)
    shapes = {t.name: (t.module.out_features, t.module.in_features) for t in settings.targets}
    return Decision(*structure.choose(sparsities, shapes, settings.cap))


def allocate_before(settings: Settings) -> Decision | None:
    """Share the budget out before calibration; None where the rule needs a dense pass.

    Raises:
        ValueError: sparsities or options that do not fit the model.
    """
    rule = settings.allocation
    return None if rule is not None and rule.needs_dense_pass else allocate(settings)


def importance(settings: Settings, measured: Measurement | None) -> dict[str, float]:
    """Return what the allocation rule looks at, by Linear; nothing where it looks at nothing."""
    if measured is not None:
        return measured.importance_of(list(settings.numel))
    if settings.allocation is None or settings.allocation.measure != "depth":
        return {}
    depths = {layer: float(depth) for depth, layer in enumerate(settings.layers)}
    return {t.name: depths[t.layer] for t in settings.targets if t.layer is not None}
