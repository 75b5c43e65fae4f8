"""Load a model and its processor, with one clear error where that fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tamp_modifier.checkpoint.completeness import lacking
from tamp_modifier.transformers_plugin import register as register_with_transformers
from tamp_modifier.workflows.precision import CPU, compute_faster


def load_config(model: str) -> Any:
    """Return the config of a model; of an Omni model, that of the part that reads and writes text.

    Talker and vocoder of an Omni model only speak. The model is then its thinker, which
    transformers loads from the same folder and saves alone.

    Args:
        model: a folder, or a name on the hub.

    Raises:
        FileNotFoundError: the folder does not exist or holds no model.
        ValueError: its config cannot be read.
    """
    from transformers import AutoConfig

    folder = Path(model)
    if folder.exists() and not (folder / "config.json").is_file():
        raise FileNotFoundError(2, "there is no config.json, so no model, in it", model)
    if not folder.exists() and (model.count("/") != 1 or model.startswith((".", "/", "~"))):
        raise FileNotFoundError(2, "no such folder", model)
    try:
        config = AutoConfig.from_pretrained(model)
    except json.JSONDecodeError as error:
        raise ValueError(f"{model}: config.json is not JSON: {error}") from None
    except Exception as error:  # transformers raises many kinds
        raise ValueError(f"{model}: its config cannot be loaded: {_one(error)}") from None
    return getattr(config, "thinker_config", None) or config


def load_processor(model: str) -> Any:
    """Return the processor of a model, or the tokenizer where it only reads.

    Raises:
        ValueError: there is none that can be loaded.
    """
    from transformers import AutoProcessor

    from tamp_modifier.upstream.videos import videos_without_torchvision

    try:
        with videos_without_torchvision():
            return AutoProcessor.from_pretrained(model)
    except Exception as error:  # transformers raises many kinds
        raise ValueError(
            f"{model}: its processor or tokenizer cannot be loaded: {_one(error)}"
        ) from None


def load_model(model: str, config: Any, dtype: str | torch.dtype = "auto") -> Any:
    """Return the model in evaluation mode, on the CPU.

    Args:
        model: a folder, packed ones too, or a name on the hub.
        config: from `load_config`.
        dtype: type of the weights; "auto" takes the type that they are stored in.

    Raises:
        ValueError: the weights cannot be loaded, or some are missing.
    """
    register_with_transformers()
    try:
        found, info = model_class(config).from_pretrained(
            model, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # transformers and safetensors raise many kinds
        raise ValueError(f"{model}: the model cannot be loaded: {_one(error)}") from None
    if info["missing_keys"]:
        raise ValueError(lacking(model, type(found), info["missing_keys"]))
    return found.eval()


def load_to_run(
    model: str, config: Any, dtype: str | torch.dtype = "auto", device: torch.device = CPU
) -> Any:
    """Return `load_model` for a model that only runs: with "auto" in fp32 where that is faster.

    Args:
        model: as in `load_model`.
        config: as in `load_model`.
        dtype: as in `load_model`.
        device: where it will run; it is returned on the CPU.

    Raises:
        ValueError: as in `load_model`.
    """
    found = load_model(model, config, dtype)
    if dtype == "auto":
        compute_faster(found, device)
    return found


def model_class(config: Any) -> Any:
    """Return class that a config names, or the one that transformers has for this kind of config.

    Raises:
        ValueError: none is found.
    """
    import transformers

    for name in getattr(config, "architectures", None) or []:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    for auto in (transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM):
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise ValueError(f"transformers has no language model for {type(config).__name__}")


def empty_model(config: Any) -> nn.Module:
    """Return the model without its weights, on the meta device."""
    with torch.device("meta"):
        return model_class(config)(config)


def _one(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
