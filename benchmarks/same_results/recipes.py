"""The recipes, and the models that they prune."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.functional import pad
from transformers import AutoConfig, LlavaForConditionalGeneration

from tamp_modifier.demo.evaluation import (
    MODEL_FOLDER,
    calibration_dataloader,
    load_model,
    load_processor,
)

ROOT = Path(__file__).parent.parent.parent
SAMPLES = 3
"""Calibration samples of every recipe."""

# ---- models --------------------------------------------------------------------------------------


def demo_model(folder: Path) -> Any:
    """Return the bundled demo model, in fp32."""
    return load_model()


def demo_model_in_bfloat16(folder: Path) -> Any:
    """Return the bundled demo model, in bfloat16."""
    return load_model(dtype=torch.bfloat16)


def random_model(model_type: str, sizes: Mapping[str, Any], folder: Path) -> Any:
    """Return a model like the demo model, with random weights and another text decoder of two
    layers.

    Args:
        model_type: of the text decoder, as transformers names it.
        sizes: further fields of the text decoder's config.
        folder: where its config is put, with the demo model's processor.
    """
    config: Any = AutoConfig.from_pretrained(MODEL_FOLDER, local_files_only=True)
    config.text_config = AutoConfig.for_model(
        model_type,
        vocab_size=config.text_config.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.2,  # tokens that differ clearly, so that no choice hangs on rounding
        tie_word_embeddings=True,
        **sizes,
    )
    torch.manual_seed(0)
    model: Any = LlavaForConditionalGeneration(config).eval()
    # oneshot looks config and processor up in the folder that a model comes from.
    config.save_pretrained(folder)
    load_processor().save_pretrained(folder)
    model.config._name_or_path = str(folder)
    return model


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

MODELS: dict[str, Callable[[Path], Any]] = {
    "demo": demo_model,
    "bfloat16": demo_model_in_bfloat16,
    "experts": partial(random_model, "qwen3_moe", EXPERTS),
    "gemma": partial(random_model, "gemma3_text", {"sliding_window": 64}),
}
"""Name -> what makes a fresh model; it may use the empty folder that it gets."""


def make_batches(padded: bool) -> list[dict[str, torch.Tensor]]:
    """Return the calibration batches that fit all models.

    Args:
        padded: two samples a batch, padded on the left, instead of one.
    """
    samples = list(calibration_dataloader(SAMPLES))
    if not padded:
        return samples
    return [pad_together(samples[start : start + 2]) for start in range(0, len(samples), 2)]


def pad_together(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One batch of samples of different lengths; the id of padding is 0, as in the mask."""
    longest = max(sample["input_ids"].shape[1] for sample in samples)
    joined = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name != "pixel_values":
            values = [pad(value, (longest - value.shape[1], 0)) for value in values]
        joined[name] = torch.cat(values)
    return joined


