"""The closed world of SmolAV: what is drawn, moved, said and heard, and the words for it.

Every word is one token of SmolLM2's tokenizer when a space comes before it, so that an answer such
as " dog" is one token, and a word's row of the embedding table can serve as the target of a
projector.
"""

from __future__ import annotations

from tamp_modifier.demo.pictures import COLOURS, COLUMNS, ROWS, SHAPES

THINGS = {
    "animal": {
        "dog": "1f436",
        "cat": "1f431",
        "horse": "1f434",
        "cow": "1f42e",
        "pig": "1f437",
        "frog": "1f438",
        "bear": "1f43b",
        "tiger": "1f42f",
        "monkey": "1f435",
        "rabbit": "1f430",
        "chicken": "1f414",
        "fish": "1f41f",
        "snake": "1f40d",
        "turtle": "1f422",
        "spider": "1f577-fe0f",
        "owl": "1f989",
    },
    "food": {
        "apple": "1f34e",
        "banana": "1f34c",
        "lemon": "1f34b",
        "cherry": "1f352",
        "carrot": "1f955",
        "corn": "1f33d",
        "bread": "1f35e",
        "cheese": "1f9c0",
        "egg": "1f95a",
        "pizza": "1f355",
    },
    "vehicle": {
        "car": "1f697",
        "bus": "1f68c",
        "train": "1f686",
        "truck": "1f69a",
        "ship": "1f6a2",
        "rocket": "1f680",
    },
    "plant": {
        "tree": "1f333",
        "rose": "1f339",
        "cactus": "1f335",
        "mushroom": "1f344",
        "flower": "1f33b",
    },
    "tool": {
        "book": "1f4d6",
        "key": "1f511",
        "bell": "1f514",
        "clock": "23f0",
        "phone": "260e-fe0f",
        "guitar": "1f3b8",
        "drum": "1f941",
        "hat": "1f3a9",
        "crown": "1f451",
        "umbrella": "2602-fe0f",
        "scissors": "2702-fe0f",
    },
}
"""Kind of thing -> word -> file name of its emoji, code points in hexadecimal."""

EMOJI = {word: code for things in THINGS.values() for word, code in things.items()}
KINDS = tuple(THINGS)
KIND_OF = {word: kind for kind, things in THINGS.items() for word in things}
NAMES = tuple(EMOJI) + SHAPES
"""What can be drawn: emoji and coloured shapes."""

SPOKEN = tuple(EMOJI)
"""Words that are said."""

SOUNDS = ("noise", "alarm", "buzz", "whistle", "knock")
"""Sounds that are synthesised, beside beeps."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WAYS = ("left", "right", "up", "down")
CHANGES = ("grow", "shrink")
COLOUR_WORDS = tuple(COLOURS)
MAX_THINGS = 5
"""Most things in a picture, and most beeps in a sound."""

__all__ = [
    "CHANGES",
    "COLOUR_WORDS",
    "COLUMNS",
    "EMOJI",
    "KINDS",
    "KIND_OF",
    "MAX_THINGS",
    "NAMES",
    "NUMBERS",
    "ROWS",
    "SHAPES",
    "SOUNDS",
    "SPOKEN",
    "THINGS",
    "WAYS",
]
