"""Draw the pictures and videos of SmolAV: emoji and coloured shapes on the grid of the demo.

A `Picture` is a plain description; `draw_picture` turns it into 96 x 96 pixels. A `Video` has two
lanes, in each of which something happens over four frames: it moves, turns into another thing,
changes its colour or its size.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.smolav.words import (
    CHANGES,
    COLOUR_WORDS,
    EMOJI,
    MAX_THINGS,
    SHAPES,
    WAYS,
)
from tamp_modifier.demo.pictures import (
    BACKGROUNDS,
    COLUMNS,
    DIGITS,
    PATCH,
    ROWS,
    SIZE,
    TEXTURES,
    Item,
    Number,
    Scene,
    draw,
    patch_words,
)

FRAMES = 4
"""Frames of a video."""

_CELL = SIZE // 3


@dataclass(frozen=True)
class Thing:
    """One thing of a picture.

    Attributes:
        name: A word of `NAMES`.
        colour: A word of `COLOUR_WORDS` for a shape, None for an emoji.
        row: Index into `ROWS`.
        column: Index into `COLUMNS`.
        x: Centre, in pixels from the left.
        y: Centre, in pixels from the top.
        radius: Half the height, in pixels.
        turn: Rotation, in radians.
    """

    name: str
    colour: str | None
    row: int
    column: int
    x: float
    y: float
    radius: float
    turn: float

    @property
    def place(self) -> str:
        """Row and column in words, such as "top left"."""
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"


@dataclass(frozen=True)
class Picture:
    """What a picture shows: things with different names, perhaps a number, and the ground.

    Attributes:
        things: In raster order.
        ground: The demo's scene without its items: background, texture, number, noise and seed.
    """

    things: tuple[Thing, ...]
    ground: Scene


@dataclass(frozen=True)
class Lane:
    """What happens in one lane of a video.

    Attributes:
        event: "move", "turn" (into another thing), "recolour" or "resize".
        before: The thing in the first frame.
        after: The thing in the last frame.
        answer: What a question about the event asks for: the way, the name or colour at the end,
            or "grow" or "shrink".
    """

    event: str
    before: Thing
    after: Thing
    answer: str


@dataclass(frozen=True)
class Video:
    """Two lanes over the ground of the first frame."""

    lanes: tuple[Lane, ...]
    ground: Scene


def _ground(rng: random.Random, number: Number | None = None) -> Scene:
    return Scene(
        background=rng.choice(sorted(BACKGROUNDS)),
        texture=rng.choice(TEXTURES),
        items=(),
        number=number,
        noise=rng.choice((0.0, 4.0, 8.0)),
        seed=rng.getrandbits(32),
    )


def _thing(rng: random.Random, name: str, row: int, column: int) -> Thing:
    shape = name in SHAPES
    return Thing(
        name=name,
        colour=rng.choice(COLOUR_WORDS) if shape else None,
        row=row,
        column=column,
        x=(column + 0.5) * _CELL + rng.uniform(-2, 2),
        y=(row + 0.5) * _CELL + rng.uniform(-2, 2),
        radius=rng.uniform(11.5, 14.5) if shape else rng.uniform(13.5, 15.5),
        turn=rng.uniform(-0.2, 0.2),
    )


def _names(rng: random.Random, count: int) -> list[str]:
    """Different names; two of five are shapes, so that colours and emoji are both frequent."""
    shapes = sum(rng.random() < 0.4 for _ in range(count))
    names = rng.sample(SHAPES, shapes) + rng.sample(tuple(EMOJI), count - shapes)
    rng.shuffle(names)
    return names


def sample_picture(rng: random.Random, name: str | None = None) -> Picture:
    """Draw a random picture: one to five things, in one picture of five beside a number.

    Args:
        rng: Source of randomness.
        name: A word of `NAMES` that must be among the things.
    """
    cells = [(row, column) for row in range(3) for column in range(3)]
    number = None
    count = rng.randint(1, MAX_THINGS)
    if rng.random() < 0.2:
        row = rng.randrange(3)
        digits = rng.choice(DIGITS[1:]) + rng.choice(DIGITS)
        size = rng.randint(28, 36)
        x = rng.uniform(4, SIZE - 1.3 * size)
        y = (row + 0.5) * _CELL + rng.uniform(-2, 2)
        number = Number(digits, rng.choice(COLOUR_WORDS), row, x, y, size)
        cells = [cell for cell in cells if cell[0] != row]
    places = sorted(rng.sample(cells, count))
    names = _names(rng, count)
    if name is not None and name not in names:
        names[rng.randrange(count)] = name
    things = tuple(
        _thing(rng, name, row, column) for name, (row, column) in zip(names, places, strict=True)
    )
    return Picture(things, _ground(rng, number))


def _lane(rng: random.Random, upright: bool, index: int, names: list[str]) -> Lane:
    """Return an event in row or column `index`; takes the names it needs off the list."""
    event = rng.choice(("move", "move", "turn", "recolour", "resize"))
    if event == "recolour":
        shape = next((name for name in names if name in SHAPES), None)
        name = shape if shape is not None else names[0]
        event = event if shape is not None else "resize"
    else:
        name = names[0]
    names.remove(name)
    place = rng.randrange(3)
    row, column = (place, index) if upright else (index, place)
    before = _thing(rng, name, row, column)
    if event == "turn":
        other = replace(_thing(rng, names.pop(0), row, column), x=before.x, y=before.y)
        return Lane(event, before, other, other.name)
    if event == "recolour":
        colour = rng.choice([colour for colour in COLOUR_WORDS if colour != before.colour])
        return Lane(event, before, replace(before, colour=colour), colour)
    if event == "resize":
        small, large = 0.5 * before.radius, 1.05 * before.radius
        grows = rng.random() < 0.5
        small, large = (small, large) if grows else (large, small)
        first, last = replace(before, radius=small), replace(before, radius=large)
        return Lane(event, first, last, CHANGES[not grows])
    start, end = rng.uniform(14, 26), SIZE - rng.uniform(14, 26)
    forward = rng.random() < 0.5
    start, end = (start, end) if forward else (end, start)
    if upright:
        way = WAYS[3] if forward else WAYS[2]
        return Lane(event, replace(before, y=start), replace(before, y=end), way)
    way = WAYS[1] if forward else WAYS[0]
    return Lane(event, replace(before, x=start), replace(before, x=end), way)


def sample_video(rng: random.Random) -> Video:
    """Draw a random video: events in two rows or two columns."""
    upright = rng.random() < 0.5
    names = _names(rng, 4)
    lanes = tuple(_lane(rng, upright, index, names) for index in sorted(rng.sample(range(3), 2)))
    return Video(lanes, _ground(rng))


def frame_things(video: Video, frame: int) -> tuple[Thing, ...]:
    """Return things of one frame, 0 to 3; turning and recolouring happen between frames 1 and 2."""
    share = frame / (FRAMES - 1)
    things = []
    for lane in video.lanes:
        shown = lane.before if frame < FRAMES // 2 else lane.after
        between = {
            key: (1 - share) * getattr(lane.before, key) + share * getattr(lane.after, key)
            for key in ("x", "y", "radius")
        }
        x, y = between["x"], between["y"]
        row, column = min(2, int(y // _CELL)), min(2, int(x // _CELL))
        radius = between["radius"] if lane.event == "resize" else shown.radius
        things.append(replace(shown, x=x, y=y, radius=radius, row=row, column=column))
    return tuple(things)


def read_emoji(folder: Path) -> dict[str, Image.Image]:
    """Return the emoji by word, RGBA.

    Args:
        folder: PNG files named by code point, such as ``1f436.png``.

    Raises:
        ValueError: An emoji is missing.
    """
    missing = [code for code in EMOJI.values() if not (folder / f"{code}.png").is_file()]
    if missing:
        raise ValueError(f"emoji folder {folder} has no {missing[0]}.png; run `make smolav`")
    return {
        word: Image.open(folder / f"{code}.png").convert("RGBA") for word, code in EMOJI.items()
    }


class Drawer:
    """Draw with small pictures of things.

    Args:
        pictures: Square RGBA pictures by the name of the thing.
    """

    def __init__(self, pictures: Mapping[str, Image.Image]) -> None:
        self._pictures = pictures
        self._cache: dict[tuple[str, int, int], Image.Image] = {}

    def picture(self, picture: Picture) -> np.ndarray:
        """Pixels uint8 [96, 96, 3]; the same picture gives the same pixels."""
        return self._draw(picture.things, picture.ground)

    def video(self, video: Video) -> np.ndarray:
        """Pixels uint8 [4, 96, 96, 3]; the ground and its noise stand still."""
        return np.stack(
            [self._draw(frame_things(video, frame), video.ground) for frame in range(FRAMES)]
        )

    def _draw(self, things: tuple[Thing, ...], ground: Scene) -> np.ndarray:
        shapes = tuple(_as_item(thing) for thing in things if thing.colour is not None)
        canvas = draw(replace(ground, items=shapes))
        for thing in things:
            if thing.colour is None:
                size = max(8, round(2 * thing.radius))
                small = self._small(thing.name, size, round(float(np.degrees(thing.turn))))
                corner = (round(thing.x - size / 2), round(thing.y - size / 2))
                canvas.paste(small, corner, small)
        return np.asarray(canvas, dtype=np.uint8)

    def _small(self, name: str, size: int, degrees: int) -> Image.Image:
        key = (name, size, degrees)
        if key not in self._cache:
            turned = self._pictures[name].rotate(degrees, resample=Image.Resampling.BILINEAR)
            self._cache[key] = turned.resize((size, size), Image.Resampling.BOX)
        return self._cache[key]


def _as_item(thing: Thing) -> Item:
    assert thing.colour is not None
    return Item(
        thing.name,
        "shape",
        thing.colour,
        thing.row,
        thing.column,
        thing.x,
        thing.y,
        thing.radius,
        thing.turn,
    )


def patch_labels(picture: Picture) -> list[tuple[str, str, str, str]]:
    """Tell in words what each of the 144 patches shows, for dense supervision of the tower.

    Returns:
        In raster order: name, colour, row and column. A patch of the ground is "nothing" with the
        background as colour; a digit of the number has its word as name; an emoji has "nothing" as
        colour.
    """
    labels = []
    side = SIZE // PATCH
    for index, (name, _, colour, row, column, _) in enumerate(patch_words(picture.ground)):
        y, x = (index // side + 0.5) * PATCH, (index % side + 0.5) * PATCH
        label = (name, colour, row, column)
        for thing in picture.things:
            if max(abs(x - thing.x), abs(y - thing.y)) <= 0.9 * thing.radius:
                place = (ROWS[thing.row], COLUMNS[thing.column])
                label = (thing.name, thing.colour or "nothing", *place)
        labels.append(label)
    return labels