# ---- recipes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """One run.

    Attributes:
        source: fields of TAMPModifier, or a YAML file that names it.
        model: a name of `MODELS`.
        arguments: further arguments of ``oneshot``.
        way: "plain"; "resumed", killed after some decoder layers and started again; or
            "processes", the samples shared out among two of them.
        padded: whether the batches hold several samples.
    """

    source: Mapping[str, Any] | Path
    model: str = "demo"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    way: Literal["plain", "resumed", "processes"] = "plain"
    padded: bool = False


def given_sparsities() -> dict[str, float]:
    """Return a sparsity for every target Linear of the demo model, another one in each layer."""
    attention = {f"self_attn.{name}_proj": 0.4 for name in "qkvo"}
    mlp = {f"mlp.{name}_proj": 0.5 for name in ("gate", "up", "down")}
    return {
        f"model.language_model.layers.{layer}.{name}": value + layer / 32
        for layer in range(6)
        for name, value in (attention | mlp).items()
    }


FIELDS: dict[str, dict[str, Any]] = {
    **{
        f"selection.{name}": {"selection": name}
        for name in ("amia", "drift", "text", "all", "balanced")
    },
    "selection.amia_options": {"num_neighbors": 5, "threshold": 0.3},
    "selection.amia_positive_only": {"positive_only": True},
    "selection.drift_alpha": {"selection": "drift", "selection_options": {"alpha": 2.0}},
    "selection.balanced_half": {
        "selection": "balanced",
        "selection_options": {"modalities": 0.5, "samples": 0.5},
    },
    # At another sparsity than the default, or "das" would repeat "selection.amia".
    **{
        f"allocation.{name}": {"allocation": name, "sparsity": 0.6}
        for name in ("das", "das_numel", "owl", "dlp", "atp", "uniform")
    },
    "allocation.given": {"allocation": given_sparsities()},
    "allocation.owl_options": {"allocation": "owl", "allocation_options": {"m": 3, "lam": 0.2}},
    "allocation.max_sparsity": {"max_sparsity": 0.55},
    "score.wanda": {"score": "wanda", "sparsity": 0.7},
    "score.sparsegpt": {"score": "sparsegpt"},
    "score.sparsegpt_refit": {"score": "sparsegpt", "score_options": {"refit": 4}},
    "score.sparsegpt_drift": {"score": "sparsegpt", "selection": "drift", "allocation": "owl"},
    "score.sparsegpt_by_row": {"score": "sparsegpt", "score_options": {"per_row": 1}},
    "score.obs": {"score": "obs"},
    "score.wanda_refit": {"score": "wanda_refit"},
    "score.magnitude": {"score": "magnitude"},
    "structure.2of4": {"mask_structure": "2:4"},
    "structure.2of4_at_40": {"mask_structure": "2:4", "sparsity": 0.4},
    "structure.2of4_sparsegpt": {"mask_structure": "2:4", "score": "sparsegpt"},
    "structure.2of4_magnitude": {"mask_structure": "2:4", "score": "magnitude"},
    "structure.n_of_8": {"mask_structure": "n:8"},
    "structure.n_of_8_owl": {"mask_structure": "n:8", "allocation": "owl", "sparsity": 0.6},
    "structure.permute_columns": {"mask_structure": "2:4", "permute_columns": True},
    "targets": {"targets": ["re:.*mlp.*_proj$"], "ignore": ["re:.*layers.0.*"]},
    "preset.best_50": {"preset": "best"},
    "preset.best_60": {"preset": "best", "sparsity": 0.6},
    "preset.best_2of4": {"preset": "best", "mask_structure": "2:4"},
}
"""Plain runs on the demo model: name -> fields of TAMPModifier."""


def make_recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    owl_drift = {"allocation": "owl", "selection": "drift"}
    best = {"preset": "best"}
    one_pass = {"one_pass": True}
    basic = {"pipeline": "basic"}
    of_dense = {"propagate_error": False}
    at_40 = {"mask_structure": "2:4", "sparsity": 0.4}
    recipes = {name: Recipe(fields) for name, fields in FIELDS.items()} | {
        "one_pass.das": Recipe(one_pass, arguments=of_dense),
        "one_pass.owl_drift": Recipe(one_pass | owl_drift, arguments=of_dense),
        "one_pass.basic": Recipe(one_pass, arguments=basic),
        "padded.das": Recipe({}, padded=True),
        "padded.owl_drift": Recipe(owl_drift, padded=True),
        "padded.best": Recipe(best, padded=True),
        "bfloat16.das": Recipe({}, "bfloat16"),
        "bfloat16.best": Recipe(best, "bfloat16"),
        "experts.das": Recipe({}, "experts"),
        "experts.owl_drift": Recipe(owl_drift, "experts"),
        "experts.2of4_text": Recipe({"mask_structure": "2:4", "selection": "text"}, "experts"),
        "experts.best_60": Recipe(best | {"sparsity": 0.6}, "experts"),
        "resumed.das": Recipe({}, way="resumed"),
        "resumed.owl_drift": Recipe(owl_drift, way="resumed"),
        "resumed.best": Recipe(best, way="resumed"),
        "two_processes.das": Recipe({}, way="processes"),
        "two_processes.one_pass": Recipe(one_pass, arguments=basic, way="processes"),
        "two_processes.owl_drift_2of4_at_40": Recipe(owl_drift | at_40, way="processes"),
        "two_processes.best": Recipe(best, way="processes"),
        "two_processes.experts": Recipe({}, "experts", way="processes"),
    }
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        name = path.relative_to(ROOT).with_suffix("").as_posix()
        recipes[name] = Recipe(path, "gemma" if path.parent.name == "gemma" else "demo")
    return recipes


RECIPES = make_recipes()
