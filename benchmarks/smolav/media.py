"""Turn descriptions of pictures, videos and sounds into the tensors that SmolAV reads."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.smolav.pictures import Drawer, Picture, Video, read_emoji
from benchmarks.smolav.sounds import RATE, SECONDS, Sound, Speaker

SPLITS = ("train", "calibration", "evaluation")


def stream(split: str, *names: object) -> random.Random:
    """Return the random numbers of one sample: no two splits, kinds or indices share any.

    Args:
        split: A word of `SPLITS`.
        names: What the numbers are for, such as "picture", seed and index.

    Raises:
        ValueError: An unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    return random.Random("/".join(["smolav", split, *map(str, names)]))


@dataclass(frozen=True)
class Medium:
    """What a question is about: any of the three, or nothing."""

    picture: Picture | None = None
    video: Video | None = None
    sound: Sound | None = None


class Studio:
    """Draw and speak.

    Args:
        folder: The folder that `make smolav` makes, with ``emoji/``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def drawer(self) -> Drawer:
        """Draw pictures and videos."""
        return Drawer(read_emoji(self._folder / "emoji"))

    @cached_property
    def speaker(self) -> Speaker:
        """Make sounds."""
        return Speaker()

    @cached_property
    def _extractor(self) -> object:
        from transformers import WhisperFeatureExtractor

        return WhisperFeatureExtractor(chunk_length=int(SECONDS))

    def pixels(self, medium: Picture | Video) -> Tensor:
        """float32 [3, 96, 96] or [4, 3, 96, 96], in [-1, 1]."""
        if isinstance(medium, Picture):
            values = self.drawer.picture(medium)[None]
            return normalised(values)[0]
        return normalised(self.drawer.video(medium))

    def spectrogram(self, sound: Sound) -> Tensor:
        """Log-mel float32 [80, 400]."""
        samples = self.speaker.sound(sound)
        features = self._extractor(samples, sampling_rate=RATE, return_tensors="pt")  # type: ignore[operator]
        return features.input_features[0]

    def inputs(self, medium: Medium) -> dict[str, Tensor]:
        """Model inputs of one medium, each with a batch dimension of one."""
        inputs = {}
        if medium.picture is not None:
            inputs["pixel_values"] = self.pixels(medium.picture)[None]
        if medium.video is not None:
            inputs["pixel_values_videos"] = self.pixels(medium.video)[None]
        if medium.sound is not None:
            inputs["input_features"] = self.spectrogram(medium.sound)[None]
        return inputs


def normalised(pixels: np.ndarray) -> Tensor:
    """uint8 [n, H, W, 3] -> float32 [n, 3, H, W] in [-1, 1]."""
    return torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
