"""Small models for the serving tests, built on the fly: pruned by magnitude, saved, quantized."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tamp_modifier.checkpoint.marker import CONFIG_KEY, config_marker
from tamp_modifier.demo.evaluation import MODEL_FOLDER
from tamp_modifier.demo.processing import build_processor, build_tokenizer

WEIGHTS = "model.safetensors"
SPARSITIES = (0.5, 0.6, 0.7)


def text_config(**changes: Any) -> dict[str, Any]:
    """Fields of a small Llama."""
    tokenizer = build_tokenizer()
    fields = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,  # the default of 0.02 gives flat distributions: ties everywhere
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    return fields | changes


def prune(model: nn.Module, skip: Iterable[str] = ("lm_head", "vision", "projector")) -> None:
    """Prune every Linear by magnitude, to sparsities that differ from Linear to Linear."""
    linears = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in skip)
    ]
    for index, (_, module) in enumerate(linears):
        weight = module.weight.data
        rank = int(SPARSITIES[index % len(SPARSITIES)] * weight.numel())
        weight[weight.abs() <= weight.abs().float().flatten().kthvalue(rank).values] = 0


def save(model: nn.Module, folder: Path, mark_it: bool = True) -> Path:
    """Save model and tokenizer (or processor) as a user would have them."""
    model.to(torch.bfloat16).save_pretrained(folder)
    multimodal = hasattr(model.config, "vision_config")
    (build_processor() if multimodal else build_tokenizer()).save_pretrained(folder)
    if mark_it:
        mark(folder)
    return folder


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the dict in a folder's config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config, indent=2))


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder with one file."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Replace the tensors of a folder."""
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def mark(folder: Path) -> None:
    """Write the marker of a dense-with-zeros checkpoint."""
    tensors = read(folder)
    linears = {
        name.removesuffix(".weight"): int(tensor.float().count_nonzero())
        for name, tensor in tensors.items()
        if tensor.dim() == 2 and (tensor == 0).float().mean() > 0.2
    }
    marker = config_marker("dense", linears) | {"tensors": len(tensors)}
    edit_config(folder, lambda config: config.update({CONFIG_KEY: marker}))


def llama(folder: Path, **changes: Any) -> Path:
    """A Llama with fused qkv and gate_up in vLLM, grouped-query attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**text_config(**changes)))
    prune(model)
    return save(model, folder)


def qwen(folder: Path) -> Path:
    """A Qwen2: biases on q, k and v, tied embeddings, odd sizes."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    fields = text_config(intermediate_size=300, tie_word_embeddings=True)
    model = Qwen2ForCausalLM(Qwen2Config(**fields))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    prune(model)
    return save(model, folder)


def box(folder: Path) -> Path:
    """The demo model, a LLaVA, pruned by magnitude as far as it still answers."""
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(MODEL_FOLDER)
    prune(model)
    return save(model, folder)


MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    # name: (class in transformers without "ForCausalLM" and "Config", fields)
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2Moe",
        {"num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96},
    ),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, "head_dim": 32, "moe_intermediate_size": 64}),
    "gpt_oss": (
        "GptOss",
        {"num_local_experts": 4, "head_dim": 32, "intermediate_size": 128},
    ),
}


def mixture(
    folder: Path, family: str, sparsities: tuple[float, ...] = SPARSITIES, **changes: Any
) -> Path:
    """A pruned mixture of experts; the experts have `sparsities` in turn."""
    import transformers

    name, fields = MIXTURES[family]
    fields = text_config(**({"num_experts_per_tok": 2} | fields | changes))
    config = getattr(transformers, f"{name}Config")(**fields)
    torch.manual_seed(2)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    prune(model, skip=("lm_head", "gate", "router"))
    index = 0
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
        elif ".experts." in key:  # fused, [experts, ...]
            magnitude = parameter.data.abs().float()
            rank = int(sparsities[index % len(sparsities)] * magnitude.numel())
            if rank:
                parameter.data[magnitude <= magnitude.flatten().kthvalue(rank).values] = 0
            index += 1
    save(model, folder, mark_it=False)
    marker = config_marker("dense")  # as TAMPModifier writes it: judged by the zeros
    edit_config(folder, lambda config: config.update({CONFIG_KEY: marker}))
    return folder


