"""A folder like the one that `make smolav` makes, with a tiny model and drawn stand-in emoji."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.smolav.model import SmolAVForConditionalGeneration
from benchmarks.smolav.words import EMOJI
from tests.smolav.tiny import AUDIO, IMAGE, VIDEO, full_size_config

SPECIAL = ("<unk>", "<|im_start|>", "<|im_end|>", "\n", "Answer")


def tiny_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token per word of the world of SmolAV, placeholders at the ids of the tiny config."""
    source = Path("benchmarks/smolav")
    text = (source / "words.py").read_text() + (source / "questions.py").read_text()
    # The demo has the words for colours, shapes and places.
    text += Path("tamp_modifier/demo/pictures.py").read_text()
    words = dict.fromkeys(re.findall(r"[A-Za-z]+|[0-9]|[?:,]", text))
    ids = {token: index for index, token in enumerate(SPECIAL)}
    ids |= {"<image>": IMAGE, "<video>": VIDEO, "<audio>": AUDIO}
    for word in words:
        ids.setdefault(word, len(ids))
    assert len(ids) <= vocabulary
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:3])})
    return fast


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
