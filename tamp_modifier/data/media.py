"""Decodes pictures, videos and sounds. Videos and sounds need PyAV (``pip install av``)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tamp_modifier.data.conversations import SUFFIXES, DataError


@dataclass(frozen=True, eq=False)
class Video:
    """Some frames of a video.

    Attributes:
        frames: uint8 [frames, height, width, 3].
        indices: which frames of the file they are.
        total: frames in the file.
        fps: frames a second in the file.
    """

    frames: np.ndarray
    indices: list[int]
    total: int
    fps: float


def load_picture(path: Path, name: str) -> Any:
    """Decode a picture as RGB (a ``PIL.Image.Image``).

    Raises:
        DataError: the file is empty or no picture can be decoded from it.
    """
    from PIL import Image

    _refuse_empty(path, name, "picture")
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: the picture {path} cannot be decoded: {_one(error)}") from None


def load_video(path: Path, name: str, frames: int) -> Video:
    """Decode some frames of a video, evenly spread, or of a folder that has them as pictures.

    Args:
        path: a video file, or a folder of pictures, whose sorted names give their order.
        name: the sample, for messages.
        frames: how many; all where the video has fewer.

    Raises:
        DataError: no frame can be decoded, or the pictures of the folder differ in size.
        ImportError: PyAV is needed and missing.
    """
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES["image"])
        if not files:
            raise DataError(f"{name}: the video {path} is a folder without pictures")
        indices = _spread(len(files), frames)
        pictures = [np.asarray(load_picture(files[index], name)) for index in indices]
        sizes = {picture.shape for picture in pictures}
        if len(sizes) > 1:
            raise DataError(f"{name}: the frames of the video {path} differ in size")
        return Video(np.stack(pictures), indices, len(files), 1.0)
    _refuse_empty(path, name, "video")
    av = _pyav("videos")
    try:
        with av.open(str(path)) as container:
            # Counted from the packets: many files do not tell, and no frame need be decoded for it.
            total = sum(1 for packet in container.demux(video=0) if packet.size)
            fps = float(container.streams.video[0].average_rate or 1.0)
        indices = _spread(total, frames)
        wanted = set(indices)
        with av.open(str(path)) as container:
            decoded = [
                frame.to_ndarray(format="rgb24")
                for index, frame in enumerate(container.decode(video=0))
                if index in wanted
            ]
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise DataError(f"{name}: the video {path} cannot be decoded: {_one(error)}") from None
    if not decoded or len(decoded) != len(indices):
        raise DataError(f"{name}: the video {path} cannot be decoded to its end")
    return Video(np.stack(decoded), indices, total, fps)


def load_audio(path: Path, name: str, rate: int) -> np.ndarray:
    """Decode a sound file to one channel.

    Args:
        path: the file.
        name: the sample, for messages.
        rate: samples a second of the result.

    Returns:
        float32 [samples], in -1 to 1.

    Raises:
        DataError: no sound can be decoded.
        ImportError: PyAV is missing.
    """
    _refuse_empty(path, name, "audio")
    av = _pyav("sounds")
    pieces = []
    try:
        with av.open(str(path)) as container:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
            for frame in container.decode(audio=0):
                pieces += [out.to_ndarray()[0] for out in resampler.resample(frame)]
            pieces += [out.to_ndarray()[0] for out in resampler.resample(None)]
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise DataError(f"{name}: the audio {path} cannot be decoded: {_one(error)}") from None
    sound = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if not sound.size:
        raise DataError(f"{name}: the audio {path} has no sound in it")
    return sound.astype(np.float32)


def _spread(total: int, wanted: int) -> list[int]:
    """Return indices evenly spread over all frames, first and last included where more than one."""
    if total <= wanted:
        return list(range(total))
    return [int(index) for index in np.linspace(0, total - 1, wanted).round()]


def _refuse_empty(path: Path, name: str, what: str) -> None:
    if path.stat().st_size == 0:
        raise DataError(f"{name}: the {what} {path} is an empty file")


def _pyav(what: str) -> Any:
    try:
        import av
    except ImportError:
        raise ImportError(f'{what} need PyAV: pip install "tamp-modifier[compress]"') from None
    return av


def _one(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
