"""Every method, as the recipe that prunes with it.

All get the same calibration samples in the same order, the same Linears (those of the decoder
layers) and the same global sparsity; what was reached is written into every cell. Wanda and
SparseGPT are llm-compressor's own modifiers. A new method is one line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.quality import atp, ecoflap
from benchmarks.quality.job import Job, apply


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: what the user calls it.
        title: for tables and figures.
        modifier: class name of the modifier, of llm-compressor or of this project.
        fields: its fields, besides sparsity, structure and targets.
        with_structure: False where N:M leaves nothing of the method: every Linear then has the same
            sparsity, so a method that only shares the budget out is its score alone, and weights
            are compared in groups, whatever they are compared in otherwise.
        allocate: sparsity of every Linear by name, for methods whose allocation is not part of
            TAMPModifier.
        told: what a recipe says of that allocation.
    """

    name: str
    title: str
    modifier: str
    fields: Mapping[str, Any]
    with_structure: bool = True
    allocate: Callable[[Job], dict[str, float]] | None = None
    told: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, job: Job) -> dict[str, Any]:
        """Return the modifier's name and its fields, but for what `allocate` adds.

        A preset is written out, so that results tell which values it had.
        """
        modifier = self._modifier(job, {})
        if self.is_ours:
            dumped = modifier.model_dump(exclude_defaults=True).items()
            fields = {name: value for name, value in dumped if value is not None}
        else:
            fields = self._given(job)
        return {"modifier": self.modifier, "sparsity": job.sparsity, **fields, **self.told}

    def make(self, job: Job, more: Mapping[str, Any] | None = None) -> Any:
        """Return the modifier, with further fields if there are any."""
        given = {"allocation": self.allocate(job)} if self.allocate else {}
        return self._modifier(job, {**given, **(more or {})})

    def run(self, job: Job, more: Mapping[str, Any] | None = None) -> None:
        """Prune the model of a job in place, with further fields if there are any."""
        apply([self.make(job, more)], job, job.dense)

    @property
    def is_ours(self) -> bool:
        """Whether it is pruned by TAMPModifier."""
        return self.modifier == "TAMPModifier"

    def _given(self, job: Job) -> dict[str, Any]:
        same = {"sparsity": job.sparsity, "mask_structure": job.structure, **self.fields}
        return {**same, **(job.model.fields() if self.is_ours else {"targets": [job.model.layer]})}

    def _modifier(self, job: Job, more: Mapping[str, Any]) -> Any:
        from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

        from tamp_modifier import TAMPModifier

        known = {m.__name__: m for m in (TAMPModifier, WandaPruningModifier, SparseGPTModifier)}
        return known[self.modifier](**self._given(job), **more)


def _tamp(name: str, title: str, with_structure: bool = True, **fields: Any) -> Method:
    return Method(name, title, "TAMPModifier", fields, with_structure)


_OFFICIAL: dict[str, Any] = {"positive_only": True}
"""Option of AMIA and of DAS."""
_AMIA: dict[str, Any] = {"selection_options": _OFFICIAL}
_DAS: dict[str, Any] = {"allocation_options": _OFFICIAL}
_ALL: dict[str, Any] = {"selection": "all", "allocation": "uniform"}
_REFIT: dict[str, Any] = {"score": "sparsegpt", "score_options": {"refit": 8}}
_DAMPING: dict[str, Any] = {"damping": 0.2}
_ROW: dict[str, Any] = {"score": "sparsegpt", "score_options": {"per_row": 1, **_DAMPING}}
_ROW_REFIT: dict[str, Any] = {
    "score": "sparsegpt",
    "score_options": {"per_row": 1, "refit": 8, **_DAMPING},
}

BEFORE = "best_01"
_PRESET_BEFORE: dict[str, Any] = {
    "score": "sparsegpt",
    "score_options": {"damping": 0.05, "refit": 8},
    "selection": "balanced",
    "selection_options": {"modalities": 1.0, "samples": 1.0},
    "allocation": "atp",
    "allocation_options": {"rise": 0.75},
}

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _tamp("magnitude", "magnitude", score="magnitude", allocation="uniform"),
        Method("wanda", "Wanda", "WandaPruningModifier", {}),
        Method("sparsegpt", "SparseGPT", "SparseGPTModifier", {}),
        _tamp("owl", "Wanda + OWL", False, selection="all", allocation="owl"),
        _tamp("dlp", "Wanda + DLP", False, selection="all", allocation="dlp"),
        Method(
            "atp",
            "Wanda + ATP",
            "TAMPModifier",
            {"selection": "all"},
            False,
            atp.allocate,
            {"allocation": "atp", "step": atp.STEP, "patience": atp.PATIENCE},
        ),
        Method(
            "ecoflap",
            "ECoFLaP",
            "TAMPModifier",
            {"selection": "all"},
            False,
            lambda job: ecoflap.allocate(job.model, job.dense, job.batches, job.sparsity),
            {"allocation": "ecoflap", "mu": ecoflap.MU, "loss_samples": ecoflap.SAMPLES},
        ),
        _tamp("text", "text tokens only", selection="text", allocation="uniform"),
        _tamp("atv", "ATV-Pruning", selection="drift", allocation="uniform"),
        _tamp("amia", "TAMP, AMIA only", False, allocation="uniform", **_AMIA),
        _tamp("das", "TAMP, DAS only", False, selection="all", **_DAS),
        _tamp("das_numel", "AMIA + das_numel", False, allocation="das_numel", **_AMIA, **_DAS),
        _tamp("default", "TAMPModifier()"),
        _tamp("tamp", "TAMP, official code", **_AMIA, **_DAS),
        _tamp("solver", "SparseGPT, our damping", score="sparsegpt", **_ALL),
        _tamp("refit", "SparseGPT, our damping, refit", **_REFIT, **_ALL),
        _tamp("sparsegpt_row", "SparseGPT by row", False, **_ROW, **_ALL),
        _tamp(
            "sparsegpt_row_refit",
            "SparseGPT by row, refit",
            False,
            **_ROW_REFIT,
            **_ALL,
        ),
        _tamp("wanda_refit", "Wanda, refit", score="wanda_refit", score_options=_DAMPING, **_ALL),
        _tamp(
            "obs_row_refit",
            "w^2 / [H^-1]_jj by row, refit",
            score="obs",
            score_options=_DAMPING,
            **_ALL,
        ),
        _tamp(BEFORE, "the preset of 0.1", **_PRESET_BEFORE),
        _tamp("best", 'TAMPModifier(preset="best")', preset="best"),
    )
}

CANDIDATES = ("sparsegpt_row", "sparsegpt_row_refit", "wanda_refit", "obs_row_refit")
"""What the preset's score was chosen from."""

_SLOW_OR_NEAR = ("atp", "das_numel", "default", "solver", "refit", BEFORE, *CANDIDATES)
QUICK = tuple(m for m in METHODS if m not in _SLOW_OR_NEAR)
"""Those of the quick setting, without the ones that take longest or are near another."""

RIVALS = ("magnitude", "wanda", "sparsegpt", "tamp", BEFORE)
"""The ones that the preset is tested against. With N:M TAMP is AMIA alone."""

STEPS = ("sparsegpt", "solver", "refit", BEFORE, "best")
"""From SparseGPT to the preset: damping, exact counts and ties, then the refit, then balance and
the line over depth, then a choice within rows and more damping."""


def applies(method: Method, setting: str) -> bool:
    """Whether the method is one of its own at this setting."""
    return method.with_structure or ":" not in setting
