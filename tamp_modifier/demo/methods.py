"""What the demo compares: methods, settings, and the modifiers of each.

Wanda and SparseGPT are llm-compressor's own modifiers, TAMP is ``TAMPModifier()``, whose defaults
are the published method, and the preset is what we recommend.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

DECODER_LAYER = "LlamaDecoderLayer"
PRESET = "best"
METHODS = ("Wanda", "SparseGPT", "TAMP", "preset")
OURS = METHODS[-1]
SETTINGS = ((0.5, "0:0"), (0.6, "0:0"), (0.7, "0:0"), (0.5, "2:4"))
SCHEME = "W4A16"
"""Weights in 4 bits, a scale for each group of 128; activations as they are."""
RECOVERY = "recovery"
"""Training of what is left for `MINUTES`, the dense model teaches."""
MINUTES = 0.6
ITEMS = 25
"""Questions per task. With these two the demo takes less than four minutes on two cores."""
SEED = 0


@dataclass(frozen=True)
class Step:
    """One pruned model of the comparison.

    Attributes:
        method: A name of `METHODS`.
        sparsity: Share of the decoder's weights to remove, 0 to 1.
        mask_structure: "0:0" or "N:M".
        then: What comes after pruning, `SCHEME` or `RECOVERY`; "" for nothing.
        folder: Name of the folder that the checkpoint is written to; "" for none.
    """

    method: str
    sparsity: float
    mask_structure: str
    then: str = ""
    folder: str = ""

    @property
    def setting(self) -> str:
        """The sparsity, or the pattern, and what comes then, as people write them."""
        return setting_label(self.sparsity, self.mask_structure, self.then)

    @property
    def name(self) -> str:
        """Method and setting."""
        return f"{self.method} {self.setting}"


def steps() -> list[Step]:
    """Every method at every setting, then the preset with 4-bit weights and with a recovery."""
    first, sparsest = SETTINGS[0], SETTINGS[2]
    saved = {(OURS, *first): "best-50"}
    compared = [
        Step(method, *setting, folder=saved.get((method, *setting), ""))
        for setting in SETTINGS
        for method in METHODS
    ]
    return [
        *compared,
        Step(OURS, *first, SCHEME, "best-50-w4a16"),
        Step(OURS, *sparsest, RECOVERY, "best-70-recovered"),
    ]


def setting_label(sparsity: float, mask_structure: str, then: str = "") -> str:
    """Return a setting as people write it: "50 %", "2:4" or "50 % + W4A16"."""
    pruned = mask_structure if mask_structure != "0:0" else f"{100 * sparsity:.0f} %"
    return f"{pruned} + {then}" if then else pruned


def modifiers(step: Step, report_path: str) -> list[Any]:
    """Return the modifiers of a step, for ``oneshot``.

    Args:
        step: What to do.
        report_path: Where TAMPModifier writes its report.
    """
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    from tamp_modifier import FittedGPTQModifier, TAMPModifier

    same: dict[str, Any] = {"sparsity": step.sparsity, "mask_structure": step.mask_structure}
    if step.method in ("Wanda", "SparseGPT"):
        theirs = WandaPruningModifier if step.method == "Wanda" else SparseGPTModifier
        recipe: list[Any] = [theirs(**same, targets=[DECODER_LAYER])]
    else:
        preset = PRESET if step.method == OURS else None
        recipe = [TAMPModifier(**same, preset=preset, report_path=report_path)]
    if step.then == SCHEME:
        ignore = ["re:.*lm_head$", "re:.*(vision|projector).*"]
        recipe.append(FittedGPTQModifier(targets=["Linear"], scheme=SCHEME, ignore=ignore))
    return recipe


def prune(model: Any, step: Step, loader: Any, report_path: str) -> float:
    """Prune the Linears of the text decoder in place.

    Args:
        model: The demo model, or another LLaVA on a Llama decoder.
        step: How.
        loader: Calibration batches.
        report_path: Where TAMPModifier writes its report.

    Returns:
        Wall time in seconds.
    """
    import torch
    from llmcompressor import oneshot

    torch.manual_seed(SEED)
    begin = time.perf_counter()
    oneshot(
        model=model,
        dataset=loader,
        recipe=modifiers(step, report_path),
        num_calibration_samples=len(loader),
        shuffle_calibration_samples=False,
        sequential_targets=[DECODER_LAYER],
    )
    return time.perf_counter() - begin
