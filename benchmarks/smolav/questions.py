"""Ask about pictures, videos and sounds, with answers of one word that the description gives.

Each function returns at most a few questions; which ones, its random stream decides. Balance is
made afterwards, by choosing among them (`benchmarks.smolav.choice`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmarks.smolav.media import Medium
from benchmarks.smolav.pictures import FRAMES, Picture, Thing, Video, frame_things
from benchmarks.smolav.sounds import Sound
from benchmarks.smolav.words import (
    CHANGES,
    COLOUR_WORDS,
    COLUMNS,
    EMOJI,
    KIND_OF,
    KINDS,
    MAX_THINGS,
    NAMES,
    NUMBERS,
    ROWS,
    SHAPES,
    SOUNDS,
    SPOKEN,
    WAYS,
)

YES_NO = ("yes", "no")
COUNTS = NUMBERS[1 : MAX_THINGS + 1]

ANSWERS: dict[str, tuple[str, ...]] = {
    "what": NAMES,
    "where": COLUMNS + ROWS,
    "count": COUNTS,
    "colour": COLOUR_WORDS,
    "relation": YES_NO,
    "exists": YES_NO,
    "reading": (),
    "motion": WAYS,
    "order": NAMES,
    "change": (*COLOUR_WORDS, *CHANGES),
    "word": SPOKEN,
    "sound": SOUNDS,
    "beeps": COUNTS,
    "sequence": YES_NO,
    "named": YES_NO,
    "named_where": COLUMNS,
    "sum": NUMBERS[2:],
    "kind": KINDS,
    "list": SPOKEN,
}
"""Task -> every answer it can have; "reading" has the numbers from 10 to 99."""

TASKS = {
    "picture": ("what", "where", "count", "colour", "relation", "exists", "reading"),
    "video": ("motion", "order", "change"),
    "audio": ("word", "sound", "beeps", "sequence"),
    "both": ("named", "named_where"),
    "text": ("sum", "kind", "list"),
}
"""Modality -> its tasks."""


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    Attributes:
        task: A key of `ANSWERS`, or "caption" for what is only trained on.
        text: The question.
        answer: The right answer.
    """

    task: str
    text: str
    answer: str


def options(question: Question) -> tuple[str, ...]:
    """Return the answers that a question leaves to one who knows nothing but the question."""
    if question.task == "reading":
        return tuple(str(number) for number in range(10, 100))
    if question.task == "list":
        return tuple(question.text.partition(": ")[2].removesuffix("?").split(", "))
    for some in (COLUMNS, ROWS, CHANGES, COLOUR_WORDS):
        if question.task in ("where", "change") and question.answer in some:
            return some
    return ANSWERS[question.task]


def questions(rng: random.Random, medium: Medium) -> list[Question]:
    """Everything that may be asked about a medium, once or a few times each, in random order."""
    asked: list[Question] = []
    if medium.picture is not None:
        asked += _about_picture(rng, medium.picture)
    if medium.video is not None:
        asked += _about_video(medium.video)
    if medium.sound is not None:
        asked += _about_sound(rng, medium.sound)
    if medium.picture is not None and medium.sound is not None:
        asked += _about_both(rng, medium.picture, medium.sound)
    if medium == Medium():
        asked += _about_nothing(rng)
    rng.shuffle(asked)
    return asked


def captions(rng: random.Random, medium: Medium) -> list[Question]:
    """Longer answers for training: they make the language model look at everything."""
    asked = []
    if medium.picture is not None:
        row = rng.randrange(3)
        shown = [
            f"{_described(thing)} {COLUMNS[thing.column]}"
            for thing in medium.picture.things
            if thing.row == row
        ]
        asked.append(
            Question("caption", f"What is in the {ROWS[row]} row?", ", ".join(shown) or "nothing")
        )
    if medium.video is not None:
        for when, shown in (
            ("start", [_described(lane.before) for lane in medium.video.lanes]),
            ("end", [_described(lane.after) for lane in medium.video.lanes]),
        ):
            asked.append(Question("caption", f"What is there at the {when}?", ", ".join(shown)))
        first, last = frame_things(medium.video, 0), frame_things(medium.video, FRAMES - 1)
        for before, after in zip(first, last, strict=True):
            asked.append(
                Question("caption", f"Where is the {before.name} at the start?", before.place)
            )
            asked.append(Question("caption", f"Where is the {after.name} at the end?", after.place))
    if medium.sound is not None:
        heard = [
            f"{NUMBERS[int(event.what)]} beeps" if event.kind == "beeps" else event.what
            for event in medium.sound.events
        ]
        asked.append(Question("caption", "What is heard?", ", ".join(heard)))
    said = medium.sound.event("word") if medium.sound is not None else None
    if medium.picture is not None and said is not None:
        places = [thing.place for thing in medium.picture.things if thing.name == said.what]
        text = "Which thing is named, and where is it?"
        asked.append(Question("caption", text, f"{said.what}, {(*places, 'nowhere')[0]}"))
    return asked


def _described(thing: Thing) -> str:
    return f"{thing.colour} {thing.name}" if thing.colour else thing.name


