"""A checkpoint without some of its parameters is refused wherever it is relied on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from tamp_modifier.checkpoint.completeness import missing_parameters
from tamp_modifier.checkpoint.files import read_header
from tamp_modifier.checkpoint.pack import pack_checkpoint
from tamp_modifier.cli import main
from tamp_modifier.demo.evaluation import load_model as load_demo_model
from tamp_modifier.demo.processing import build_tokenizer
from tamp_modifier.workflows.models import load_config, load_model

SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FILE = "model.safetensors"


def llama(folder: Path, **fields: Any) -> Path:
    model = LlamaForCausalLM(LlamaConfig(**SIZES | fields)).bfloat16()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[:, ::2] = 0
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def mixtral(folder: Path) -> Path:
    config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    MixtralForCausalLM(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def rename(folder: Path, old: str, new: str) -> Path:
    tensors = load_file(folder / FILE)
    found = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    assert found.keys() != tensors.keys()
    save_file(found, folder / FILE, {"format": "pt"})
    return folder


def missing(folder: Path, cls: Any) -> list[str]:
    return missing_parameters(cls, AutoConfig.from_pretrained(folder), read_header([folder / FILE]))


def test_a_whole_checkpoint_lacks_nothing(tmp_path: Path) -> None:
    assert missing(llama(tmp_path / "llama"), LlamaForCausalLM) == []
    assert missing(mixtral(tmp_path / "mixtral"), MixtralForCausalLM) == []
    tied = llama(tmp_path / "tied", tie_word_embeddings=True)
    assert missing(tied, LlamaForCausalLM) == []
    demo = load_demo_model()
    demo.save_pretrained(tmp_path / "demo")
    assert missing(tmp_path / "demo", type(demo)) == []


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.float8_e4m3fn])
def test_the_first_tensor_may_hold_codes(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = llama(tmp_path / "llama", tie_word_embeddings=True)
    header = {"codes": (torch.Size([4, 4]), dtype)} | read_header([folder / FILE])
    assert missing_parameters(LlamaForCausalLM, AutoConfig.from_pretrained(folder), header) == []


def test_bars_of_the_load_stay_off_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = llama(tmp_path / "llama")
    load = LlamaForCausalLM.from_pretrained

    def loud(*args: Any, **kwargs: Any) -> Any:
        print("Compressing model: 100%", file=sys.stderr)
        return load(*args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", loud)
    capsys.readouterr()
    assert missing(folder, LlamaForCausalLM) == []
    assert "Compressing" not in capsys.readouterr().err


def test_a_renamed_parameter_is_named(tmp_path: Path) -> None:
    folder = rename(llama(tmp_path / "llama"), "layers.1.mlp.gate_proj", "layers.1.mlp.door_proj")
    assert missing(folder, LlamaForCausalLM) == ["model.layers.1.mlp.gate_proj.weight"]


def test_experts_under_other_names_are_named(tmp_path: Path) -> None:
    folder = rename(mixtral(tmp_path / "m"), "block_sparse_moe.experts", "mlp.linear_experts")
    assert [name for name in missing(folder, MixtralForCausalLM) if "layers.0" in name] == [
        "model.layers.0.mlp.experts.down_proj",
        "model.layers.0.mlp.experts.gate_up_proj",
    ]


def test_inspect_and_eval_refuse_experts_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = rename(mixtral(tmp_path / "m"), "block_sparse_moe.experts", "mlp.linear_experts")
    assert main(["inspect", str(folder)]) == 1
    assert "lacks 4 parameters of MixtralForCausalLM" in capsys.readouterr().err
    with pytest.raises(ValueError, match="random numbers: model.layers.0.mlp.experts.down_proj"):
        load_model(str(folder), load_config(str(folder)))


def test_a_packed_checkpoint_that_lacks_a_parameter_is_refused(tmp_path: Path) -> None:
    folder = rename(llama(tmp_path / "llama"), "layers.0.mlp.gate_proj", "layers.0.mlp.door_proj")
    pack_checkpoint(folder, tmp_path / "packed")
    with pytest.raises(ValueError, match=r"random numbers: model.layers.0.mlp.gate_proj.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
