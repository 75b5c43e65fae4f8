"""Does SmolAV know things that others have drawn, and words that a person says?

    python -m benchmarks.smolav.stamps

Tux Paint's stamps are photographs and drawings of things, some with a recording of their name. The
model has seen none of them: it learnt from Noto emoji and from a synthesiser. Each stamp takes the
place of the emoji of its word in three pictures of the evaluation's kind, and each recording the
place of the spoken word in three clips. The same pictures with the emoji, and the same clips with
espeak-ng's voice, show what the change costs.

The stamps come from the Debian package `tuxpaint-stamps-default` (161 MB, GPL-2.0), which is
fetched once into runs/smolav/stamps; nothing is installed or distributed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.packages import SetUpError, unpack_debian
from benchmarks.smolav.data import FOLDER, EvaluationItem, Score, SmolAVProcessor, evaluate, load
from benchmarks.smolav.media import Medium, Studio, stream
from benchmarks.smolav.pictures import Drawer, Picture, read_emoji, sample_picture
from benchmarks.smolav.questions import ANSWERS, Question
from benchmarks.smolav.sounds import RATE, Sound, Speaker, sample_sound

PACKAGE = "tuxpaint-stamps-default"
STAMPS_FOLDER = "usr/share/tuxpaint/stamps"

STAMPS = {
    "dog": ("animals/mammals/dogs/dog",),
    "cat": ("seasonal/halloween/blackcat",),
    "horse": ("animals/mammals/equines/horse",),
    "cow": ("animals/mammals/bovines/cow", "animals/mammals/bovines/cow_white"),
    "pig": ("animals/mammals/pig", "animals/mammals/pig_golden"),
    "frog": ("animals/amphibians/frog", "animals/amphibians/frog-1"),
    "bear": ("animals/mammals/bears/bear", "animals/mammals/bears/european-bear"),
    "tiger": ("animals/mammals/cats/tiger", "animals/mammals/cats/tiger_sumatran"),
    "rabbit": ("animals/mammals/rodents/rabbit", "animals/mammals/rodents/rabbit-2"),
    "chicken": ("animals/birds/chicken_profile",),
    "fish": ("animals/fish/stripedfish",),
    "owl": ("animals/birds/owl",),
    "apple": ("food/fruit/apple_red", "food/fruit/apple_green", "food/fruit/cartoon/apple"),
    "banana": ("food/fruit/banana", "food/fruit/cartoon/banana"),
    "lemon": ("food/fruit/lemon", "food/fruit/cartoon/lemon"),
    "carrot": ("food/vegetables/carrot",),
    "corn": ("food/vegetables/corn",),
    "pizza": ("food/pizza",),
    "bus": ("vehicles/masstransit/green_korean_bus",),
    "truck": ("vehicles/auto/truck",),
    "tree": ("plants/trees/tree336", "seasonal/christmas/tree"),
    "rose": ("plants/flowers/rose",),
    "mushroom": ("food/vegetables/mushroom",),
    "flower": ("plants/flowers/flower1", "plants/flowers/flower2"),
    "key": ("household/key",),
    "clock": ("symbols/clockface",),
    "guitar": ("hobbies/music/string/guitar_classical", "hobbies/music/string/guitar_electric"),
    "drum": ("hobbies/music/percussion/drum_tomtom_floor",),
    "scissors": ("household/arttools/scissors_small_open",),
}
"""Word -> PNG stamps of one such thing, without their suffix."""

SPOKEN_STAMPS = {
    "dog": "animals/mammals/dogs/dog",
    "horse": "animals/mammals/equines/horse",
    "cow": "animals/mammals/bovines/cow",
    "pig": "animals/mammals/pig",
    "frog": "animals/amphibians/frog",
    "bear": "animals/mammals/bears/bear",
    "tiger": "animals/mammals/cats/tiger",
    "rabbit": "animals/mammals/rodents/rabbit",
    "owl": "animals/birds/owl",
}
"""Word -> stamp whose name is recorded, as "A dog."."""

PER_STAMP = 3
"""Pictures with each stamp, and clips with each recording."""


def fetch(folder: Path) -> Path:
    """Put the chosen stamps and recordings into ``folder/stamps``, if they are not there.

    Raises:
        SetUpError: The package cannot be fetched, or lacks a file.
    """
    wanted = {
        f"{word} {number}.png": f"{stem}.png"
        for word, stems in STAMPS.items()
        for number, stem in enumerate(stems)
    } | {f"{word}.ogg": f"{stem}_desc.ogg" for word, stem in SPOKEN_STAMPS.items()}
    target, partial = folder / "stamps", folder / "stamps.partial"
    if all((target / name).is_file() for name in wanted):
        return target
    print(f"fetching the Debian package {PACKAGE}", flush=True)
    work = folder / "debian"
    try:
        source = unpack_debian([PACKAGE], work) / STAMPS_FOLDER
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, path in wanted.items():
            if not (source / path).is_file():
                raise SetUpError(f"{PACKAGE} has no {path}")
            shutil.copyfile(source / path, partial / name)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
    return target


def square(picture: Image.Image) -> Image.Image:
    """RGBA, cut to what is visible and padded to a square, as emoji are."""
    picture = picture.convert("RGBA")
    picture = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
    side = max(picture.size)
    padded = Image.new("RGBA", (side, side))
    padded.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return padded


def read_recording(path: Path) -> np.ndarray:
    """Return samples of a recording: float32 at 16 kHz, peak 1, silence at both ends cut off."""
    import av

    chunks = []
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("flt", "mono", RATE)
        for frame in container.decode(audio=0):
            chunks += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        chunks += [part.to_ndarray()[0] for part in resampler.resample(None)]
    samples = np.concatenate(chunks)
    peak = np.abs(samples).max()
    loud = np.flatnonzero(np.abs(samples) > 0.02 * peak)
    return (samples[loud[0] : loud[-1] + 1] / peak).astype(np.float32)


class Recordings(Speaker):
    """Plays recordings of words in place of espeak-ng.

    Args:
        words: Samples by word, as `read_recording` gives them.
    """

    def __init__(self, words: Mapping[str, np.ndarray]) -> None:
        self._words = words

    def say(self, word: str, voice: int, speed: int, pitch: float) -> np.ndarray:
        """Return the recording of a word; voice, speed and pitch are those of who said it."""
        return self._words[word]


class StampStudio(Studio):
    """Draw stamps, called by their word and a number, among the emoji; say recorded words.

    Args:
        folder: The folder that `make smolav` makes.
        stamps: What `fetch` made.
    """

    def __init__(self, folder: Path, stamps: Path) -> None:
        super().__init__(folder)
        self._stamps = stamps

    @cached_property
    def drawer(self) -> Drawer:
        """Draw pictures of emoji and stamps."""
        stamps = {path.stem: square(Image.open(path)) for path in self._stamps.glob("*.png")}
        return Drawer(read_emoji(self._folder / "emoji") | stamps)

    @cached_property
    def speaker(self) -> Speaker:
        """Say recorded words."""
        return Recordings({p.stem: read_recording(p) for p in self._stamps.glob("*.ogg")})


def picture_items(processor: SmolAVProcessor, stamped: bool) -> list[EvaluationItem]:
    """One question about each stamp in each of its pictures, or about the emoji in its place."""
    items: list[EvaluationItem] = []
    for word, stems in STAMPS.items():
        for name in (f"{word} {number}" for number in range(len(stems))):
            for index in range(PER_STAMP):
                picture = sample_picture(stream("evaluation", "stamps", name, index), word)
                (thing,) = (thing for thing in picture.things if thing.name == word)
                question = Question("what", f"What is at the {thing.place}?", word)
                if stamped:
                    things = (replace(t, name=name) if t is thing else t for t in picture.things)
                    picture = Picture(tuple(things), picture.ground)
                items.append(EvaluationItem(question, Medium(picture), len(items), processor))
    return items


def sound_items(processor: SmolAVProcessor) -> list[EvaluationItem]:
    """One question about each word in each of its clips."""
    items: list[EvaluationItem] = []
    for word in SPOKEN_STAMPS:
        for index in range(PER_STAMP):
            rng = stream("evaluation", "stamps", "said", word, index)
            said = sample_sound(rng, word).event("word")
            assert said is not None
            event = replace(said, start=rng.uniform(0.1, 1.5))
            sound = Sound((event,), rng.choice((0.0, 0.001, 0.004)), rng.getrandbits(32))
            question = Question("word", "Which word is said?", word)
            items.append(EvaluationItem(question, Medium(sound=sound), len(items), processor))
    return items


def measure(model: Any, folder: Path, stamps: Path) -> dict[str, list[Score]]:
    """Scores on stamps and recordings, and on what they stand in for.

    Args:
        model: SmolAV, pruned or not.
        folder: What `make smolav` made.
        stamps: What `fetch` made.
    """
    plain, held_out = SmolAVProcessor(folder), SmolAVProcessor(folder)
    held_out.studio = StampStudio(folder, stamps)
    return {
        "stamps": evaluate(model, picture_items(held_out, stamped=True)),
        "emoji in their places": evaluate(model, picture_items(plain, stamped=False)),
        "recorded words": evaluate(model, sound_items(held_out)),
        "the same from espeak-ng": evaluate(model, sound_items(plain)),
    }


def markdown(found: Mapping[str, Sequence[Score]]) -> str:
    """Return the table."""
    lines = [
        "| | questions | exact | among the names | chance | NLL |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, scores in found.items():
        count = len(scores)
        exact = sum(score.correct for score in scores) / count
        choice = sum(score.choice for score in scores) / count
        nll = sum(score.nll for score in scores) / count
        chance = 1 / len(ANSWERS[scores[0].task])
        lines.append(
            f"| {name} | {count} | {exact:.1%} | {choice:.1%} | {chance:.1%} | {nll:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Fetch what is missing, measures and prints."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.smolav.stamps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="what `make smolav` made")
    folder = parser.parse_args(arguments).folder
    try:
        model, _ = load(folder)
        print(markdown(measure(model, folder, fetch(folder))))
    except (ValueError, OSError, SetUpError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
