"""Questions: right by construction, balanced, within the vocabulary."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tamp_modifier.demo.evaluation import evaluation_samples
from tamp_modifier.demo.pictures import COLUMNS, ROWS, sample_scene
from tamp_modifier.demo.questions import (
    PICTURE_TASKS,
    TEXT_TASKS,
    balance_keys,
    caption,
    picture_question,
    text_question,
    vocabulary,
)


def test_there_are_nine_picture_and_eleven_text_tasks():
    assert len(PICTURE_TASKS) == 9
    assert len(TEXT_TASKS) == 11


@pytest.mark.parametrize("task", PICTURE_TASKS)
def test_picture_answers_are_balanced(task):
    keys = balance_keys(task)
    samples = evaluation_samples(task, 6 * len(keys))
    if task == "number":
        found = Counter(str(len(sample.question.answer.split())) for sample in samples)
    elif task == "relation":
        found = Counter()
        for sample in samples:
            words = sample.question.question.split()
            first = words[words.index("the") + 1]
            found["first" if sample.question.answer == first else "second"] += 1
    else:
        found = Counter(sample.question.answer for sample in samples)
    assert found == Counter({key: 6 for key in keys})


@pytest.mark.parametrize("task", ["larger", "next letter", "subtract", "kind of", "count words"])
def test_text_answers_are_balanced(task):
    answers = Counter(sample.question.answer for sample in evaluation_samples(task, 2000))
    assert max(answers.values()) < 2 * min(answers.values()) + 40


@pytest.mark.parametrize("task", PICTURE_TASKS)
def test_questions_are_short(task):
    for sample in evaluation_samples(task, 50):
        words = f"{sample.question.question} {sample.question.answer}".split()
        assert len(words) + 4 <= 24  # with <bos>, <user>, <assistant>, <eos>


def test_all_words_are_in_the_vocabulary():
    known = set(vocabulary())
    rng = random.Random(1)
    for _ in range(300):
        scene = sample_scene(rng)
        found = [picture_question(task, scene, rng) for task in PICTURE_TASKS]
        found += [text_question(task, rng) for task in TEXT_TASKS] + [caption(scene)]
        for question in found:
            if question is not None:
                assert set(f"{question.question} {question.answer}".split()) <= known


def test_presence_is_told_right_and_sometimes_a_near_miss():
    near = 0
    for sample in evaluation_samples("presence", 400):
        words = sample.question.question.split()[3:-1]
        things = [(item.colour, item.kind) for item in sample.scene.items]
        present = any(words[-1] == kind and words[0] in (colour, kind) for colour, kind in things)
        assert present == (sample.question.answer == "yes")
        near += not present and any(words[-1] == kind for _, kind in things)
    assert near > 20


def test_relation_names_the_thing_that_is_further_left_or_higher():
    for sample in evaluation_samples("relation", 200):
        words = sample.question.question.split()
        place = {item.kind: (item.column, item.row) for item in sample.scene.items}
        first, second = (words[i + 1] for i, word in enumerate(words) if word == "the")
        axis = 0 if "left" in words else 1
        right = first if place[first][axis] < place[second][axis] else second
        assert sample.question.answer == right


def test_where_has_one_answer():
    for sample in evaluation_samples("where", 200):
        words = sample.question.question.split()[3:-1]
        found = [
            f"{ROWS[item.row]} {COLUMNS[item.column]}"
            for item in sample.scene.items
            if item.kind == words[-1] and (len(words) == 1 or item.colour == words[0])
        ]
        assert found == [sample.question.answer]


def test_counts_are_right():
    for sample in evaluation_samples("count", 200):
        noun = sample.question.question.split()[2]
        things = [i for i in sample.scene.items if noun in ("things", f"{i.category}s")]
        assert sample.question.answer == str(len(things))
