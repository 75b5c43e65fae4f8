"""Writes small pictures, videos, sounds and conversations, and models with a processor."""

from __future__ import annotations

import json
import math
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(path: Path, size: tuple[int, int] = (40, 30), colour: int = 0) -> Path:
    """A picture of one colour with a bright corner."""
    image = Image.new("RGB", size, (colour % 256, 90, 160))
    image.paste((255, 255, 255), (0, 0, 8, 8))
    image.save(path)
    return path


def video(path: Path, frames: int = 12, size: tuple[int, int] = (64, 48)) -> Path:
    """A video whose frame number i is grey with brightness 20 * i."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def sound(path: Path, seconds: float = 0.5, rate: int = 8000, hertz: float = 440.0) -> Path:
    """A sine of amplitude 0.5."""
    times = np.arange(int(seconds * rate)) / rate
    samples = (0.5 * 32767 * np.sin(2 * math.pi * hertz * times)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def asked(
    *media: tuple[str, str], question: str = "what animal is there ?", answer: str = "cat"
) -> Any:
    """A row of one question with media (kind, path) and its answer."""
    content: list[Any] = [{"type": kind, "path": path} for kind, path in media]
    content.append({"type": "text", "text": question})
    return {
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer},
        ]
    }


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """Writes rows; those that are text go in as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path
