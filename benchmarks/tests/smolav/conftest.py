"""A folder like the one that `make smolav` makes, with a tiny model and drawn stand-in emoji."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from benchmarks.smolav.model import SmolAVForConditionalGeneration
from benchmarks.smolav.words import EMOJI
from benchmarks.tests.smolav.tiny import full_size_config, tiny_tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, tokenizer and emoji."""
    path = tmp_path_factory.mktemp("smolav")
    torch.manual_seed(0)
    config = full_size_config()
    SmolAVForConditionalGeneration(config).save_pretrained(path / "model")
    tiny_tokenizer(config.text_config.vocab_size).save_pretrained(path / "model")
    (path / "emoji").mkdir()
    for index, code in enumerate(EMOJI.values()):
        picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        colour = (37 * index % 256, 91 * index % 256, 151 * index % 256, 255)
        ImageDraw.Draw(picture).polygon([(4, 4), (60, 20), (30, 60)], fill=colour)
        picture.save(path / "emoji" / f"{code}.png")
    return path
