"""Decoding pictures, videos and sounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tamp_modifier.data import DataError
from tamp_modifier.data.media import load_audio, load_picture, load_video
from tests.data.files import picture, sound, video


def test_a_picture_comes_as_rgb(tmp_path: Path) -> None:
    found = load_picture(picture(tmp_path / "a.png", (20, 10)), "a:1")
    assert found.mode == "RGB" and found.size == (20, 10)


def test_frames_are_spread_over_the_video(tmp_path: Path) -> None:
    found = load_video(video(tmp_path / "a.mp4", frames=12), "a:1", frames=4)
    assert found.indices == [0, 4, 7, 11]
    assert found.frames.shape == (4, 48, 64, 3) and found.total == 12 and found.fps == 4
    brightness = found.frames.mean(axis=(1, 2, 3))
    assert np.abs(brightness - 20 * np.array(found.indices)).max() < 6  # it is compressed


def test_a_short_video_gives_all_its_frames(tmp_path: Path) -> None:
    found = load_video(video(tmp_path / "a.mp4", frames=3), "a:1", frames=8)
    assert found.indices == [0, 1, 2]


def test_a_folder_of_pictures_is_a_video(tmp_path: Path) -> None:
    for number in range(5):
        picture(tmp_path / f"{number}.png", colour=50 * number)
    found = load_video(tmp_path, "a:1", frames=2)
    assert found.indices == [0, 4] and found.frames[:, -1, -1, 0].tolist() == [0, 200]


def test_a_sound_is_brought_to_the_rate_of_the_model(tmp_path: Path) -> None:
    found = load_audio(sound(tmp_path / "a.wav", seconds=0.5, rate=8000), "a:1", rate=16000)
    assert found.dtype == np.float32 and abs(len(found) - 8000) < 50
    middle = found[1000:7000]
    # 440 Hz pass through zero 880 times a second; amplitude 0.5 has a mean square of 1/8.
    crossings = np.count_nonzero(np.diff(np.signbit(middle)))
    assert crossings == pytest.approx(880 * len(middle) / 16000, abs=2)
    assert np.mean(middle**2) == pytest.approx(0.125, abs=0.01)


def test_bytes_decode_like_the_file(tmp_path: Path) -> None:
    shown = picture(tmp_path / "a.png")
    moving = video(tmp_path / "a.mp4", frames=5)
    heard = sound(tmp_path / "a.wav")
    one, other = (load_picture(s, "a:1") for s in (shown, shown.read_bytes()))
    assert one.tobytes() == other.tobytes()
    frames = [load_video(s, "a:1", 3).frames for s in (moving, moving.read_bytes())]
    assert np.array_equal(*frames)
    sounds = [load_audio(s, "a:1", 16000) for s in (heard, heard.read_bytes())]
    assert np.array_equal(*sounds)
    with pytest.raises(DataError, match="^a:1: the picture in the row cannot be decoded: "):
        load_picture(b"text", "a:1")
    for load in (lambda: load_video(b"text", "a:1", 4), lambda: load_audio(b"text", "a:1", 8)):
        with pytest.raises(DataError, match="^a:1: the (video|audio) in the row cannot be decoded"):
            load()


def test_a_picture_in_memory_comes_as_rgb_and_stays_open() -> None:
    from PIL import Image

    mine = Image.new("L", (4, 3), 7)
    assert load_picture(mine, "a:1").getpixel((0, 0)) == (7, 7, 7)
    assert mine.getpixel((0, 0)) == 7


def test_pixels_and_seconds_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamp_modifier.data.media.MAX_PIXELS", 6000)
    monkeypatch.setattr("tamp_modifier.data.media.MAX_SECONDS", 0.3)
    assert load_picture(picture(tmp_path / "a.png", (75, 80)), "a:1").size == (75, 80)
    with pytest.raises(DataError, match="76 x 80 pixels are more than the 6,000 allowed"):
        load_picture(picture(tmp_path / "b.png", (76, 80)), "a:1")
    path = video(tmp_path / "a.mp4", size=(64, 48))
    assert load_video(path, "a:1", 1).frames.shape == (1, 48, 64, 3)
    with pytest.raises(DataError, match="2 frames of 3,072 pixels are more than the 6,000 allow"):
        load_video(path, "a:1", 2)
    assert len(load_audio(sound(tmp_path / "a.wav", seconds=0.3), "a:1", 8000)) == 2400
    with pytest.raises(DataError, match="is longer than the 0.3 s allowed"):
        load_audio(sound(tmp_path / "b.wav", seconds=0.5), "a:1", 8000)


def test_a_picture_that_unpacks_to_gigabytes_is_refused_at_once(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb.png cannot be decoded: .*400000000 pixels"):
        load_picture(tmp_path / "bomb.png", "a:1")


def cut(path: Path) -> Path:
    """Keeps the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def text(path: Path) -> Path:
    path.write_text("this is not what its name says" * 20)
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


LOAD: dict[str, Callable[[Path], object]] = {
    ".png": lambda path: load_picture(path, "data.jsonl:7"),
    ".mp4": lambda path: load_video(path, "data.jsonl:7", 4),
    ".wav": lambda path: load_audio(path, "data.jsonl:7", 16000),
}


@pytest.mark.parametrize(
    ("suffix", "make", "message"),
    [
        (".png", empty, "is an empty file"),
        (".png", text, "cannot be decoded"),
        (".png", lambda path: cut(picture(path, (200, 200))), "cannot be decoded"),
        (".mp4", empty, "is an empty file"),
        (".mp4", text, "cannot be decoded"),
        (".mp4", lambda path: cut(video(path)), "cannot be decoded"),
        (".mp4", sound, "cannot be decoded"),
        (".wav", empty, "is an empty file"),
        (".wav", text, "cannot be decoded"),
        (".wav", video, "cannot be decoded"),
        (".wav", lambda path: sound(path, seconds=0), "has no sound in it"),
    ],
)
def test_a_bad_file_is_named_with_its_sample(
    tmp_path: Path, suffix: str, make: Callable[[Path], Path], message: str
) -> None:
    source = tmp_path / f"media{'.mp4' if make is video else '.wav' if make is sound else suffix}"
    path = make(source).rename(tmp_path / f"bad{suffix}")
    with pytest.raises(DataError) as error:
        LOAD[suffix](path)
    assert str(error.value).startswith("data.jsonl:7: the ")
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_frames_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder without pictures"):
        load_video(tmp_path, "a:1", 4)
    picture(tmp_path / "0.png", (8, 8))
    picture(tmp_path / "1.png", (9, 8))
    with pytest.raises(DataError, match="differ in size"):
        load_video(tmp_path, "a:1", 4)