def _about_picture(rng: random.Random, picture: Picture) -> list[Question]:
    things = picture.things
    asked = [Question("count", "How many things are there?", NUMBERS[len(things)])]
    for thing in rng.sample(things, min(3, len(things))):
        asked.append(Question("what", f"What is at the {thing.place}?", thing.name))
    for thing in rng.sample(things, min(2, len(things))):
        text = f"Is the {thing.name} left, centre or right?"
        asked.append(Question("where", text, COLUMNS[thing.column]))
    for thing in rng.sample(things, min(2, len(things))):
        text = f"Is the {thing.name} top, middle or bottom?"
        asked.append(Question("where", text, ROWS[thing.row]))
    for thing in things:
        if thing.colour is not None:
            asked.append(Question("colour", f"What colour is the {thing.name}?", thing.colour))
    for _ in range(3):
        asked += _relation(rng, things)
    names = [thing.name for thing in things]
    # Names of shapes are asked for as often in both answers as they are drawn.
    others = rng.sample(SHAPES, 8) if rng.random() < 0.4 else rng.sample(tuple(EMOJI), 8)
    absent = next(name for name in others if name not in names)
    asked.append(Question("exists", f"Is there a {rng.choice(names)}?", "yes"))
    asked.append(Question("exists", f"Is there a {absent}?", "no"))
    if picture.ground.number is not None:
        asked.append(Question("reading", "Which number is written?", picture.ground.number.digits))
    return asked


def _relation(rng: random.Random, things: tuple[Thing, ...]) -> list[Question]:
    pairs = []
    for first in things:
        for second in things:
            if first.column != second.column:
                word = "yes" if first.column < second.column else "no"
                pairs.append((f"Is the {first.name} left of the {second.name}?", word))
            if first.row != second.row:
                word = "yes" if first.row < second.row else "no"
                pairs.append((f"Is the {first.name} above the {second.name}?", word))
    return [Question("relation", *rng.choice(pairs))] if pairs else []


def _about_video(video: Video) -> list[Question]:
    asked = []
    for lane in video.lanes:
        name = lane.before.name
        if lane.event == "move":
            asked.append(Question("motion", f"Which way does the {name} move?", lane.answer))
        elif lane.event == "turn":
            asked.append(Question("order", f"What comes after the {name}?", lane.answer))
            asked.append(Question("order", f"What comes before the {lane.answer}?", name))
        elif lane.event == "recolour":
            assert lane.before.colour is not None
            asked.append(Question("change", f"What colour is the {name} last?", lane.answer))
            asked.append(
                Question("change", f"What colour is the {name} first?", lane.before.colour)
            )
        else:
            asked.append(Question("change", f"Does the {name} grow or shrink?", lane.answer))
    return asked


def _about_sound(rng: random.Random, sound: Sound) -> list[Question]:
    asked = []
    for event in sound.events:
        if event.kind == "word":
            asked.append(Question("word", "Which word is said?", event.what))
        elif event.kind == "beeps":
            asked.append(Question("beeps", "How many beeps are heard?", NUMBERS[int(event.what)]))
        else:
            asked.append(Question("sound", "Which sound is heard?", event.what))
    if len(sound.events) > 1:
        first, second = rng.sample(range(len(sound.events)), 2)
        names = [
            "word" if e.kind == "word" else "beeps" if e.kind == "beeps" else e.what
            for e in sound.events
        ]
        verb = "Are" if names[first] == "beeps" else "Is"
        text = f"{verb} the {names[first]} before the {names[second]}?"
        asked.append(Question("sequence", text, YES_NO[first > second]))
    return asked


def _about_both(rng: random.Random, picture: Picture, sound: Sound) -> list[Question]:
    said = sound.event("word")
    if said is None:
        return []
    thing = next((thing for thing in picture.things if thing.name == said.what), None)
    asked = [Question("named", "Is the thing that is named there?", YES_NO[thing is None])]
    if thing is not None:
        text = "Is the thing that is named left, centre or right?"
        asked.append(Question("named_where", text, COLUMNS[thing.column]))
    return asked


def _about_nothing(rng: random.Random) -> list[Question]:
    asked = []
    for _ in range(4):
        first = rng.randint(1, 8)
        second = rng.randint(1, 9 - first)
        text = f"What is {NUMBERS[first]} plus {NUMBERS[second]}?"
        asked.append(Question("sum", text, NUMBERS[first + second]))
    for kind in rng.sample(KINDS, 4):
        word = rng.choice([word for word in KIND_OF if KIND_OF[word] == kind])
        text = f"What is a {word}: {', '.join(KINDS[:-1])} or {KINDS[-1]}?"
        asked.append(Question("kind", text, kind))
    for _ in range(4):
        words = rng.sample(SPOKEN, 4)
        order = rng.choice((0, 1, -1))
        place = {0: "first", 1: "second", -1: "last"}[order]
        text = f"Which word is {place}: {', '.join(words)}?"
        asked.append(Question("list", text, words[order]))
    return asked
