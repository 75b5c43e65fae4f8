"""Questions about scenes, and questions without a picture.

`picture_question` asks one thing about a scene, `text_question` asks something that needs no
picture. All text is words separated by spaces, from a small vocabulary (`vocabulary`). Answers
are balanced by choosing the wanted answer first and then a scene that gives it
(`balanced_picture_question`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tamp_modifier.demo.pictures import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    COLUMNS,
    DIGITS,
    LETTERS,
    ORDER,
    ROWS,
    SHAPES,
    TEXTURES,
    Item,
    Scene,
    sample_scene,
)


@dataclass(frozen=True)
class Question:
    """A question and its only right answer, as words separated by spaces."""

    task: str
    question: str
    answer: str


KINDS = SHAPES + LETTERS + DIGITS
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)

# ---------------------------------------------------------------------------- pictures


def _is_unique(scene: Scene, item: Item, with_colour: bool) -> bool:
    same = [
        other
        for other in scene.items
        if other.kind == item.kind and (not with_colour or other.colour == item.colour)
    ]
    return len(same) == 1


def _reference(scene: Scene, item: Item, rng: random.Random) -> str | None:
    """Words that mean this object alone: "star", or "red star"; None where there are none."""
    choices = []
    if _is_unique(scene, item, with_colour=False):
        choices.append(item.kind)
    if _is_unique(scene, item, with_colour=True):
        choices.append(f"{item.colour} {item.kind}")
    return rng.choice(choices) if choices else None


def _what(scene: Scene, rng: random.Random, wanted: str | None) -> Question | None:
    items = [item for item in scene.items if wanted in (None, item.kind)]
    if not items:
        return None
    item = rng.choice(items)
    return Question("what", f"what is at the {item.place} ?", item.kind)


def _where(scene: Scene, rng: random.Random, wanted: str | None) -> Question | None:
    items = [item for item in scene.items if wanted in (None, item.place)]
    if not items:
        return None
    item = rng.choice(items)
    reference = _reference(scene, item, rng)
    return reference and Question("where", f"where is the {reference} ?", item.place) or None


def _count(scene: Scene, rng: random.Random, wanted: str | None) -> Question | None:
    if scene.number is not None:
        return None
    # "0" can only be asked of a category; large counts mostly of all things.
    whole = rng.random() < 0.5
    if whole:
        noun, count = "things", len(scene.items)
    else:
        category = rng.choice(sorted(CATEGORIES))
        noun = f"{category}s"
        count = sum(item.category == category for item in scene.items)
    if wanted not in (None, str(count)):
        return None
    return Question("count", f"how many {noun} are there ?", str(count))


def _colour(scene: Scene, rng: random.Random, wanted: str | None) -> Question | None:
    if scene.number is not None and rng.random() < 0.3:
        colour = scene.number.colour
        if wanted not in (None, colour):
            return None
        return Question("colour", "what colour is the number ?", colour)
    items = [
        item
        for item in scene.items
        if wanted in (None, item.colour) and _is_unique(scene, item, with_colour=False)
    ]
    if not items:
        return None
    item = rng.choice(items)
    noun = item.kind if rng.random() < 0.6 else f"thing at the {item.place}"
    return Question("colour", f"what colour is the {noun} ?", item.colour)


def _relation(scene: Scene, rng: random.Random, wanted: str | None) -> Question | None:
    items = [item for item in scene.items if _is_unique(scene, item, with_colour=False)]
    if len(items) < 2:
        return None
    first, second = rng.sample(items, 2)
    left = rng.random() < 0.5
    if (first.column == second.column) if left else (first.row == second.row):
        return None
    wins = first.column < second.column if left else first.row < second.row
    # Balanced by which of the two is named first: the answer itself is one of 28 words.
    if wanted is not None and (wanted == "first") != wins:
        return None
    word = "further left" if left else "higher"
    answer = (first if wins else second).kind
    return Question(
        "relation", f"which is {word} , the {first.kind} or the {second.kind} ?", answer
    )


def _presence(scene: Scene, rng: random.Random, wanted: str | None) -> Question | None:
    if not scene.items:
        return None
    yes = rng.random() < 0.5 if wanted is None else wanted == "yes"
    with_colour = rng.random() < 0.5
    item = rng.choice(scene.items)
    kind, colour = item.kind, item.colour
    if not yes:
        # Half of the wrong pairs are near misses: a kind that is there, in another colour.
        if not with_colour or rng.random() < 0.5:
            kind = rng.choice(CATEGORIES[item.category])
        else:
            colour = rng.choice(sorted(COLOURS))
        present = any(
            other.kind == kind and (not with_colour or other.colour == colour)
            for other in scene.items
        )
        if present:
            return None
    noun = f"{colour} {kind}" if with_colour else kind
    return Question("presence", f"is there a {noun} ?", "yes" if yes else "no")


def _background(scene: Scene, rng: random.Random, wanted: str | None) -> Question | None:
    if wanted not in (None, scene.background):
        return None
    return Question("background", "what colour is the background ?", scene.background)


def _number(scene: Scene, rng: random.Random, wanted: str | None) -> Question | None:
    if scene.number is None or wanted not in (None, str(len(scene.number.digits))):
        return None
    return Question("number", "what number is written ?", " ".join(scene.number.digits))


def _category(scene: Scene, rng: random.Random, wanted: str | None) -> Question | None:
    items = [item for item in scene.items if wanted in (None, item.category)]
    if not items:
        return None
    item = rng.choice(items)
    only = sum(other.colour == item.colour for other in scene.items) == 1
    if scene.number is not None and scene.number.colour == item.colour:
        only = False
    noun = f"{item.colour} thing" if only and rng.random() < 0.5 else f"thing at the {item.place}"
    return Question("category", f"what kind is the {noun} ?", item.category)


_Ask = Callable[[Scene, random.Random, "str | None"], "Question | None"]

_PICTURE: dict[str, tuple[_Ask, tuple[str, ...]]] = {
    "what": (_what, KINDS),
    "where": (_where, PLACES),
    "count": (_count, ("0", "1", "2", "3", "4", "5", "6")),
    "colour": (_colour, tuple(COLOURS)),
    "relation": (_relation, ("first", "second")),
    "presence": (_presence, ("yes", "no")),
    "background": (_background, tuple(BACKGROUNDS)),
    "number": (_number, ("2", "3")),
    "category": (_category, tuple(CATEGORIES)),
}

PICTURE_TASKS = tuple(_PICTURE)
"""Names of the tasks that need the picture."""


def picture_question(
    task: str, scene: Scene, rng: random.Random, wanted: str | None = None
) -> Question | None:
    """Ask one question about a scene.

    Args:
        task: A name of `PICTURE_TASKS`.
        scene: What the picture shows.
        rng: Source of randomness.
        wanted: An entry of `balance_keys(task)`: the answer, or for "relation" which of the two
            named objects it is, and for "number" how many digits it has.

    Returns:
        The question, or None where the scene does not give one (with the wanted answer).
    """
    return _PICTURE[task][0](scene, rng, wanted)


def balance_keys(task: str) -> tuple[str, ...]:
    """Return what the answers of a picture task are balanced over."""
    return _PICTURE[task][1]


def balanced_picture_question(task: str, rng: random.Random, wanted: str) -> tuple[Scene, Question]:
    """Find a scene and a question with the wanted answer."""
    number = True if task == "number" else False if task == "count" else None
    while True:
        scene = sample_scene(rng, number)
        question = picture_question(task, scene, rng, wanted)
        if question is not None:
            return scene, question


def caption(scene: Scene) -> Question:
    """Everything in the picture, in raster order. Used to train, not to evaluate."""
    parts = [f"{scene.background} {scene.texture}"]
    lines = [(i.row, i.column, f"{i.place} {i.colour} {i.kind}") for i in scene.items]
    if scene.number is not None:
        number = scene.number
        text = f"{ROWS[number.row]} {number.colour} number {' '.join(number.digits)}"
        lines.append((number.row, 0, text))
    parts += [text for _, _, text in sorted(lines)]
    return Question("caption", "describe the picture .", " , ".join(parts))


# -------------------------------------------------------------------------------- text

OPPOSITES = (
    "hot cold,big small,up down,day night,old new,fast slow,open closed,wet dry,hard soft,"
    "rich poor,early late,full empty,light dark,strong weak,happy sad,long short"
)
_OPPOSITE = dict(pair.split() for pair in OPPOSITES.split(","))
_OPPOSITE.update({second: first for first, second in _OPPOSITE.items()})

COLOUR_OF = {
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "blood": "red",
    "banana": "yellow",
    "sky": "blue",
    "carrot": "orange",
    "plum": "purple",
    "chocolate": "brown",
    "sand": "beige",
    "elephant": "gray",
    "pig": "pink",
    "lemon": "yellow",
    "frog": "green",
    "milk": "white",
    "tomato": "red",
}
MEMBERS = {
    "animal": ("dog", "cat", "horse", "cow", "pig", "frog", "elephant", "bird"),
    "fruit": ("apple", "banana", "plum", "lemon", "pear", "cherry"),
    "tool": ("hammer", "saw", "drill", "wrench", "shovel", "axe"),
    "vehicle": ("car", "bus", "train", "bicycle", "boat", "truck"),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
}
_ALPHABET = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_WORDS = tuple(sorted({word for group in MEMBERS.values() for word in group}))


def _spell(number: int) -> str:
    return " ".join(str(number))


def _add(rng: random.Random) -> tuple[str, str]:
    total = rng.randint(0, 18)
    first = rng.randint(max(0, total - 9), min(9, total))
    return f"what is {first} plus {total - first} ?", _spell(total)


def _subtract(rng: random.Random) -> tuple[str, str]:
    result = rng.randint(0, 9)
    first = rng.randint(result, 9)
    return f"what is {first} minus {first - result} ?", _spell(result)


def _larger(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(range(10), 2)
    return f"is {first} larger than {second} ?", "yes" if first > second else "no"


def _next_number(rng: random.Random) -> tuple[str, str]:
    number = rng.randint(0, 98)
    return f"what number follows {_spell(number)} ?", _spell(number + 1)


def _next_letter(rng: random.Random) -> tuple[str, str]:
    index = rng.randrange(25)
    return f"what letter follows {_ALPHABET[index]} ?", _ALPHABET[index + 1]


def _opposite(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(sorted(_OPPOSITE))
    return f"what is the opposite of {word} ?", _OPPOSITE[word]


def _colour_of(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(sorted(COLOUR_OF))
    return f"what colour is {word} ?", COLOUR_OF[word]


def _member(rng: random.Random) -> tuple[str, str]:
    group = rng.choice(sorted(MEMBERS))
    return f"what kind of thing is {rng.choice(MEMBERS[group])} ?", group


def _repeat(rng: random.Random) -> tuple[str, str]:
    words = " ".join(rng.sample(_WORDS, rng.randint(2, 4)))
    return f"repeat : {words}", words


def _count_words(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(_WORDS, rng.randint(1, 6))
    return f"count the words : {' '.join(words)}", str(len(words))


def _last_word(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(_WORDS, rng.randint(2, 5))
    which = rng.choice(("first", "last"))
    answer = words[0] if which == "first" else words[-1]
    return f"which word is {which} : {' '.join(words)}", answer


_TEXT: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "add": _add,
    "subtract": _subtract,
    "larger": _larger,
    "next number": _next_number,
    "next letter": _next_letter,
    "opposite": _opposite,
    "colour of": _colour_of,
    "kind of": _member,
    "repeat": _repeat,
    "count words": _count_words,
    "pick word": _last_word,
}

TEXT_TASKS = tuple(_TEXT)
"""Names of the tasks without a picture."""


def text_question(task: str, rng: random.Random) -> Question:
    """Ask one question of `TEXT_TASKS`."""
    question, answer = _TEXT[task](rng)
    return Question(task, question, answer)


_FRAME_WORDS = (
    "what is at the ? where how many things shapes letters digits are there colour number thing "
    "which further left higher , or a background pattern written kind describe picture . plus "
    "minus larger than follows letter opposite of repeat : count words word first last yes no "
    "nothing shape digit"
)


def vocabulary() -> list[str]:
    """All words that questions and answers are made of, sorted."""
    words = set(_FRAME_WORDS.split()) | set(_WORDS) | set(_ALPHABET) | set(KINDS)
    words |= set(COLOURS) | set(BACKGROUNDS) | set(TEXTURES) | set(ROWS) | set(COLUMNS)
    words |= set(ORDER) | set(CATEGORIES) | set(_OPPOSITE) | set(COLOUR_OF) | set(MEMBERS)
    return sorted(words)
