"""Batches: one of several samples gives each the logits it has alone; nothing of media is cut."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamp_modifier import TAMPModifier
from tamp_modifier.data import Collator, DataError, Encoded, cut_text, make_loader
from tamp_modifier.demo.evaluation import MODEL_FOLDER, load_processor
from tamp_modifier.report import PruningReport
from tamp_modifier.workflows.models import load_config, load_model
from tests.architectures.inputs import (
    AUDIO_ID,
    END_ID,
    IMAGE_ID,
    START_ID,
    Batch,
    pictures,
    tokens,
    with_inputs,
)
from tests.architectures.models import ARCHITECTURES, build
from tests.architectures.tiny import PATCH_VALUES
from tests.data.files import picture

PLACEHOLDERS = {"image": (IMAGE_ID,), "audio": (AUDIO_ID,)}


def tokenizer(side: str = "left") -> Any:
    return SimpleNamespace(padding_side=side, pad_token_id=0)


@torch.no_grad()
def logits(model: Any, batch: Batch) -> torch.Tensor:
    output = model(**batch)
    return getattr(output, "logits", output)


def check_batch(model: Any, rows: list[Batch], side: str) -> None:
    batch = Collator(tokenizer(side))(rows)
    together = logits(model, batch)
    padding = (batch["attention_mask"] == 0).sum(1).tolist()
    assert any(padding), "samples of one length test nothing"
    for number, row in enumerate(rows):
        alone = logits(model, row)[0]
        real = together[number]
        length = len(real) - padding[number]
        real = real[-length:] if side == "left" else real[:length]
        torch.testing.assert_close(real, alone, rtol=0, atol=2e-5)


def with_text_alone(name: str) -> tuple[Any, list[Batch]]:
    model, batches, _ = build(name)
    rows = list(batches)
    if name == "video_llama2_style":
        rows.append({key: value.clone() for key, value in rows[0].items()})
    else:
        rows.insert(1, tokens(("text", 9))[0])
    return model, rows


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_four_samples_in_a_batch_are_what_they_are_alone(name: str) -> None:
    model, rows = with_text_alone(name)
    assert len(rows) == 4
    check_batch(model, rows, "left")
    if name != "video_llama2_style":  # puts its media before the text, so it pads on the left
        check_batch(model, rows, "right")


def patches(before: int, grid: tuple[int, int, int], kind: str = "image") -> Batch:
    count = grid[0] * grid[1] * grid[2]
    names = {"image": ("pixel_values", "image_grid_thw")}
    names["video"] = ("pixel_values_videos", "video_grid_thw")
    sample = tokens(("text", before), START_ID, (kind, count // 4), END_ID, ("text", 4))
    inputs = {names[kind][0]: torch.randn(count, PATCH_VALUES), names[kind][1]: [list(grid)]}
    inputs[names[kind][1]] = torch.tensor(inputs[names[kind][1]])
    return {**with_inputs(sample, **inputs)[0], "mm_token_type_ids": sample[1]}


def shown(placeholders: list[int], **inputs: torch.Tensor) -> Batch:
    segments = [s for count in placeholders for s in (("text", 2), ("image", count))]
    return with_inputs(tokens(*segments, ("text", 5)), **inputs)[0]


def different_sizes(name: str) -> list[Batch]:
    """Samples whose media differ in number, size and length."""
    if name == "llava_next":
        # 16 x 32 and 32 x 16 are two tiles; a 16 x 16 picture is put on one of them as well.
        return [
            shown([52], pixel_values=pictures(3)[None], image_sizes=torch.tensor([[16, 32]])),
            shown([56], pixel_values=pictures(3)[None], image_sizes=torch.tensor([[32, 16]])),
            shown(
                [52, 56],
                pixel_values=pictures(6).unflatten(0, (2, 3)),
                image_sizes=torch.tensor([[16, 32], [32, 16]]),
            ),
        ]
    if name == "llava_onevision":
        # One tile and two tiles, so one is filled up.
        return [
            shown([36], pixel_values=pictures(2)[None], image_sizes=torch.tensor([[16, 16]])),
            shown([52], pixel_values=pictures(3)[None], image_sizes=torch.tensor([[16, 32]])),
        ]
    if name in ("qwen2_vl", "qwen2_5_vl"):
        return [
            patches(3, (1, 4, 4)),
            patches(2, (1, 8, 4)),
            patches(4, (2, 4, 8), "video"),
            patches(2, (3, 4, 4), "video"),
        ]
    if name == "mistral3":
        sizes = [(16, 16), (8, 16), (16, 8)]
        return [
            shown(
                [h * w // 64],
                pixel_values=pictures(1, h, w),
                image_sizes=torch.tensor([[h, w]]),
            )
            for h, w in sizes
        ]
    if name == "smolvlm":
        return [
            shown([4], pixel_values=pictures(1)[None]),
            shown([4, 4, 4], pixel_values=pictures(3)[None]),
        ]
    if name == "internvl":
        return [shown([4], pixel_values=pictures(1)), shown([12], pixel_values=pictures(3))]
    assert name == "qwen2_5_omni"
    rows = []
    for frames in (16, 24, 40):
        mask = torch.ones(1, frames, dtype=torch.long)
        sample = tokens(("text", 3), START_ID, ("audio", frames // 4), END_ID, ("text", 2))
        rows.append(
            with_inputs(
                sample, input_features=torch.randn(1, 8, frames), feature_attention_mask=mask
            )[0]
        )
    return rows


@pytest.mark.parametrize(
    "name",
    [
        "llava_next",
        "llava_onevision",
        "qwen2_vl",
        "qwen2_5_vl",
        "mistral3",
        "smolvlm",
        "internvl",
        "qwen2_5_omni",
    ],
)
def test_media_of_different_sizes_share_a_batch(name: str) -> None:
    model, _, _ = build(name)
    rows = different_sizes(name)
    check_batch(model, rows, "left")
    check_batch(model, [*reversed(rows), tokens(("text", 7))[0]], "right")


def test_videos_of_different_length_are_refused_where_no_mask_tells() -> None:
    rows = [
        Encoded(f"data:{frames}", {**tokens(("text", 4))[0], "pixel_values_videos": values})
        for frames in (2, 3)
        for values in [pictures(frames)[None]]
    ]
    with pytest.raises(DataError, match="data:3: its video has 3 frames and that of data:2 2"):
        Collator(tokenizer())(rows)


def test_padding_is_told_by_the_tokenizer() -> None:
    rows = [{"input_ids": torch.tensor([[5, 6, 7]])}, {"input_ids": torch.tensor([[8]])}]
    left = Collator(SimpleNamespace(padding_side="left", pad_token_id=3))(rows)
    assert left["input_ids"].tolist() == [[5, 6, 7], [3, 3, 8]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    processor = SimpleNamespace(
        tokenizer=SimpleNamespace(padding_side="right", pad_token_id=None, eos_token_id=4)
    )
    right = Collator(processor)(rows)
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 4, 4]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match="padding_side must be 'left' or 'right', got 'top'"):
        Collator(processor, padding_side="top")


def test_rows_of_a_dataset_may_lack_the_batch_dimension_and_labels_are_ignored_in_padding() -> None:
    rows = [{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7], "labels": [7]}]
    batch = Collator(tokenizer("right"))(rows)
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert batch["labels"].tolist() == [[5, 6], [7, -100]]


def test_floats_are_brought_to_the_type_of_the_model() -> None:
    row = with_inputs(tokens(("text", 3)), pixel_values=pictures(1))[0]
    batch = Collator(tokenizer(), dtype=torch.bfloat16)([row])
    assert batch["pixel_values"].dtype == torch.bfloat16 and batch["input_ids"].dtype == torch.long


def test_pixels_come_in_the_type_of_the_model_and_seconds_as_they_are() -> None:
    row = with_inputs(tokens(("text", 3)), pixel_values=pictures(1))[0]
    row["second_per_grid_ts"] = torch.tensor([0.123456789])
    for model_type in (torch.bfloat16, torch.float16, torch.float32):
        collator = Collator(tokenizer())
        assert collator([row])["pixel_values"].dtype == torch.float32
        collator.use_dtype_of(torch.nn.Linear(2, 2).to(model_type))
        batch = collator([row])
        assert batch["pixel_values"].dtype == model_type
        assert batch["second_per_grid_ts"].dtype == torch.float32
    asked_for = Collator(tokenizer(), dtype=torch.float16)
    asked_for.use_dtype_of(torch.nn.Linear(2, 2))
    assert asked_for([row])["pixel_values"].dtype == torch.float16


ROW = {"question": "what animal is there ?", "answer": "cat"}


def rows_with_a_picture(folder: Path) -> list[dict[str, Any]]:
    shown = {**ROW, "image": str(picture(folder / "a.png")), "id": 3}
    return [shown, ROW, shown]


def test_rows_are_encoded_by_loader_and_collator(tmp_path: Path) -> None:
    from datasets import Dataset

    collator = Collator(load_processor())
    rows = rows_with_a_picture(tmp_path)
    made = list(make_loader(rows, collator, batch_size=3))[0]
    joined = collator(rows)
    kept = list(make_loader(Dataset.from_list(rows), collator, batch_size=3))[0]
    for batch in (joined, kept):
        assert batch.keys() == made.keys()
        assert all(torch.equal(batch[key], made[key]) for key in made)
    assert made["pixel_values"].shape[0] == 2 and made["input_ids"].shape[0] == 3


def test_rows_that_cannot_be_joined_are_named() -> None:
    collator = Collator(load_processor())
    with pytest.raises(DataError, match="sample 1 of the batch: nothing reads the key 'hint'"):
        collator([ROW, {**ROW, "hint": "x"}])
    with pytest.raises(DataError, match="row 2: the image no.png does not exist"):
        make_loader([ROW, {**ROW, "image": "no.png"}], collator)
    with pytest.raises(DataError, match="sample 0 of the batch: expected an object, got 3"):
        collator([3])
    with pytest.raises(
        DataError, match="sample 0 of the batch: messages is .*, which is not a tensor"
    ):
        collator([{"input_ids": [1], "messages": [{"role": "user"}]}])
    with pytest.raises(DataError, match="the data hold no sample"):
        make_loader([], collator)


def run_oneshot(dataset: Any, **more: Any) -> PruningReport:
    from llmcompressor import oneshot

    model = load_model(str(MODEL_FOLDER), load_config(str(MODEL_FOLDER)))
    recipe = TAMPModifier(allocation="uniform", selection="all", score="magnitude")
    with TemporaryDirectory() as folder:
        recipe.report_path = f"{folder}/report.json"
        oneshot(model=model, processor=load_processor(), dataset=dataset, recipe=recipe, **more)
        return PruningReport.load(recipe.report_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["list", "dataset", "splits", "stream"])
def test_oneshot_takes_rows_with_the_collator(tmp_path: Path, kind: str) -> None:
    from datasets import Dataset, DatasetDict

    rows = rows_with_a_picture(tmp_path)
    table = Dataset.from_list(rows)
    made = {"list": rows, "dataset": table, "splits": DatasetDict({"train": table})}
    made["stream"] = table.to_iterable_dataset()
    more = {"batch_size": 2, "shuffle_calibration_samples": False, "num_calibration_samples": 2}
    report = run_oneshot(made[kind], data_collator=Collator(load_processor()), **more)
    assert report.samples == 2 and report.tokens["image"] == 144


@pytest.mark.slow
@pytest.mark.parametrize("given", ["rows", "loader"])
def test_oneshot_gives_pixels_in_the_type_of_the_model(tmp_path: Path, given: str) -> None:
    from llmcompressor import oneshot

    config = load_config(str(MODEL_FOLDER))
    model = load_model(str(MODEL_FOLDER), config, torch.bfloat16)
    seen = set()
    tower = model.model.vision_tower
    tower.register_forward_pre_hook(
        lambda module, args, inputs: seen.add((args or list(inputs.values()))[0].dtype),
        with_kwargs=True,
    )
    collator = Collator(load_processor())
    rows: Any = rows_with_a_picture(tmp_path)
    if given == "loader":
        rows = make_loader(rows, collator)
    oneshot(model=model, dataset=rows, data_collator=collator, recipe=TAMPModifier())
    assert seen == {torch.bfloat16}


def test_oneshot_takes_encoded_datasets_as_before() -> None:
    from datasets import Dataset

    ids = [{"input_ids": [1, 9, 9, 2], "attention_mask": [1] * 4}] * 3
    report = run_oneshot(Dataset.from_list(ids), data_collator=Collator(load_processor()))
    assert report.samples == 3 and report.tokens["text"] == 12


def test_a_split_that_is_not_there_is_named() -> None:
    from datasets import Dataset, DatasetDict

    data = DatasetDict({"train": Dataset.from_list([ROW])})
    with pytest.raises(DataError, match="splits is 'test', but the dataset has train"):
        run_oneshot(data, data_collator=Collator(load_processor()), splits="test")


def test_a_list_without_the_collator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"give data_collator=Collator\(processor\) with it"):
        run_oneshot(rows_with_a_picture(tmp_path))


@settings(deadline=None, max_examples=60)
@given(
    before=st.integers(0, 6),
    media=st.integers(0, 6),
    after=st.integers(1, 8),
    limit=st.integers(1, 22),
)
def test_cutting_keeps_every_token_of_media_or_refuses(
    before: int, media: int, after: int, limit: int
) -> None:
    inputs, types = tokens(("text", before), ("image", media), ("text", after))
    inputs["pixel_values"] = torch.ones(1, 3, 2, limit)  # a width that looks like a length
    # The token after the last placeholder closes the picture.
    needed = before + media + 1 if media else 1
    if limit < min(needed, before + media + after):
        with pytest.raises(DataError, match=f"^here: its media need {needed} tokens"):
            cut_text(inputs, limit, PLACEHOLDERS, "here")
        return
    found = cut_text(inputs, limit, PLACEHOLDERS, "here")
    length = min(limit, before + media + after)
    assert torch.equal(found["input_ids"], inputs["input_ids"][:, :length])
    assert found["attention_mask"].shape == (1, length)
    assert int((found["input_ids"] == IMAGE_ID).sum()) == media
    assert found["pixel_values"].shape == (1, 3, 2, limit)


def test_a_loader_cuts_joins_and_keeps_the_order() -> None:
    rows = [Encoded(f"data:{n}", tokens(("text", n))[0]) for n in (4, 9, 2, 6)]
    loader = make_loader(rows, Collator(tokenizer(), PLACEHOLDERS, max_length=5), batch_size=2)
    first, second = loader
    assert first["attention_mask"].sum(1).tolist() == [4, 5]
    assert second["attention_mask"].sum(1).tolist() == [2, 5]
    assert torch.equal(first["input_ids"][0, 1:], rows[0].inputs["input_ids"][0])
