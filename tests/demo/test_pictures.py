"""Scenes, pictures and patch targets."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tamp_modifier.demo.pictures import (
    BACKGROUNDS,
    COLOURS,
    PATCH,
    SIZE,
    draw,
    patch_words,
    sample_scene,
)


def _scenes(count: int) -> list:
    rng = random.Random("test")
    return [sample_scene(rng) for _ in range(count)]


def test_the_same_scene_gives_the_same_picture():
    for scene in _scenes(20):
        assert draw(scene).tobytes() == draw(scene).tobytes()


def test_the_same_seed_gives_the_same_scenes():
    assert _scenes(50) == _scenes(50)


def test_pictures_are_rgb_and_differ():
    pictures = [draw(scene) for scene in _scenes(20)]
    assert all(picture.mode == "RGB" and picture.size == (SIZE, SIZE) for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 20


def test_items_lie_in_their_own_cell_in_raster_order():
    for scene in _scenes(300):
        cells = [(item.row, item.column) for item in scene.items]
        assert cells == sorted(set(cells))
        for item in scene.items:
            assert int(item.x // (SIZE / 3)) == item.column
            assert int(item.y // (SIZE / 3)) == item.row
        if scene.number is not None:
            assert scene.number.row not in {item.row for item in scene.items}


def test_scenes_have_one_to_six_things():
    for scene in _scenes(300):
        assert 1 <= len(scene.items) + (scene.number is not None) <= 6


@pytest.mark.parametrize("number", [True, False])
def test_number_can_be_asked_for(number):
    rng = random.Random(0)
    assert all((sample_scene(rng, number).number is not None) == number for _ in range(50))


def test_patch_words_tell_what_is_drawn():
    for scene in _scenes(50):
        words = patch_words(scene)
        assert len(words) == (SIZE // PATCH) ** 2
        shown = {entry[0] for entry in words if entry[1] not in ("nothing", "number")}
        assert shown == {item.kind for item in scene.items}
        if scene.number is not None:
            digits = [entry[0] for entry in words if entry[1] == "number"]
            assert set(digits) == set(scene.number.digits)


def test_a_circle_has_the_colour_that_patch_words_tell():
    for scene in _scenes(400):
        pixels = np.asarray(draw(scene), dtype=float)
        for item in scene.items:
            if item.kind == "circle":
                spot = pixels[int(item.y) - 3 : int(item.y) + 3, int(item.x) - 3 : int(item.x) + 3]
                nearest = min(
                    {**COLOURS, **BACKGROUNDS}.items(),
                    key=lambda entry: float(np.abs(spot.mean((0, 1)) - entry[1]).sum()),
                )
                assert nearest[0] == item.colour
