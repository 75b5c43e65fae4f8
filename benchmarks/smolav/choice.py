"""Which questions about which media calibrate SmolAV and evaluate it.

Descriptions only, from random streams whose names tell split and seed: nothing is drawn or spoken
here, and no model is needed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence

from benchmarks.smolav.media import Medium, stream
from benchmarks.smolav.pictures import sample_picture, sample_video
from benchmarks.smolav.questions import ANSWERS, TASKS, Question, questions
from benchmarks.smolav.sounds import sample_sound
from benchmarks.smolav.words import SPOKEN

KINDS = ("picture", "video", "sound", "both", "text")
CALIBRATION_KINDS = ("picture", "video", "sound", "picture", "both", "video", "sound", "text")
"""Kinds of medium, in the order of calibration samples."""

PACKED = 6
"""Most questions about one medium."""

_PATIENCE = 40


def sample_medium(rng: random.Random, kind: str) -> Medium:
    """Draw a medium of one of `KINDS`; for "both" the word said is shown in half of them."""
    if kind == "picture":
        return Medium(picture=sample_picture(rng))
    if kind == "video":
        return Medium(video=sample_video(rng))
    if kind == "sound":
        return Medium(sound=sample_sound(rng))
    if kind == "both":
        word = rng.choice(SPOKEN)
        shown = word if rng.random() < 0.5 else None
        return Medium(picture=sample_picture(rng, shown), sound=sample_sound(rng, word))
    return Medium()


def calibration_questions(
    n: int, seed: int = 0, kinds: Sequence[str] = CALIBRATION_KINDS
) -> list[tuple[Medium, Question]]:
    """Return what `data.calibration_batches` makes samples of.

    Raises:
        ValueError: n is not positive, or an unknown kind.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"kinds must be of {', '.join(KINDS)}; got {list(kinds)}")
    chosen = []
    for index in range(n):
        rng = stream("calibration", seed, index)
        kind = kinds[index % len(kinds)]
        medium = sample_medium(rng, kind)
        asked = questions(rng, medium)
        if kind == "both":
            asked = [question for question in asked if question.task in TASKS["both"]]
        task = rng.choice(sorted({question.task for question in asked}))
        chosen.append((medium, next(question for question in asked if question.task == task)))
    return chosen


def quotas(rng: random.Random, task: str, per_task: int) -> Counter[str]:
    """How often each answer of a task is asked for: equally often, to one."""
    answers = list(ANSWERS[task]) or [str(number) for number in range(10, 100)]
    rng.shuffle(answers)
    each, more = divmod(per_task, len(answers))
    return Counter({answer: each + (i < more) for i, answer in enumerate(answers)})


def choose_questions(
    seed: int, per_task: int, without: Collection[str] = ()
) -> list[tuple[int, Medium, Question]]:
    """Draw media until every task has its questions with balanced answers.

    Args:
        seed: Which ones.
        per_task: Questions of each task; fewer where text alone does not have so many. None of
            these is asked twice.
        without: Questions of text alone that are not asked.

    Returns:
        Number of the medium, medium and question; at most six share a medium. Questions of text
        alone have a number each.
    """
    order = stream("evaluation", seed, "quotas")
    left = {task: quotas(order, task, per_task) for task in ANSWERS}
    chosen: list[tuple[int, Medium, Question]] = []
    asked = set(without)
    group = 0
    # Kinds that can fill their tasks only by themselves come first.
    for kind in ("both", "video", "sound", "picture", "text"):
        modality = {"sound": "audio"}.get(kind, kind)
        most = 1 if kind == "text" else PACKED
        wanted, rejected, index = most, 0, 0
        while any(left[task].total() for task in TASKS[modality]):
            rng = stream("evaluation", seed, kind, index)
            index += 1
            medium = sample_medium(rng, kind)
            useful: list[Question] = []
            taken: Counter[tuple[str, str]] = Counter()
            for question in questions(rng, medium):
                key = (question.task, question.answer)
                if kind == "text" and question.text in asked:
                    continue
                if left[question.task][question.answer] > taken[key] and len(useful) < most:
                    taken[key] += 1
                    useful.append(question)
            own = any(question.task in TASKS[modality] for question in useful)
            if len(useful) < wanted or not own:
                rejected += 1
                if rejected >= _PATIENCE and wanted > 1:
                    wanted, rejected = wanted - 1, 0
                if kind == "text" and rejected >= 25 * _PATIENCE:
                    break  # all have been asked
                continue
            rejected = 0
            for question in useful:
                left[question.task][question.answer] -= 1
                asked.add(question.text)
                chosen.append((group, medium, question))
            group += 1
    return chosen
