"""The architecture: media reach the decoder, oneshot prunes it, and it survives a round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llmcompressor import oneshot
from torch.utils.data import DataLoader

from benchmarks.smolav.model import SmolAVForConditionalGeneration
from benchmarks.tests.smolav.tiny import (
    AUDIO,
    IMAGE,
    VIDEO,
    tiny_batch,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
)
from tamp_modifier import TAMPModifier
from tamp_modifier.report import PruningReport
from tamp_modifier.tokens import modality_token_ids, token_types

ALL = ("image", "video", "audio")


def test_each_medium_changes_the_answer_and_only_from_its_place_on() -> None:
    model = tiny_model()
    fields = dict(zip(ALL, ("pixel_values", "pixel_values_videos", "input_features"), strict=True))
    tokens = dict(zip(ALL, (IMAGE, VIDEO, AUDIO), strict=True))
    batch = tiny_batch(*ALL)
    with torch.no_grad():
        before = model(**batch).logits
        for name, field in fields.items():
            changed = {**batch, field: batch[field] + 1.0}
            difference = (model(**changed).logits - before).abs().sum(-1)[0]
            first = int((batch["input_ids"][0] == tokens[name]).nonzero()[0])
            assert difference[:first].max() == 0
            assert difference[-1] > 0


def test_placeholders_are_counted_by_the_config() -> None:
    config = tiny_config()
    assert (config.image_tokens, config.video_tokens, config.audio_tokens) == (16, 8, 8)
    batch = tiny_batch(*ALL)
    types = token_types(batch["input_ids"], modality_token_ids(config))[0]
    assert types.bincount().tolist() == [7, 16, 8, 8]


def test_video_tokens_keep_frames_and_places_apart() -> None:
    model = tiny_model().model
    frames = torch.arange(2 * 16).float().view(2, 16, 1)
    pooled = model.pooled_frames(frames)
    assert pooled.shape == (1, 8, 4)
    assert pooled[0, 0].tolist() == [0, 1, 4, 5]  # upper left 2 x 2 patches of the first frame
    assert pooled[0, 7].tolist() == [26, 27, 30, 31]  # lower right ones of the second


def test_generation_sees_the_media_once() -> None:
    model: Any = tiny_model()
    batch = tiny_batch(*ALL)
    with torch.no_grad():
        fast = model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0)
        slow = batch["input_ids"]
        for _ in range(fast.shape[1] - slow.shape[1]):
            inputs = {**batch, "input_ids": slow, "attention_mask": torch.ones_like(slow)}
            slow = torch.cat([slow, model(**inputs).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(fast, slow)


def test_save_and_reload_keeps_every_weight(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    again = SmolAVForConditionalGeneration.from_pretrained(tmp_path)
    batch = tiny_batch(*ALL)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again.eval()(**batch).logits)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert again.config.image_token_id == IMAGE


def test_labels_give_the_loss_of_the_next_token() -> None:
    model = tiny_model()
    batch = tiny_batch("image")
    with torch.no_grad():
        outputs = model(**batch, labels=batch["input_ids"])
    logits = outputs.logits[0, :-1].log_softmax(-1)
    expected = -logits.gather(1, batch["input_ids"][0, 1:, None]).mean()
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds",
    [
        (("image",), ("video",), ("audio",), ("image", "audio"), ()),
        ((), ("audio",), ("image",), ("video",)),
    ],
)
def test_oneshot_prunes_the_decoder_and_sees_every_modality(
    kinds: tuple[tuple[str, ...], ...], tmp_path: Path
) -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches: Any = [tiny_batch(*kind, seed=index) for index, kind in enumerate(kinds)]
    report = tmp_path / "report.json"
    processor: Any = tiny_tokenizer(1024)  # oneshot wants one and does not look at it
    model.config.save_pretrained(tmp_path)  # oneshot looks the config up by the model's name
    model.config._name_or_path = str(tmp_path)
    oneshot(
        model=model,
        processor=processor,
        dataset=DataLoader(batches, batch_size=None),
        recipe=TAMPModifier(sparsity=0.5, report_path=str(report)),
        sequential_targets=["LlamaDecoderLayer"],
    )
    written = PruningReport.load(report)
    linears = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "language_model.layers" in name
    }
    assert set(written.linears) == linears
    for name in linears:
        weight = model.get_submodule(name).get_parameter("weight")
        assert 0.3 < weight.eq(0).double().mean() < 0.7
    ids = torch.cat([batch["input_ids"][0] for batch in batches])
    media = {"image": IMAGE, "video": VIDEO, "audio": AUDIO}
    counts = {name: int((ids == token).sum()) for name, token in media.items()}
    assert written.tokens == {"text": len(ids) - sum(counts.values()), **counts}
    assert all(entry.tokens_seen > 0 for entry in written.linears.values())
    after = model.state_dict()
    kept = [name for name in before if not any(name.startswith(linear) for linear in linears)]
    assert all(torch.equal(before[name], after[name]) for name in kept)
