"""Data: the same for the same seed, different between splits, balanced, and packed without loss."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.smolav import calibration_batches, evaluate, evaluation_items, load
from benchmarks.smolav.choice import KINDS, choose_questions, sample_medium
from benchmarks.smolav.layout import IGNORED
from benchmarks.smolav.media import SPLITS, Medium, Studio, stream
from benchmarks.smolav.pictures import FRAMES, frame_things, patch_labels, sample_video
from benchmarks.smolav.questions import ANSWERS, TASKS, options, questions
from benchmarks.smolav.sounds import RATE, SECONDS, sample_sound, token_labels
from benchmarks.smolav.words import COLUMNS, NUMBERS, ROWS
from benchmarks.tests.smolav.tiny import AUDIO, IMAGE, VIDEO


def media_of(split: str, kind: str, count: int = 40) -> list[Medium]:
    return [sample_medium(stream(split, 0, kind, index), kind) for index in range(count)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "text"])
def test_splits_repeat_themselves_and_share_nothing(kind: str) -> None:
    drawn = {split: media_of(split, kind) for split in SPLITS}
    for split in SPLITS:
        assert drawn[split] == media_of(split, kind)
        assert len(set(drawn[split])) == 40
    assert len(set().union(*drawn.values())) == 40 * len(SPLITS)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split must be one of train, calibration, evaluation"):
        stream("test", 1)


def test_every_question_has_an_answer_of_its_task() -> None:
    seen: Counter[str] = Counter()
    for kind in KINDS:
        for index, medium in enumerate(media_of("train", kind, 60)):
            for question in questions(stream("train", "ask", index), medium):
                seen[question.task] += 1
                if question.task == "reading":
                    assert 10 <= int(question.answer) <= 99
                else:
                    assert question.answer in ANSWERS[question.task]
    assert set(seen) == set(ANSWERS) == {task for tasks in TASKS.values() for task in tasks}


def test_answers_about_places_agree_with_the_drawing() -> None:
    for medium in media_of("train", "picture", 60):
        assert medium.picture is not None
        labels = patch_labels(medium.picture)
        for thing in medium.picture.things:
            row, column = int(thing.y // 8), int(thing.x // 8)
            label = labels[12 * row + column]
            assert label == (
                thing.name,
                thing.colour or "nothing",
                ROWS[thing.row],
                COLUMNS[thing.column],
            )


def test_what_moves_moves_the_way_that_the_answer_says() -> None:
    moved = set()
    for index in range(80):
        video = sample_video(stream("train", "video", index))
        first, last = frame_things(video, 0), frame_things(video, FRAMES - 1)
        for lane, start, end in zip(video.lanes, first, last, strict=True):
            across, down = end.x - start.x, end.y - start.y
            if lane.event == "move":
                far = max(abs(across), abs(down))
                assert far > 40
                way = {across: ("left", "right"), down: ("up", "down")}
                pair = next(words for shift, words in way.items() if abs(shift) == far)
                assert lane.answer == pair[max(across, down, key=abs) > 0]
                moved.add(lane.answer)
            else:
                assert (across, down) == (0, 0)
            if lane.event == "resize":
                assert (end.radius > start.radius) == (lane.answer == "grow")
    assert moved == {"left", "right", "up", "down"}


def test_balance_of_answers_is_exact_to_one() -> None:
    chosen = choose_questions(seed=3, per_task=12)
    answers: dict[str, Counter[str]] = {task: Counter() for task in ANSWERS}
    for _, _, question in chosen:
        answers[question.task][question.answer] += 1
    for task, counts in answers.items():
        assert counts.total() == 12, task
        possible = len(ANSWERS[task]) or 90
        assert max(counts.values()) <= -(-12 // possible), task
        assert len(counts) == min(12, possible), task


def test_a_question_leaves_the_answers_that_its_words_allow() -> None:
    for _, _, question in choose_questions(seed=3, per_task=12):
        left = options(question)
        assert question.answer in left and len(set(left)) == len(left)
        assert set(left) <= set(ANSWERS[question.task]) or question.task == "reading"
        if " or " in question.text and question.task != "change":  # it names them all
            assert all(word in question.text for word in left)
        if question.task == "list":
            assert question.text.endswith(f": {', '.join(left)}?")


def test_evaluation_depends_on_the_seed_alone() -> None:
    assert choose_questions(1, 3) == choose_questions(1, 3)
    media = [{medium for _, medium, _ in choose_questions(seed, 3)} for seed in (1, 2)]
    assert media[0] & media[1] <= {Medium()}


def test_drawing_and_speaking_are_repeatable(folder: Path) -> None:
    first, second = Studio(folder), Studio(folder)
    medium = sample_medium(stream("train", 5), "both")
    assert medium.sound is not None and medium.sound.event("word") is not None
    for name, value in first.inputs(medium).items():
        assert torch.equal(value, second.inputs(medium)[name]), name
    video = first.pixels(sample_video(stream("train", 6)))
    assert video.shape == (4, 3, 96, 96)
    assert not torch.equal(video[0], video[3])


def test_sounds_are_where_their_labels_say(folder: Path) -> None:
    speaker = Studio(folder).speaker
    for index in range(12):
        sound = sample_sound(stream("train", "clip", index))
        samples = speaker.sound(sound)
        assert samples.shape == (int(SECONDS * RATE),)
        labels = token_labels(sound, 100)
        power = np.square(samples).reshape(100, -1).mean(1)
        heard = np.array([label not in ("nothing",) for label in labels])
        assert power[heard].mean() > 20 * power[~heard].mean()
        beeps = sound.event("beeps")
        if beeps is not None:
            starts = sum(
                a != "tone" and b == "tone" for a, b in zip(["", *labels[:-1]], labels, strict=True)
            )
            assert NUMBERS[starts] == NUMBERS[int(beeps.what)]


def test_calibration_has_every_modality_and_few_words(folder: Path) -> None:
    batches = calibration_batches(16, seed=1, folder=folder)
    again = calibration_batches(16, seed=1, folder=folder)
    for batch, other in zip(batches, again, strict=True):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[name], other[name]) for name in batch)
    fields = {IMAGE: "pixel_values", VIDEO: "pixel_values_videos", AUDIO: "input_features"}
    for batch in batches:
        ids = batch["input_ids"]
        for token, field in fields.items():
            assert bool((ids == token).any()) == (field in batch)
    seen = torch.cat([batch["input_ids"][0] for batch in batches])
    assert all((seen == token).any() for token in fields)
    assert not torch.equal(
        seen, torch.cat([b["input_ids"][0] for b in calibration_batches(16, 2, folder)])
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be at least 1; got 0"),
        ({"n": 2, "kinds": ["smell"]}, r"kinds must be of .*; got \['smell'\]"),
    ],
)
def test_bad_calibration_is_refused(arguments: dict, message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_batches(**arguments, folder=folder)


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no SmolAV model; run `make smolav`"):
        load(tmp_path)


@pytest.mark.slow
def test_packed_scores_are_those_of_single_questions(folder: Path) -> None:
    model, processor = load(folder, torch.float32)
    items = evaluation_items(seed=0, per_task=1, folder=folder)
    assert len({item.group for item in items}) < len(items)
    cache: dict[Medium, dict[str, torch.Tensor]] = {}
    scores = evaluate(model, items, cache)
    again = evaluate(model, items, cache)
    assert scores == again
    for item, score in zip(items, scores, strict=True):
        answer = torch.tensor([processor.layout.answer(item.question)])
        ids = torch.cat([item.inputs["input_ids"], answer], 1)
        inputs = {**item.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            logits = model(**inputs).logits[0, -answer.shape[1] - 1 : -1].log_softmax(-1)
        nll = -logits.gather(1, answer[0, :, None]).mean().item()
        assert score.task == item.task
        assert score.nll == pytest.approx(nll, abs=1e-3)
        assert score.correct == torch.equal(logits.argmax(-1), answer[0])


def test_packs_hide_questions_from_each_other(folder: Path) -> None:
    _, processor = load(folder)
    medium = sample_medium(stream("train", 1), "picture")
    asked = questions(stream("train", 2), medium)[:3]
    pack = processor.layout.pack(medium, asked)
    start, width = len(pack.prefix), pack.chunks.shape[1]
    visible = pack.visible
    for one in range(3):
        for other in range(3):
            rows = slice(start + one * width, start + (one + 1) * width)
            columns = slice(start + other * width, start + (other + 1) * width)
            assert visible[rows, columns].any() == (one == other)
        assert visible[start + one * width, :start].all()
    assert (pack.labels != IGNORED).sum(1).tolist() == [
        len(processor.layout.answer(question)) for question in asked
    ]
