"""Evaluation and calibration data, the processor, and the demo model."""

from __future__ import annotations

import inspect
import random

import numpy as np
import pytest
import torch
from PIL import Image

from tamp_modifier.demo import evaluation
from tamp_modifier.demo.evaluation import (
    MODEL_FOLDER,
    answers,
    calibration_dataloader,
    calibration_samples,
    encode,
    evaluate,
    evaluation_samples,
    load_model,
    load_processor,
    quiz,
    seen,
)
from tamp_modifier.demo.pictures import draw, sample_scene
from tamp_modifier.demo.processing import IMAGE_TOKENS, WordIds, build_processor
from tamp_modifier.demo.questions import PICTURE_TASKS, TEXT_TASKS, text_question


@pytest.fixture(scope="module")
def processor():
    return load_processor()


@pytest.fixture(scope="module")
def model():
    return load_model()


def test_evaluation_sets_are_fixed_and_prefixes_of_longer_ones():
    for task in (*PICTURE_TASKS, *TEXT_TASKS):
        assert evaluation_samples(task, 5) == evaluation_samples(task, 12)[:5]
        assert evaluation_samples(task, 5) != evaluation_samples(task, 5, seed=1)


def test_no_picture_is_in_two_of_training_calibration_and_evaluation():
    train = {
        sample_scene(random.Random(f"train/0/questions/{step}/{row}"))
        for step in range(100)
        for row in range(8)
    }
    asked = {sample.scene for task in PICTURE_TASKS for sample in evaluation_samples(task, 50)}
    other = {s.scene for task in PICTURE_TASKS for s in evaluation_samples(task, 50, seed=1)}
    assert len(asked) == 9 * 50
    assert not train & asked and not asked & other


def test_random_streams_have_disjoint_names():
    source = inspect.getsource(evaluation)
    assert source.count('Random(f"evaluation/') == 1
    assert source.count('Random(f"calibration/') == 1
    assert source.count("Random(") == 2


def test_pictures_that_were_looked_at_before_give_the_same_answers(model, processor):
    asked = quiz(processor, 3, tasks=("what", "count", "add"))
    embedded = seen(model, asked)
    assert "inputs_embeds" in embedded["what"][0] and "pixel_values" not in embedded["what"][0]
    plain, quick = (answers(model, processor, found) for found in (asked, embedded))
    for task, (right, nll) in plain.items():
        assert torch.equal(quick[task][0], right)
        torch.testing.assert_close(quick[task][1], nll, rtol=1e-4, atol=1e-6)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task: 'smell' is unknown; known are what, "):
        evaluation_samples("smell", 1)


def test_too_few_samples_are_refused(model, processor):
    with pytest.raises(ValueError, match="samples_per_task: 0"):
        evaluate(model, processor, 0)


def test_calibration_samples_are_mostly_picture(processor):
    samples = calibration_samples(2 * len(PICTURE_TASKS), processor=processor)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    for sample in samples:
        assert sample["pixel_values"].shape == (1, 3, 96, 96)
        assert sample["input_ids"].shape == sample["attention_mask"].shape
        assert int((sample["input_ids"] == image).sum()) == IMAGE_TOKENS == 144
        assert int((sample["input_ids"] != image).sum()) <= 20


def test_calibration_dataloader_gives_the_samples_in_order(processor):
    samples = calibration_samples(5, 3, processor)
    for _ in range(2):
        for sample, loaded in zip(samples, calibration_dataloader(5, 3, processor), strict=True):
            assert all(torch.equal(sample[name], loaded[name]) for name in sample)


def test_saved_processor_is_the_one_that_is_built(processor):
    built = build_processor()
    assert processor.tokenizer.get_vocab() == built.tokenizer.get_vocab()
    assert processor.chat_template == built.chat_template
    picture = draw(sample_scene(random.Random(0)))
    text = "<bos> <user> <image> where is the red star ? <assistant>"
    for name, value in built(text=text, images=picture, return_tensors="pt").items():
        assert torch.equal(value, processor(text=text, images=picture, return_tensors="pt")[name])


def test_chat_template_tokenizer_and_word_table_agree(processor):
    words = WordIds()
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ""}]}
    message["content"][1]["text"] = "which is further left, the A or the 7?"
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    picture = Image.fromarray(np.zeros((96, 96, 3), dtype=np.uint8))
    ids = processor(text=text, images=picture, return_tensors="pt")["input_ids"][0].tolist()
    assert ids == words.prompt("which is further left , the A or the 7 ?", picture=True)
    rng = random.Random(2)
    for task in TEXT_TASKS:
        question = text_question(task, rng)
        expected = words.prompt(question.question, picture=False)
        content = [{"role": "user", "content": question.question}]
        prompt = processor.apply_chat_template(content, add_generation_prompt=True)
        assert processor.tokenizer(prompt)["input_ids"] == expected
        assert processor.tokenizer.decode(words(question.answer)) == question.answer


def test_teacher_forced_match_is_greedy_decoding(model, processor):
    for task in ("where", "number", "repeat"):
        samples = evaluation_samples(task, 8, seed=5)
        scores = evaluate(model, processor, 8, tasks=[task], seed=5)
        right = 0
        for sample in samples:
            batch = encode([sample], processor)
            assistant = processor.tokenizer.convert_tokens_to_ids("<assistant>")
            length = int((batch["input_ids"][0] == assistant).nonzero()[0]) + 1
            batch["input_ids"] = batch["input_ids"][:, :length]
            batch["attention_mask"] = batch["attention_mask"][:, :length]
            out = model.generate(**batch, max_new_tokens=12, do_sample=False)[0, length:]
            right += processor.tokenizer.decode(out) == f"{sample.question.answer} <eos>"
        assert scores.tasks[task] == pytest.approx(right / 8)


def test_scores_do_not_depend_on_the_batch_size(model, processor):
    tasks = ["what", "add"]
    one = evaluate(model, processor, 12, tasks=tasks, batch_size=12)
    other = evaluate(model, processor, 12, tasks=tasks, batch_size=5)
    assert one.tasks == other.tasks
    for task in tasks:
        assert one.nll[task] == pytest.approx(other.nll[task], rel=1e-3, abs=1e-5)


def test_the_model_in_the_box_is_small_enough_and_stock(model):
    weights = MODEL_FOLDER / "model.safetensors"
    assert weights.stat().st_size <= 16_000_000
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    text = model.config.text_config
    assert text.num_key_value_heads < text.num_attention_heads


@pytest.mark.slow
def test_the_model_in_the_box_reaches_its_scores(model, processor):
    scores = evaluate(model, processor, 20)
    assert scores.picture >= 0.93
    assert scores.text >= 0.99
    assert min(scores.tasks[task] for task in PICTURE_TASKS) >= 0.75