def adapter(source: Path, folder: Path, seed: int, rank: int = 8) -> Path:
    """A LoRA adapter, as peft saves it, for every listed Linear of a Llama."""
    marker = json.loads((source / "config.json").read_text())[CONFIG_KEY]
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in read(source).items():
        module = name.removesuffix(".weight")
        if module in marker["linears"]:
            rows, columns = tensor.shape
            prefix = f"base_model.model.{module}"
            a = torch.randn(rank, columns, generator=generator)
            tensors[f"{prefix}.lora_A.weight"] = 0.1 * a
            tensors[f"{prefix}.lora_B.weight"] = 0.3 * torch.randn(rows, rank, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    targets = sorted({name.rpartition(".")[2] for name in marker["linears"]})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank}
    config |= {"bias": "none", "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


# -- quantized and sparse, as llm-compressor writes it --------------------------------------------


def _arguments(bits: int, kind: str, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True} | more


def _quantize(
    source: Path,
    folder: Path,
    fmt: str,
    group: dict[str, Any],
    convert: Callable[[str, Tensor], dict[str, Tensor]],
) -> Path:
    """Copy a pruned checkpoint with its Linears quantized by `convert`."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name != WEIGHTS:
            (folder / path.name).write_bytes(path.read_bytes())
    marker = json.loads((source / "config.json").read_text())[CONFIG_KEY]
    tensors: dict[str, Tensor] = {}
    for name, tensor in read(source).items():
        module = name.removesuffix(".weight")
        if module in marker["linears"]:
            tensors |= convert(module, tensor.float())
        else:
            tensors[name] = tensor
    write(folder, tensors)
    linears = {
        name: int(tensors[f"{name}.weight"].float().count_nonzero())
        for name in marker["linears"]
        if f"{name}.weight" in tensors
    }
    marker = config_marker("dense", linears or None) | {"tensors": len(tensors)}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": fmt,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], **group}},
    }
    change = {"quantization_config": quantization, CONFIG_KEY: marker}
    edit_config(folder, lambda config: config.update(change))
    return folder


def _scale(weight: Tensor, limit: float) -> Tensor:
    return weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-8) / limit


def fp8(source: Path, folder: Path, strategy: str = "channel") -> Path:
    """FP8 weights per channel or tensor, activations per token.

    "repeated" has the scale of the tensor for every channel: the numbers of "tensor" in the form of
    "channel", which stock vLLM serves on CPU while it does not serve "tensor".
    """

    def convert(module: str, weight: Tensor) -> dict[str, Tensor]:
        scale = _scale(weight, 448.0)
        if strategy == "tensor":
            scale = scale.max().reshape(1)
        elif strategy == "repeated":
            scale = scale.max().expand_as(scale)
        quantized = (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {f"{module}.weight": quantized, f"{module}.weight_scale": scale.float()}

    group = {
        "weights": _arguments(8, "float", strategy.replace("repeated", "channel"), dynamic=False),
        "input_activations": _arguments(8, "float", "token", dynamic=True),
    }
    return _quantize(source, folder, "float-quantized", group, convert)


def int8(
    source: Path,
    folder: Path,
    strategy: str = "channel",
    static: bool = False,
    symmetric: bool = True,
) -> Path:
    """INT8 weights per channel or tensor; activations per token, or static per tensor."""

    def convert(module: str, weight: Tensor) -> dict[str, Tensor]:
        scale = _scale(weight, 127.0)
        if strategy == "tensor":
            scale = scale.max().reshape(1)
        quantized = (weight / scale).round().clamp(-127, 127).to(torch.int8)
        tensors = {f"{module}.weight": quantized, f"{module}.weight_scale": scale.float()}
        if static:
            tensors[f"{module}.input_scale"] = torch.tensor([0.05])
        if static and not symmetric:
            tensors[f"{module}.input_zero_point"] = torch.tensor([7], dtype=torch.int8)
        return tensors

    inputs = _arguments(8, "int", "tensor" if static else "token", dynamic=not static)
    group = {
        "weights": _arguments(8, "int", strategy, dynamic=False),
        "input_activations": inputs | {"symmetric": symmetric},
    }
    return _quantize(source, folder, "int-quantized", group, convert)


def int4(source: Path, folder: Path, size: int = 32, symmetric: bool = True, **more: Any) -> Path:
    """INT4 weights in groups, 16-bit activations.

    Scales are powers of two, so that bf16 holds the weights exactly: see `dequantized`.

    Args:
        source: the checkpoint with 16-bit weights.
        folder: where the quantized one goes.
        size: columns of a group; -1 for one scale a row.
        symmetric: the groups have no zero points.
        more: fields of the weights in config.json.
    """

    def convert(module: str, weight: Tensor) -> dict[str, Tensor]:
        rows, columns = weight.shape
        grouped = weight.reshape(rows, -1, columns if size == -1 else size)
        if symmetric:
            zeros, span = torch.full(grouped.shape[:2], 8.0), grouped.abs().amax(-1) / 7
        else:
            least = grouped.amin(-1).clamp_max(0)
            span = (grouped.amax(-1) - least) / 15
        scale = torch.exp2(span.clamp_min(1e-8).log2().ceil())
        if not symmetric:
            zeros = (-least / scale).round()
        codes = (grouped / scale.unsqueeze(-1)).round() + zeros.unsqueeze(-1)
        codes = codes.clamp(0, 15).to(torch.int8).reshape(rows, columns)
        tensors = {
            f"{module}.weight_packed": pack_to_int32(codes - 8, 4),
            f"{module}.weight_scale": scale.bfloat16(),
            f"{module}.weight_shape": torch.tensor([rows, columns]),
        }
        if not symmetric:
            points = pack_to_int32(zeros.to(torch.int8) - 8, 4, packed_dim=0)
            tensors[f"{module}.weight_zero_point"] = points
        return tensors

    strategy = {"strategy": "channel"} if size == -1 else {"strategy": "group", "group_size": size}
    group = {
        "weights": _arguments(4, "int", dynamic=False, **strategy)
        | {"symmetric": symmetric}
        | more,
        "input_activations": None,
    }
    return _quantize(source, folder, "pack-quantized", group, convert)


def dequantized(source: Path, folder: Path) -> Path:
    """The bf16 checkpoint with the weights of one that `int4` made."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name != WEIGHTS:
            (folder / path.name).write_bytes(path.read_bytes())
    edit_config(folder, lambda config: [config.pop(k) for k in ("quantization_config", CONFIG_KEY)])
    tensors = read(source)
    for packed in [name for name in tensors if name.endswith(".weight_packed")]:
        module = packed.removesuffix(".weight_packed")
        words, scale, shape = (
            tensors.pop(f"{module}.weight_{part}") for part in ("packed", "scale", "shape")
        )
        points = tensors.pop(f"{module}.weight_zero_point", None)
        codes = unpack_from_int32(words, 4, torch.Size(shape.tolist()))
        size = shape[1] // scale.shape[1]
        if points is not None:
            rows = torch.Size([int(shape[0]), scale.shape[1]])
            zeros = unpack_from_int32(points, 4, rows, packed_dim=0)
            codes = codes - zeros.repeat_interleave(size, 1)
        weight = codes.float() * scale.float().repeat_interleave(size, 1)
        assert torch.equal(weight.bfloat16().float(), weight)
        tensors[f"{module}.weight"] = weight.bfloat16()
    write(folder, tensors)
    return folder
