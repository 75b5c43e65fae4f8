"""Let transformers process videos where torchvision cannot be used.

transformers' processors of Qwen-VL, Qwen-Omni and others have a part for videos, which asks for
torchvision even where there is no video. PyPI's wheel of torchvision is made for one build of
torch, and cannot be imported beside another. Of all of torchvision that part calls six functions on
tensors; they are here, in torch alone, and give the same bits. Nothing else of transformers sees
them: `is_torchvision_available` stays false, and pictures go through Pillow as before.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from compressed_tensors.utils import patch_attr
from torch import Tensor

_MODULE = "torchvision.transforms.v2.functional"


class InterpolationMode(Enum):
    """How pixels are interpolated, by the names of torchvision."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def resize(
    image: Tensor,
    size: Sequence[int],
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    antialias: bool | None = True,
) -> Tensor:
    """Return pictures of another size, [..., channels, height, width].

    Args:
        image: pictures, uint8 or floating.
        size: height and width.
        interpolation: how pixels are interpolated.
        antialias: whether more than the nearest pixels count when pictures shrink.
    """
    mode = interpolation.value
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    flat = image.reshape(-1, *image.shape[-3:])
    smooth = mode in ("bilinear", "bicubic")
    native = mode == "bicubic" or "AVX2" in torch.backends.cpu.get_cpu_capability()
    whole = image.dtype == torch.uint8 and smooth and not (native and image.device.type == "cpu")
    options: dict[str, Any] = {"align_corners": False, "antialias": antialias} if smooth else {}
    resized = torch.nn.functional.interpolate(
        flat.float() if whole else flat, size=tuple(size), mode=mode, **options
    )
    if whole:
        resized = resized.clamp(0, 255).round().to(torch.uint8)
    return resized.reshape(*image.shape[:-2], *size)


def normalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (image - mean) / std, by channel."""
    shift = torch.as_tensor(mean, dtype=image.dtype, device=image.device)[:, None, None]
    scale = torch.as_tensor(std, dtype=image.dtype, device=image.device)[:, None, None]
    return image.sub(shift).div_(scale)


def pad(
    image: Tensor, padding: Sequence[int], fill: float | None = 0, padding_mode: str = "constant"
) -> Tensor:
    """Return pictures with a border: left, top, right, bottom."""
    left, top, right, bottom = padding
    value = (0 if fill is None else fill) if padding_mode == "constant" else None
    mode = "replicate" if padding_mode == "edge" else padding_mode
    return torch.nn.functional.pad(image, (left, right, top, bottom), mode=mode, value=value)


def crop(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Return a part of pictures; what lies outside of them is 0."""
    bottom, right = top + height, left + width
    inside = image[..., max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    rows, columns = image.shape[-2:]
    border = (max(-left, 0), max(-top, 0), max(right - columns, 0), max(bottom - rows, 0))
    return pad(inside, border) if any(border) else inside


def grayscale_to_rgb(image: Tensor) -> Tensor:
    """Return pictures of three channels."""
    return image.expand(*image.shape[:-3], 3, -1, -1) if image.shape[-3] == 1 else image


def pil_to_tensor(picture: Any) -> Tensor:
    """Return a picture of Pillow as uint8 [channels, height, width]."""
    import numpy

    values = torch.from_numpy(numpy.array(picture, copy=True))
    return values[None] if values.dim() == 2 else values.permute(2, 0, 1)


FUNCTIONS = (resize, normalize, pad, crop, grayscale_to_rgb, pil_to_tensor)


@contextmanager
def videos_without_torchvision() -> Iterator[None]:
    """Let processors be loaded with their part for videos, while the block runs.

    What is loaded goes on working after it. Does nothing where torchvision is there.
    """
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        yield
        return
    import transformers
    from transformers.models.auto import video_processing_auto as auto

    from tamp_modifier.upstream.check import require
    from tamp_modifier.upstream.names import VIDEOS

    require(VIDEOS)
    base = _base_class()
    reader = SimpleNamespace(from_pretrained=_load)
    with (
        patch_attr(transformers, "BaseVideoProcessor", base),
        patch_attr(auto, "AutoVideoProcessor", reader),
    ):
        yield


def _base_class() -> type:
    """Return transformers' class of video processors, which now finds our functions."""
    from transformers import image_processing_backends, image_utils, video_processing_utils

    functions = _functions()
    for module in (image_processing_backends, video_processing_utils):
        module.tvF = functions  # type: ignore[attr-defined]
    modes = {
        getattr(image_utils.PILImageResampling, mode.name): mode
        for mode in InterpolationMode
        if mode is not InterpolationMode.NEAREST_EXACT
    }
    image_processing_backends.pil_torch_interpolation_mapping = modes
    image_processing_backends.torch_pil_interpolation_mapping = {m: p for p, m in modes.items()}
    return video_processing_utils.BaseVideoProcessor


def _functions() -> ModuleType:
    module = ModuleType(_MODULE)
    for function in FUNCTIONS:
        setattr(module, function.__name__, function)
    module.InterpolationMode = InterpolationMode  # type: ignore[attr-defined]
    return module


def _load(model: str, **options: Any) -> Any:
    """Return the video processor of a model, as ``AutoVideoProcessor.from_pretrained`` does.

    Raises:
        ValueError: transformers has no class of its name.
    """
    from transformers.models.auto.video_processing_auto import get_video_processor_config

    config = get_video_processor_config(model) or {}
    name = config.get("video_processor_type") or config.get("image_processor_type", "")
    name = name.removesuffix("Fast").replace("ImageProcessor", "VideoProcessor")
    return _class_of(name).from_pretrained(model, **options)


def _class_of(name: str) -> Any:
    import transformers

    folder = Path(transformers.__file__).parent / "models"
    for path in sorted(folder.glob("*/video_processing_*.py")):
        if f"class {name}(" in path.read_text(encoding="utf-8"):
            with _visible():
                module = importlib.import_module(
                    f"transformers.models.{path.parent.name}.{path.stem}"
                )
            if not hasattr(module, "tvF"):
                module.tvF = _functions()  # type: ignore[attr-defined]
            return getattr(module, name)
    raise ValueError(f"transformers has no video processor {name!r}")


@contextmanager
def _visible() -> Iterator[None]:
    """Let a module import our functions under the name of torchvision's, while the block runs."""
    functions = _functions()
    parts = _MODULE.split(".")
    modules = {".".join(parts[:end]): ModuleType(parts[end - 1]) for end in range(1, len(parts))}
    modules[_MODULE] = functions
    for name, module in modules.items():
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(modules[parent], own, module)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
