"""Runs oneshot on tiny models, for tests that need llm-compressor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers import Modifier
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

Batch = dict[str, torch.Tensor]

IGNORE = ["re:.*lm_head$", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"]
"""What quantization leaves out of the tiny models."""


def int4(**weights: Any) -> dict[str, Any]:
    """Fields of a quantizing modifier: 4 bits, symmetric, in groups of 16, but for `weights`."""
    found = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16}
    group = {"targets": ["Linear"], "weights": found | weights}
    return {"config_groups": {"group_0": group}, "ignore": IGNORE}


def prune(
    model: torch.nn.Module,
    batches: Sequence[Batch] | DataLoader,
    recipe: Modifier | list[Modifier] | str,
    folder: Path,
    **arguments: Any,
) -> torch.nn.Module:
    """Runs a recipe on a model that lies only in memory.

    Args:
        model: the model; pruned in place.
        batches: ready batches, or a loader of them.
        recipe: one modifier, several, or the path of a YAML file.
        folder: where the config is put, which oneshot looks up by name.
        arguments: passed on to oneshot.
    """
    model.config.save_pretrained(folder)
    model.config._name_or_path = str(folder)
    word_level = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    loader = (
        batches if isinstance(batches, DataLoader) else DataLoader(list(batches), batch_size=None)
    )
    oneshot(
        model=model,
        processor=PreTrainedTokenizerFast(tokenizer_object=word_level, unk_token="?"),
        dataset=loader,
        recipe=[recipe] if isinstance(recipe, Modifier) else recipe,
        **arguments,
    )
    return model


def linear_weights(model: torch.nn.Module, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Copies of the weights of some Linears."""
    return {name: model.get_submodule(name).weight.detach().clone() for name in names}


def sparsity(weight: torch.Tensor) -> float:
    """Share of zeros."""
    return float((weight == 0).double().mean())
