"""Draw small pictures of coloured shapes, letters, digits and numbers.

A `Scene` is a plain description; `draw` turns it into a 96 x 96 RGB picture. Objects sit on a
jittered 3 x 3 grid, so that a place is told by a row word and a column word. Everything is drawn
with Pillow and the font bundled with it; the same scene always gives the same picture.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 96
"""Width and height of a picture in pixels."""

PATCH = 8
"""Width and height of one patch (one image token) in pixels."""

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
ORDER = ("first", "second", "third")

COLOURS = {
    "red": (222, 38, 38),
    "orange": (250, 136, 18),
    "yellow": (245, 222, 35),
    "green": (38, 165, 55),
    "cyan": (45, 210, 222),
    "blue": (45, 75, 225),
    "purple": (135, 45, 175),
    "pink": (250, 130, 190),
}
BACKGROUNDS = {
    "white": (240, 240, 240),
    "gray": (135, 135, 135),
    "black": (22, 22, 22),
    "brown": (110, 72, 38),
    "beige": (225, 205, 165),
}
TEXTURES = ("plain", "striped", "dotted", "checked")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
LETTERS = tuple("ABEFHKMRTX")
DIGITS = tuple("0123456789")
CATEGORIES = {"shape": SHAPES, "letter": LETTERS, "digit": DIGITS}

_CELL = SIZE // 3
_SCALE = 2  # drawn larger and averaged down, for smooth edges


@dataclass(frozen=True)
class Item:
    """One object of a scene.

    Attributes:
        kind: A word of `SHAPES`, `LETTERS` or `DIGITS`.
        category: "shape", "letter" or "digit".
        colour: A key of `COLOURS`.
        row: Index into `ROWS`.
        column: Index into `COLUMNS`.
        x: Centre, in pixels from the left.
        y: Centre, in pixels from the top.
        radius: Half the height, in pixels.
        turn: Rotation of a shape, in radians.
    """

    kind: str
    category: str
    colour: str
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
class Number:
    """A number of two or three digits, written over a whole row of the grid.

    Attributes:
        digits: The digits, such as "407".
        colour: A key of `COLOURS`.
        row: Index into `ROWS`.
        x: Left edge, in pixels.
        y: Vertical centre, in pixels.
        size: Font size, in pixels.
    """

    digits: str
    colour: str
    row: int
    x: float
    y: float
    size: int


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        background: A key of `BACKGROUNDS`.
        texture: A word of `TEXTURES`.
        items: Objects in raster order.
        number: The written number, if there is one.
        noise: Standard deviation of the pixel noise, in steps of 1/255.
        seed: Seed of colour shades, texture phase and noise.
    """

    background: str
    texture: str
    items: tuple[Item, ...]
    number: Number | None
    noise: float
    seed: int


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


@lru_cache(maxsize=4096)
def _advance(character: str, size: int) -> float:
    return _font(size).getlength(character)


def sample_scene(rng: random.Random, number: bool | None = None, full: bool = False) -> Scene:
    """Draw a random scene.

    Args:
        rng: Source of randomness.
        number: Whether a number is written; None leaves it to chance (one in five).
        full: Put an object in every free cell.

    Returns:
        A scene with one to six objects (none to three beside a number).
    """
    with_number = rng.random() < 0.2 if number is None else number
    cells = [(row, column) for row in range(3) for column in range(3)]
    written = None
    colours = rng.sample(sorted(COLOURS), rng.choice((3, 5, 8)))
    if with_number:
        row = rng.randrange(3)
        digits = "".join(rng.choice(DIGITS) for _ in range(rng.choice((2, 2, 3))))
        digits = (rng.choice(DIGITS[1:]) + digits[1:]) if digits[0] == "0" else digits
        size = rng.randint(28, 36)
        width = sum(_advance(digit, size) for digit in digits)
        x = rng.uniform(2, max(2.0, SIZE - 2 - width))
        y = (row + 0.5) * _CELL + rng.uniform(-2, 2)
        written = Number(digits, rng.choice(colours), row, x, y, size)
        cells = [cell for cell in cells if cell[0] != row]
        count = rng.randint(0, 3)
    else:
        count = rng.randint(1, 6)
    count = len(cells) if full else count
    items = []
    kinds: list[tuple[str, str]] = []
    for row, column in sorted(rng.sample(cells, count)):
        if kinds and rng.random() < 0.2:
            category, kind = rng.choice(kinds)
        else:
            category = rng.choice(("shape", "letter", "digit"))
            kind = rng.choice(CATEGORIES[category])
        kinds.append((category, kind))
        items.append(
            Item(
                kind=kind,
                category=category,
                colour=rng.choice(colours),
                row=row,
                column=column,
                x=(column + 0.5) * _CELL + rng.uniform(-3, 3),
                y=(row + 0.5) * _CELL + rng.uniform(-3, 3),
                radius=rng.uniform(10.5, 15.0),
                turn=rng.uniform(-0.2, 0.2),
            )
        )
    return Scene(
        background=rng.choice(sorted(BACKGROUNDS)),
        texture=rng.choice(TEXTURES),
        items=tuple(items),
        number=written,
        noise=rng.choice((0.0, 4.0, 8.0, 12.0)),
        seed=rng.getrandbits(32),
    )


def _shade(
    colour: tuple[int, int, int], rng: random.Random, amount: int = 12
) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, c + rng.randint(-amount, amount))) for c in colour)
    return red, green, blue


