"""Whether a checkpoint has every parameter that its architecture reads.

transformers fills what it does not find with random numbers and goes on. So before a checkpoint is
relied on, transformers is asked to load it on the meta device, from the names and shapes in the
headers of the files: it renames and merges as for a real load, and no weight is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from typing import Any

import torch

from tamp_modifier.checkpoint.files import Header
from tamp_modifier.checkpoint.marker import INNER_KEY, QUANT_METHOD
from tamp_modifier.messages import some


def require_complete(cls: Any, config: Any, header: Header, folder: str | os.PathLike[str]) -> None:
    """Refuse a checkpoint that lacks parameters of its model.

    Args:
        cls: class of the model.
        config: its config; it is not changed.
        header: of the dense form of the checkpoint, which has no packed weights.
        folder: for the message.

    Raises:
        ValueError: names the parameters that transformers would fill with random numbers.
    """
    missing = missing_parameters(cls, config, header)
    if missing:
        raise ValueError(lacking(folder, cls, missing))


def require_complete_folder(folder: str | os.PathLike[str], header: Header) -> None:
    """`require_complete` for the class that the folder's config.json names.

    Nothing is checked where transformers, or accelerate by which it makes a model without weights,
    is not installed (vLLM brings only the first), nor where the architecture is not known.

    Raises:
        ValueError: see `require_complete`.
    """
    try:
        import transformers
    except ModuleNotFoundError:
        return
    if find_spec("accelerate") is None:
        return
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except Exception:  # a config of its own code, or none at all
        return
    for name in getattr(config, "architectures", None) or []:
        cls = getattr(transformers, name, None)
        if cls is not None:
            require_complete(cls, config, header, folder)
            return


def lacking(folder: str | os.PathLike[str], cls: type, missing: Iterable[str]) -> str:
    """Return the message about parameters that a checkpoint lacks."""
    names = sorted(missing)
    return (
        f"{folder} lacks {len(names)} parameters of {cls.__name__}, which transformers would fill "
        f"with random numbers: {some(names)}"
    )


def missing_parameters(cls: Any, config: Any, header: Header) -> list[str]:
    """Parameters of a model that a checkpoint with these tensors leaves unfilled, sorted.

    Raises:
        ValueError: transformers cannot load such tensors at all, says why; or one has another
            shape than the model's, which it names.
    """
    from transformers.utils import logging

    state = {
        name: torch.empty(shape, dtype=dtype, device="meta")
        for name, (shape, dtype) in header.items()
    }
    with _silence(logging):
        try:
            _, info = cls.from_pretrained(
                None,
                config=_without_packing(config),
                state_dict=state,
                device_map="meta",
                dtype=_model_dtype(header),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except Exception as error:  # transformers raises many kinds
            raise ValueError(
                f"{cls.__name__} cannot load these tensors: {' '.join(str(error).split())}"
            ) from error
    for name, stored, expected in sorted(info["mismatched_keys"]):
        raise ValueError(
            f"{name}: the checkpoint has shape {tuple(stored)}, the model of config.json "
            f"{tuple(expected)}"
        )
    return sorted(info["missing_keys"])


def _model_dtype(header: Header) -> torch.dtype:
    """Return a dtype that a model can have: the first tensors may be codes of quantized weights."""
    dtypes = [dtype for _, dtype in header.values()]
    return next((d for d in dtypes if d.is_floating_point and d.itemsize > 1), torch.float32)


def _without_packing(config: Any) -> Any:
    """Return a copy of a config as it is for the dense form of a packed checkpoint."""
    fields = config.to_dict()
    quantization = fields.get("quantization_config") or {}
    if quantization.get("quant_method") == QUANT_METHOD:
        inner = quantization.get(INNER_KEY)
        fields.pop("quantization_config")
        fields |= {"quantization_config": inner} if inner else {}
    return type(config).from_dict(fields)


@contextmanager
def _silence(logging: Any) -> Iterator[None]:
    """Keep reports and bars of a load that is only asked about off the screen."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # compressed-tensors draws bars of its own
            yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
