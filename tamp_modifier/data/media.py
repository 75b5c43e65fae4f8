"""Decode pictures, videos and sounds, up to a size. Videos and sounds need PyAV."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tamp_modifier.data.base import SUFFIXES, DataError

MAX_PIXELS = 100_000_000
"""Most pixels of a picture, and of all frames together that are taken from a video."""

MAX_SECONDS = 7200
"""Most seconds of a sound."""

Source = Any
"""What a medium is decoded from: a path, or the bytes of the file."""


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


def load_picture(source: Source, name: str) -> Any:
    """Decode a picture as RGB (a ``PIL.Image.Image``).

    Args:
        source: a file, its bytes, or a ``PIL.Image.Image``.
        name: the sample, for messages.

    Raises:
        DataError: the file is empty, no picture can be decoded from it, or it has too many pixels.
    """
    from PIL import Image

    _refuse_empty(source, name, "picture")
    what = f"{name}: the picture {_label(source)}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
            own = hasattr(source, "getbands")  # the caller's, who closes it
            opened = contextlib.nullcontext(source) if own else Image.open(_stream(source))
        with opened as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"{what} cannot be decoded: {width} x {height} pixels are more than the "
                    f"{MAX_PIXELS:,} allowed"
                )
            return picture.convert("RGB")
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{what} cannot be decoded: {_one(error)}") from None


def load_video(source: Source, name: str, frames: int) -> Video:
    """Decode some frames of a video, evenly spread, or of a folder that has them as pictures.

    Args:
        source: a video file or its bytes, or a folder of pictures, whose sorted names give their
            order.
        name: the sample, for messages.
        frames: how many; all where the video has fewer.

    Raises:
        DataError: no frame can be decoded, the frames are too large, or the pictures of the folder
            differ in size.
        ImportError: PyAV is needed and missing.
    """
    if isinstance(source, Path) and source.is_dir():
        return _video_of_folder(source, name, frames)
    _refuse_empty(source, name, "video")
    av = _pyav("videos")
    what = f"{name}: the video {_label(source)}"
    try:
        with av.open(_stream(source)) as container:
            # Counted from the packets: many files do not tell, and no frame need be decoded for it.
            total = sum(1 for packet in container.demux(video=0) if packet.size)
            stream = container.streams.video[0]
            fps = float(stream.average_rate or 1.0)
            pixels = stream.width * stream.height
        indices = _spread(total, frames)
        if pixels * len(indices) > MAX_PIXELS:
            raise DataError(
                f"{what} cannot be decoded: {len(indices)} frames of {pixels:,} pixels are more "
                f"than the {MAX_PIXELS:,} allowed; take fewer frames"
            )
        wanted = set(indices)
        with av.open(_stream(source)) as container:
            decoded = [
                frame.to_ndarray(format="rgb24")
                for index, frame in enumerate(container.decode(video=0))
                if index in wanted
            ]
    except DataError:
        raise
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise DataError(f"{what} cannot be decoded: {_one(error)}") from None
    if not decoded or len(decoded) != len(indices):
        raise DataError(f"{what} cannot be decoded to its end")
    return Video(np.stack(decoded), indices, total, fps)


def _video_of_folder(folder: Path, name: str, frames: int) -> Video:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES["image"])
    if not files:
        raise DataError(f"{name}: the video {folder} is a folder without pictures")
    indices = _spread(len(files), frames)
    pictures = [np.asarray(load_picture(files[index], name)) for index in indices]
    if len({picture.shape for picture in pictures}) > 1:
        raise DataError(f"{name}: the frames of the video {folder} differ in size")
    return Video(np.stack(pictures), indices, len(files), 1.0)


def load_audio(source: Source, name: str, rate: int) -> np.ndarray:
    """Decode a sound file to one channel.

    Args:
        source: the file or its bytes.
        name: the sample, for messages.
        rate: samples a second of the result.

    Returns:
        float32 [samples], in -1 to 1.

    Raises:
        DataError: no sound can be decoded, or it is too long.
        ImportError: PyAV is missing.
    """
    _refuse_empty(source, name, "audio")
    av = _pyav("sounds")
    what = f"{name}: the audio {_label(source)}"
    pieces: list[np.ndarray] = []
    samples = 0
    try:
        with av.open(_stream(source)) as container:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
            for frame in container.decode(audio=0):
                pieces += [out.to_ndarray()[0] for out in resampler.resample(frame)]
                samples += frame.samples
                if samples > MAX_SECONDS * frame.sample_rate:
                    raise DataError(
                        f"{what} cannot be decoded: it is longer than the {MAX_SECONDS} s allowed"
                    )
            pieces += [out.to_ndarray()[0] for out in resampler.resample(None)]
    except DataError:
        raise
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise DataError(f"{what} cannot be decoded: {_one(error)}") from None
    sound = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if not sound.size:
        raise DataError(f"{what} has no sound in it")
    return sound.astype(np.float32)


def _spread(total: int, wanted: int) -> list[int]:
    """Return indices evenly spread over all frames, first and last included where more than one."""
    if total <= wanted:
        return list(range(total))
    return [int(index) for index in np.linspace(0, total - 1, wanted).round()]


def _stream(source: Source) -> Any:
    """Return what PIL and PyAV open."""
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def _label(source: Source) -> str:
    return str(source) if isinstance(source, Path) else "in the row"


def _refuse_empty(source: Source, name: str, what: str) -> None:
    if isinstance(source, Path) and source.stat().st_size == 0:
        raise DataError(f"{name}: the {what} {source} is an empty file")


def _pyav(what: str) -> Any:
    try:
        import av
    except ImportError:
        raise ImportError(f'{what} need PyAV: pip install "tamp-modifier[compress]"') from None
    return av


def _one(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
