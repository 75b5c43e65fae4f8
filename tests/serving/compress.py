"""Prunes the demo model with recipes: ``python -m tests.serving.compress OUT RECIPE...``.

Runs in .venv, where llm-compressor is. Each recipe's checkpoint, with its processor, goes into
``OUT/NAME``, NAME being the recipe's file name without ``.yaml``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from llmcompressor import oneshot

import tamp_modifier.modifier  # noqa: F401 - makes TAMPModifier known to recipes
from tamp_modifier.demo.evaluation import calibration_dataloader, load_model, load_processor


def main() -> None:
    """Compress the model anew with every recipe."""
    out = Path(sys.argv[1])
    for recipe in map(Path, sys.argv[2:]):
        model = load_model(dtype=torch.bfloat16)
        oneshot(model=model, dataset=calibration_dataloader(8), recipe=str(recipe))
        model.save_pretrained(out / recipe.stem)
        load_processor().save_pretrained(out / recipe.stem)


if __name__ == "__main__":
    main()
