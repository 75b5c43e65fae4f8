"""Videos through Qwen2.5-VL's own processor, which wants torchvision: it is in this environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from transformers import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from tamp_modifier.data import Collator, Encoder, read_conversations
from tamp_modifier.demo.tiny import tiny_model
from tamp_modifier.tokens import modality_token_ids
from tamp_modifier.upstream import videos

VIDEO_TURN = "<|vision_start|><|video_pad|><|vision_end|> "


def with_videos(processor: Any) -> Any:
    """The tiny model's processor, with the real one for videos."""
    seeing = Qwen2VLVideoProcessor(
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 1024, "longest_edge": 16384},
    )
    template = processor.chat_template.replace(
        "part['text']", f"'{VIDEO_TURN}' if part['type'] == 'video' else part['text']"
    )
    return Qwen2_5_VLProcessor(
        processor.image_processor, processor.tokenizer, seeing, chat_template=template
    )


def frames(folder: Path, count: int, size: tuple[int, int]) -> str:
    """A video as a folder of frames."""
    folder.mkdir()
    random = np.random.default_rng(count)
    for number in range(count):
        pixels = random.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder.name


def asked(*parts: tuple[str, str]) -> dict[str, Any]:
    content = [{"type": kind, "path": path} for kind, path in parts]
    return {
        "messages": [
            {"role": "user", "content": [*content, {"type": "text", "text": "what is red ?"}]},
            {"role": "assistant", "content": "ring"},
        ]
    }


@torch.no_grad()
def test_videos_of_different_sizes_in_a_batch_are_what_they_are_alone(tmp_path: Path) -> None:
    model, processor = tiny_model("qwen2_5_vl")
    model = model.float().eval()
    processor = with_videos(processor)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    rows = [
        asked(("video", frames(tmp_path / "long", 8, (32, 48)))),
        asked(("video", frames(tmp_path / "short", 4, (64, 32))), ("image", "a.png")),
        asked(("image", "a.png")),
        asked(),
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = modality_token_ids(model.config)
    encode = Encoder(processor, ids, frames=4)
    encoded = [encode(conversation) for conversation in read_conversations(data)]
    # Four frames of either video; two frames make one step in time.
    assert [int(row.inputs["video_grid_thw"][0, 0]) for row in encoded[:2]] == [2, 2]
    collate = Collator(processor, ids)
    batch = collate(encoded)
    together = model(**batch).logits
    for number, row in enumerate(encoded):
        alone = model(**collate([row])).logits[0]
        real = together[number][batch["attention_mask"][number].bool()]
        torch.testing.assert_close(real, alone, rtol=0, atol=2e-5)
        for kind in ("video", "image"):
            shown = torch.isin(row.inputs["input_ids"], torch.tensor(list(ids[kind]))).any()
            assert bool(shown) == (f"{kind}_grid_thw" in row.inputs)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("mode", ["BILINEAR", "BICUBIC", "NEAREST"])
def test_our_functions_give_the_bits_of_torchvision(mode: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (2, 3, 50, 70), generator=generator).to(dtype)
    for size in ((28, 42), (84, 112), (50, 70)):
        ours = videos.resize(values, size, videos.InterpolationMode[mode])
        theirs = tvf.resize(values, list(size), tvf.InterpolationMode[mode], antialias=True)
        assert torch.equal(ours, theirs)
    for box in ((3, 4, 20, 30), (-2, -3, 60, 80), (45, 60, 20, 20)):
        assert torch.equal(videos.crop(values, *box), tvf.crop(values, *box))
    padding = [1, 2, 3, 4]
    for how in ("constant", "edge", "reflect"):
        scaled = values.float()
        ours = videos.pad(scaled, padding, padding_mode=how)
        assert torch.equal(ours, tvf.pad(scaled, padding, padding_mode=how))
    scaled, mean, std = values.float(), [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    assert torch.equal(videos.normalize(scaled, mean, std), tvf.normalize(scaled, mean, std))
    for channels in (1, 3):
        part = values[:, :channels]
        assert torch.equal(videos.grayscale_to_rgb(part), tvf.grayscale_to_rgb(part))
    picture = Image.fromarray(values[0].to(torch.uint8).permute(1, 2, 0).numpy())
    assert torch.equal(videos.pil_to_tensor(picture), tvf.pil_to_tensor(picture))
