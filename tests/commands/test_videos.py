"""``tamp prune`` of models that see videos, with their own processors and without torchvision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tamp_modifier import cli
from tamp_modifier.demo.tiny import tiny_model
from tamp_modifier.report import PruningReport
from tamp_modifier.workflows.models import load_processor
from tests.data.files import asked, jsonl, picture, video

pytestmark = pytest.mark.slow

CLASSES = {
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "<|vision_start|><|video_pad|><|vision_end|> "),
    "qwen3_vl": ("Qwen3VLProcessor", "<|vision_start|><|video_pad|><|vision_end|> "),
    "qwen2_5_omni": ("Qwen2_5OmniProcessor", "<|vision_bos|><|VIDEO|><|vision_eos|> "),
}
OMNI = ("image", "video", "audio", "vision_bos", "vision_eos", "audio_bos", "audio_eos")
PICTURES: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 8,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 1024, "longest_edge": 16384},
}
VIDEOS = {"qwen3_vl": {"video_processor_type": "Qwen3VLVideoProcessor"}}


def write_model(name: str, folder: Path) -> None:
    """A tiny model with the files that its real processor is loaded from."""
    model, processor = tiny_model(name)
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    kind, turn = CLASSES[name]
    template = processor.chat_template.replace(
        "part['text']", f"'{turn}' if part['type'] == 'video' else part['text']"
    )
    (folder / "chat_template.jinja").write_text(template)
    config = {**PICTURES, "processor_class": kind}
    if name == "qwen2_5_omni":  # hears, too, and asks its tokenizer for the names of tokens
        config = {**processor.feature_extractor.to_dict(), **config}
        path = folder / "tokenizer_config.json"
        tokenizer = json.loads(path.read_text())
        tokenizer["extra_special_tokens"] = {
            f"{part}_token": getattr(processor.tokenizer, f"{part}_token") for part in OMNI
        }
        path.write_text(json.dumps(tokenizer))
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    if name in VIDEOS:
        both = {**PICTURES, **VIDEOS[name]}
        both.pop("image_processor_type")
        (folder / "video_preprocessor_config.json").write_text(json.dumps(both))


@pytest.mark.parametrize("name", CLASSES)
def test_pictures_text_and_videos_go_through_the_whole_command(name: str, tmp_path: Path) -> None:
    write_model(name, tmp_path / "model")
    picture(tmp_path / "a.png", (64, 48))
    video(tmp_path / "b.mp4", frames=6)
    data = jsonl(
        tmp_path / "data.jsonl",
        [asked(("image", "a.png")), asked(), asked(("video", "b.mp4"))],
    )
    out = tmp_path / "out"
    arguments = ["prune", str(tmp_path / "model"), "--data", str(data), "--output", str(out)]
    assert cli.main([*arguments, "--frames", "2"]) == 0
    report = PruningReport.load(out / "tamp_report.json")
    # 48 x 64 pixels are 6 x 8 patches, four of which make one token; two frames are one.
    assert report.tokens["image"] == 12
    # Qwen2.5-Omni's processor enlarges small videos to 36 x 46 patches.
    assert report.tokens["video"] == (18 * 23 if name == "qwen2_5_omni" else 12)
    assert report.reached_sparsity == pytest.approx(0.5, abs=0.01)
    again = load_processor(str(out)).video_processor
    before = load_processor(str(tmp_path / "model")).video_processor
    assert type(again) is type(before)
    frames = torch.arange(6 * 3 * 48 * 64).reshape(6, 3, 48, 64).to(torch.uint8)
    values = [
        each([frames], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
        for each in (again, before)
    ]
    assert torch.equal(*values)
