"""The models of the benchmark, dense and pruned by magnitude, as checkpoints with a marker."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tamp_modifier.checkpoint.marker import CONFIG_KEY, config_marker
from tamp_modifier.demo.evaluation import MODEL_FOLDER

SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}


def magnitude_prune(weight: Tensor, sparsity: float) -> Tensor:
    """Set the smallest weights of a matrix to zero."""
    rank = max(1, int(sparsity * weight.numel()))
    threshold = weight.abs().float().flatten().kthvalue(rank).values
    return torch.where(weight.abs() > threshold, weight, torch.zeros_like(weight))


def write_random(folder: Path, sparsity: float) -> None:
    """Write a Llama with random weights; the marker in config.json if it is pruned."""
    hidden, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    kv = hidden // SHAPE["num_attention_heads"] * SHAPE["num_key_value_heads"]
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
        "model.embed_tokens.weight": torch.randn(SHAPE["vocab_size"], hidden, generator=generator),
        "model.norm.weight": torch.ones(hidden),
    }
    for layer in range(SHAPE["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, shape in linears.items():
            weight = torch.randn(shape, generator=generator) * 0.02
            if sparsity:
                weight = magnitude_prune(weight, sparsity)
            tensors[f"{prefix}{name}.weight"] = weight.bfloat16()
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = torch.ones(hidden)
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.bfloat16() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    config = SHAPE | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    write_config(folder, config, sparsity)


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
    "350m": (write_random, "random Llama, 348 M parameters, tied embeddings"),
    "box": (
        write_box,
        "model in the box, language model of 5 M parameters (fits the cache: no limit by memory)",
    ),
}
"""By name: what writes the model to ``(folder, sparsity)``, and its description."""