def _polygon(
    kind: str, x: float, y: float, radius: float, turn: float
) -> list[tuple[float, float]]:
    """Corners of a shape with straight edges, in pixels."""
    if kind == "square":
        points = [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    elif kind == "triangle":
        points = [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]
    elif kind == "diamond":
        points = [(0.0, -1.05), (0.7, 0.0), (0.0, 1.05), (-0.7, 0.0)]
    elif kind == "cross":
        a, b = 0.32, 0.95
        points = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        points += [(a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    elif kind == "star":
        points = []
        for corner in range(10):
            length = 1.1 if corner % 2 == 0 else 0.45
            angle = math.pi * corner / 5
            points.append((length * math.sin(angle), -length * math.cos(angle)))
    else:  # heart
        points = []
        for step in range(40):
            t = 2 * math.pi * step / 40
            across = math.sin(t) ** 3
            down = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)) / 16
            points.append((across, down + math.cos(4 * t) / 16))
    sine, cosine = math.sin(turn), math.cos(turn)
    return [
        (x + radius * (px * cosine - py * sine), y + radius * (px * sine + py * cosine))
        for px, py in points
    ]


def _draw_texture(
    draw: ImageDraw.ImageDraw, texture: str, colour: tuple[int, int, int], rng: random.Random
) -> None:
    size = SIZE * _SCALE
    step = rng.randint(7, 10) * _SCALE
    phase = rng.randrange(step)
    if texture == "striped":
        slope = rng.choice((-1, 1))
        for start in range(-2 * size + phase, 2 * size, 2 * step):
            line = [(start, 0), (start + slope * size, size)]
            draw.line(line, fill=colour, width=max(2, int(0.9 * step)))
    elif texture == "dotted":
        radius = 0.22 * step
        for x in range(phase - step, size + step, step):
            for y in range(phase - step, size + step, step):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    elif texture == "checked":
        for i, x in enumerate(range(phase - 2 * step, size, step)):
            for j, y in enumerate(range(phase - 2 * step, size, step)):
                if (i + j) % 2 == 0:
                    draw.rectangle((x, y, x + step - 1, y + step - 1), fill=colour)


def draw(scene: Scene) -> Image.Image:
    """Draw a scene.

    Args:
        scene: What to show.

    Returns:
        An RGB picture of `SIZE` x `SIZE` pixels, the same for the same scene.
    """
    rng = random.Random(scene.seed)
    base = _shade(BACKGROUNDS[scene.background], rng, 8)
    picture = Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE), base)
    pen = ImageDraw.Draw(picture)
    lift = 26 if sum(base) < 380 else -26
    lifted = tuple(min(255, max(0, channel + lift)) for channel in base)
    _draw_texture(pen, scene.texture, (lifted[0], lifted[1], lifted[2]), rng)
    for item in scene.items:
        colour = _shade(COLOURS[item.colour], rng)
        x, y, radius = item.x * _SCALE, item.y * _SCALE, item.radius * _SCALE
        if item.category != "shape":
            font = _font(int(2.4 * item.radius) * _SCALE)
            pen.text((x, y), item.kind, fill=colour, font=font, anchor="mm", stroke_width=1)
        elif item.kind in ("circle", "ring"):
            box = (x - radius, y - radius, x + radius, y + radius)
            if item.kind == "circle":
                pen.ellipse(box, fill=colour)
            else:
                pen.ellipse(box, outline=colour, width=int(0.35 * radius))
        else:
            pen.polygon(_polygon(item.kind, x, y, radius, item.turn), fill=colour)
    if scene.number is not None:
        number = scene.number
        pen.text(
            (number.x * _SCALE, number.y * _SCALE),
            number.digits,
            fill=_shade(COLOURS[number.colour], rng),
            font=_font(number.size * _SCALE),
            anchor="lm",
            stroke_width=1,
        )
    picture = picture.reduce(_SCALE)
    if scene.noise > 0:
        noise = np.random.default_rng(scene.seed).normal(0.0, scene.noise, (SIZE, SIZE, 3))
        pixels = np.asarray(picture, dtype=np.float64) + noise
        picture = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    return picture


def patch_words(scene: Scene) -> list[tuple[str, str, str, str, str, str]]:
    """Tell in words what each patch shows, for dense supervision of the vision tower.

    Args:
        scene: What the picture shows.

    Returns:
        One entry per patch in raster order: kind, category, colour, row, column and, for the
        digits of a number, their order. Background patches are "nothing" with the background's
        colour, their own place and the texture as order.
    """
    side = SIZE // PATCH
    words = []
    for row in range(side):
        for column in range(side):
            y, x = (row + 0.5) * PATCH, (column + 0.5) * PATCH
            own_row, own_column = ROWS[row * 3 // side], COLUMNS[column * 3 // side]
            entry = ("nothing", "nothing", scene.background, own_row, own_column, scene.texture)
            for item in scene.items:
                if math.hypot(x - item.x, y - item.y) <= item.radius:
                    entry = (
                        item.kind,
                        item.category,
                        item.colour,
                        ROWS[item.row],
                        COLUMNS[item.column],
                        "nothing",
                    )
            number = scene.number
            if number is not None and abs(y - number.y) <= 0.42 * number.size:
                left = number.x
                for order, digit in enumerate(number.digits):
                    right = left + _advance(digit, number.size)
                    if left <= x < right:
                        row_word = ROWS[number.row]
                        entry = (digit, "number", number.colour, row_word, own_column, ORDER[order])
                    left = right
            words.append(entry)
    return words
