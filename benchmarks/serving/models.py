"""The models of the benchmark, dense and pruned by magnitude, as checkpoints with a marker."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tamp_modifier.checkpoint.marker import CONFIG_KEY, config_marker
from tamp_modifier.demo.evaluation import MODEL_FOLDER
from tamp_modifier.masks import wanda_mask

SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}

GROUP = 128
"""Weights of a row that share a scale in 4 bits."""


def magnitude_prune(weight: Tensor, sparsity: float) -> Tensor:
    """Set the smallest weights of a matrix to zero."""
    rank = max(1, int(sparsity * weight.numel()))
    threshold = weight.abs().float().flatten().kthvalue(rank).values
    return torch.where(weight.abs() > threshold, weight, torch.zeros_like(weight))


def write_random(
    folder: Path,
    sparsity: float,
    *,
    shape: Mapping[str, int] = SHAPE,
    structure: str = "0:0",
    bits: int = 16,
) -> None:
    """Write a Llama with random weights; the marker in config.json if it is pruned.

    Args:
        folder: where it goes.
        sparsity: share of the Linears' weights that is zero.
        shape: fields of the config.
        structure: "0:0" or "N:M".
        bits: of a stored weight: 16 is bfloat16, 8 is W8A8, 4 is W4A16 in groups of `GROUP`.
    """
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    kv = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    linears = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "model.embed_tokens.weight": torch.randn(shape["vocab_size"], hidden, generator=generator),
        "model.norm.weight": torch.ones(hidden),
    }
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, size in linears.items():
            weight = torch.randn(size, generator=generator) * 0.02
            if sparsity and structure != "0:0":
                weight *= wanda_mask(weight, torch.ones(size[1]), sparsity, structure)
            elif sparsity:
                weight = magnitude_prune(weight, sparsity)
            stored = store(weight, bits)
            tensors |= {f"{prefix}{name}.{part}": tensor for part, tensor in stored.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = dict(shape) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    if bits != 16:
        config["quantization_config"] = quantization_config(bits)
    write_config(folder, config, sparsity)


def store(weight: Tensor, bits: int) -> dict[str, Tensor]:
    """Tensors of one Linear as compressed-tensors stores them, zeros staying zeros.

    Args:
        weight: fp32 [out, in].
        bits: as in `write_random`.

    Returns:
        Name below the Linear -> tensor: one in bfloat16; or values in int8 or packed 4-bit codes,
        with symmetric scales of rows or groups.
    """
    if bits == 16:
        return {"weight": weight.bfloat16()}
    rows, columns = weight.shape
    group = columns if bits == 8 else GROUP
    grouped = weight.view(rows, columns // group, group)
    limit = 2 ** (bits - 1) - 1
    scale = grouped.abs().amax(-1, keepdim=True).clamp_min(1e-8) / limit
    values = (grouped / scale).round().to(torch.int8).view(rows, columns)
    scale = scale.view(rows, -1).bfloat16()
    if bits == 8:
        return {"weight": values, "weight_scale": scale}
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    return {
        "weight_packed": pack_to_int32(values, 4),
        "weight_scale": scale,
        "weight_shape": torch.tensor([rows, columns]),
    }


def quantization_config(bits: int) -> dict[str, Any]:
    """Entry in config.json of what `store` writes with 8 or 4 bits."""
    integers = {"num_bits": bits, "type": "int", "symmetric": True}
    if bits == 8:
        rounded = {"weights": integers | {"strategy": "channel", "dynamic": False}}
        rounded["input_activations"] = integers | {"strategy": "token", "dynamic": True}
    else:
        rounded = {"weights": integers | {"strategy": "group", "group_size": GROUP}}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if bits == 8 else "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], **rounded}},
    }


def write_box(folder: Path, sparsity: float) -> None:
    """Write the demo model with the Linears of its language model pruned by magnitude."""
    shutil.copytree(MODEL_FOLDER, folder)
    file = folder / "model.safetensors"
    with safe_open(file, framework="pt") as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if sparsity and "language_model" in name and "_proj." in name:
            tensors[name] = magnitude_prune(tensor, sparsity)
    save_file(tensors, file, {"format": "pt"})
    write_config(folder, json.loads((folder / "config.json").read_text()), sparsity)


def write_config(folder: Path, config: dict[str, Any], sparsity: float) -> None:
    """Write config.json, with the marker for a pruned model."""
    if sparsity:
        config[CONFIG_KEY] = config_marker("dense")
    (folder / "config.json").write_text(json.dumps(config, indent=2))


MODELS = {
    "350m": (write_random, "random Llama, 347 M parameters, tied embeddings"),
    "box": (
        write_box,
        "demo model, language model of 5 M parameters (fits the cache: no limit by memory)",
    ),
}
"""By name: what writes the model to ``(folder, sparsity)``, and its description."""
