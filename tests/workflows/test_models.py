"""Which class a folder is loaded with."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

from tamp_modifier.workflows.models import load_config, load_model
from tests.architectures.models import build


def test_of_an_omni_model_the_thinker_is_loaded(tmp_path: Path) -> None:
    thinker, _, _ = build("qwen2_5_omni")
    config = Qwen2_5OmniConfig(thinker_config=thinker.config.to_dict(), enable_audio_output=False)
    whole = Qwen2_5OmniForConditionalGeneration(config)
    whole.thinker.load_state_dict(thinker.state_dict())
    whole.save_pretrained(tmp_path)
    found = load_model(str(tmp_path), load_config(str(tmp_path)))
    assert type(found) is type(thinker)
    for name, weight in thinker.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, rtol=0, atol=0)
