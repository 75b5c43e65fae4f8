"""Stamps and recordings in place of emoji and espeak-ng, with stand-ins for the Debian package."""

from __future__ import annotations

import random
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks import packages
from benchmarks.smolav import stamps
from benchmarks.smolav.data import SmolAVProcessor
from benchmarks.smolav.media import stream
from benchmarks.smolav.sounds import RATE
from benchmarks.smolav.words import EMOJI


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the package that are used: red stamps off their centre, and tones."""
    root = tmp_path_factory.mktemp("package")
    base = root / stamps.STAMPS_FOLDER
    for stems in stamps.STAMPS.values():
        for stem in stems:
            path = base / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGBA", (80, 60))
            ImageDraw.Draw(picture).rectangle((10, 20, 49, 39), fill=(255, 0, 0, 255))
            picture.save(path)
    for stem in stamps.SPOKEN_STAMPS.values():
        tone(base / f"{stem}_desc.ogg")
    return root


def tone(path: Path, seconds: float = 0.5, rate: int = 22050) -> None:
    """A second of silence, then a tone; the reader does not care about the suffix."""
    samples = 12000 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    samples = np.concatenate((np.zeros(rate), samples)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


@pytest.fixture
def fetched(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `fetch` makes of the package."""
    monkeypatch.setattr(stamps, "unpack_debian", lambda names, work: _made(work, package))
    return stamps.fetch(tmp_path)


def _made(work: Path, package: Path) -> Path:
    work.mkdir()
    return package


def test_words_are_words_of_the_closed_world() -> None:
    assert set(stamps.STAMPS) <= set(EMOJI)
    assert set(stamps.SPOKEN_STAMPS) <= set(stamps.STAMPS)


def test_stamps_are_fetched_once(fetched: Path) -> None:
    assert len(list(fetched.glob("*.png"))) == sum(map(len, stamps.STAMPS.values()))
    assert len(list(fetched.glob("*.ogg"))) == len(stamps.SPOKEN_STAMPS)
    mark = fetched / "mark"
    mark.touch()
    assert stamps.fetch(fetched.parent) == fetched and mark.exists()
    (fetched / "key 0.png").unlink()
    assert stamps.fetch(fetched.parent) == fetched
    assert (fetched / "key 0.png").exists() and not mark.exists()
    assert sorted(path.name for path in fetched.parent.iterdir()) == ["stamps"]


def test_a_package_that_lacks_a_file_leaves_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.setattr(stamps, "unpack_debian", lambda names, work: _made(work, empty))
    with pytest.raises(packages.SetUpError, match="has no animals/mammals/dogs/dog.png"):
        stamps.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_stamp_is_cut_out_and_made_square(fetched: Path) -> None:
    cut = stamps.square(Image.open(fetched / "key 0.png"))
    assert cut.size == (40, 40)
    assert cut.getchannel("A").getbbox() == (0, 10, 40, 30)


def test_a_recording_is_resampled_and_cut(fetched: Path) -> None:
    samples = stamps.read_recording(fetched / "dog.ogg")
    assert samples.dtype == np.float32
    assert len(samples) / RATE == pytest.approx(0.5, abs=0.01)
    assert np.abs(samples).max() == pytest.approx(1.0, abs=0.02)


def test_the_stamp_is_where_it_is_asked_for_and_nothing_else_changes(
    folder: Path, fetched: Path
) -> None:
    processor = SmolAVProcessor(folder)
    plain = stamps.picture_items(processor, stamped=False)
    stamped = stamps.picture_items(processor, stamped=True)
    assert len(plain) == 3 * sum(map(len, stamps.STAMPS.values()))
    studio = stamps.StampStudio(folder, fetched)
    for before, after in list(zip(plain, stamped, strict=True))[::17]:
        assert before.question == after.question
        assert before.medium.picture is not None and after.medium.picture is not None
        (thing,) = set(after.medium.picture.things) - set(before.medium.picture.things)
        assert thing.place in after.question.text
        assert thing.name.startswith(f"{after.answer} ")
        changed = (
            (studio.pixels(before.medium.picture) != studio.pixels(after.medium.picture))
            .any(0)
            .nonzero()
        )
        assert len(changed)
        centre = changed.new_tensor([round(thing.y), round(thing.x)])
        assert int((changed - centre).abs().max()) <= thing.radius + 2


def test_the_command_prints_a_row_for_each_kind(
    folder: Path,
    fetched: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = {"dog": stamps.STAMPS["dog"]}
    monkeypatch.setattr(stamps, "STAMPS", few)
    monkeypatch.setattr(stamps, "SPOKEN_STAMPS", {"dog": stamps.SPOKEN_STAMPS["dog"]})
    monkeypatch.setattr(stamps, "fetch", lambda _: fetched)
    assert stamps.main(["--folder", str(folder)]) == 0
    rows = capsys.readouterr().out.splitlines()[-4:]
    assert [row.split("|")[2].strip() for row in rows] == ["3"] * 4
    assert [row.split("|")[1].strip() for row in rows][0] == "stamps"


def test_a_missing_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stamps.main(["--folder", str(tmp_path)]) == 2
    assert "run `make smolav`" in capsys.readouterr().err


def test_commands_that_are_not_there_or_fail_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(packages.SetUpError, match=r"^sh -c .* failed: the last line$"):
        packages.run(["sh", "-c", "echo first >&2; echo the last line >&2; exit 3"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(packages.SetUpError, match="needs Debian"):
        packages.unpack_debian(["fortunes"], tmp_path / "work")
    with pytest.raises(packages.SetUpError, match=r"npm is not there.*Node\.js"):
        packages.run(["npm", "pack"])


def test_measuring_draws_from_the_evaluation_split_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = set()

    def record(split: str, *names: object) -> random.Random:
        splits.add(split)
        return stream(split, *names)

    monkeypatch.setattr(stamps, "stream", record)
    processor = SmolAVProcessor(folder)
    assert stamps.picture_items(processor, stamped=True) and stamps.sound_items(processor)
    assert splits == {"evaluation"}
