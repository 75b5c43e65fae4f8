"""Where a type is emulated a model computes in fp32, and is saved in its own type all the same."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loguru import logger
from safetensors.torch import load_file

import tamp_modifier
from tamp_modifier.demo.tiny import tiny_model
from tamp_modifier.report import PruningReport
from tamp_modifier.workflows import precision
from tamp_modifier.workflows.models import load_config, load_model, load_to_run
from tamp_modifier.workflows.precision import compute_faster, emulates, restore_types, types_of
from tests.data.files import asked
from tests.data.folders import write_model
from tests.upstream.test_experts import gpt_oss, qwen3_moe

PRUNE = importlib.import_module("tamp_modifier.workflows.prune")  # its name is a function's, too
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ROWS = [asked(question=f"what is {number} plus 4 ?", answer="7") for number in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama in bfloat16."""
    folder = write_model("llama", tmp_path_factory.mktemp("model") / "llama")
    name = str(folder)
    load_model(name, load_config(name), BF16).save_pretrained(folder)
    return folder


@pytest.fixture(params=[False, True], ids=["emulated", "native"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the processor is taken to multiply bfloat16, here and on a machine with a GPU."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: request.param)
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(PRUNE, "calibration_device", lambda: torch.device("cpu"))
    return bool(request.param)


def load(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = load_model(str(folder), load_config(str(folder)))
    return model


def test_what_is_emulated(native: bool) -> None:
    assert [emulates(dtype) for dtype in (BF16, FP16, FP32)] == [not native, True, False]
    assert not emulates(FP16, torch.device("cuda"))


def test_other_processors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.platform, "machine", lambda: "aarch64")
    assert not emulates(BF16) and not emulates(FP16)


def test_only_a_model_whose_type_is_emulated_is_converted(folder: Path, native: bool) -> None:
    model = load(folder)
    assert compute_faster(model) is not native
    assert {p.dtype for p in model.parameters()} == {BF16 if native else FP32}
    name, config = str(folder), load_config(str(folder))
    assert load_to_run(name, config).dtype == (BF16 if native else FP32)
    assert load_to_run(name, config, "bfloat16").dtype == BF16  # as was asked for
    assert load_to_run(name, config, "auto", torch.device("cuda")).dtype == BF16


def test_a_quantized_model_stays_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    model = load(folder)
    model.config.quantization_config = {"quant_method": "compressed-tensors"}
    assert not compute_faster(model) and {p.dtype for p in model.parameters()} == {BF16}


def test_too_little_memory_is_said_and_nothing_is_converted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    model = load(folder)
    more = 2 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(precision, "free_memory", lambda: int(precision.SPARE * more) - 1)
    told: list[str] = []
    sink = logger.add(told.append, format="{message}")
    try:
        assert not compute_faster(model)
    finally:
        logger.remove(sink)
    assert len(told) == 1 and "this processor emulates bfloat16, which is slow" in told[0]
    assert {p.dtype for p in model.parameters()} == {BF16}
    monkeypatch.setattr(precision, "free_memory", lambda: int(precision.SPARE * more) + 1)
    assert compute_faster(model)


def test_every_type_comes_back_and_zeros_stay(folder: Path) -> None:
    model: Any = load(folder)
    model.register_buffer("scale", torch.ones(3, dtype=FP16))
    model.model.norm.float()  # as where a file has norms in fp32
    types = types_of(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.float()
    linear = model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        linear.weight[:, ::2] = 0
    model.register_buffer("buffer", torch.zeros(2))
    model.register_parameter("parameter", torch.nn.Parameter(torch.zeros(2)))
    restore_types(model, types)
    assert types_of(model).tensors == types.tensors | {"buffer": FP32, "parameter": BF16}
    assert model.dtype == model.config.dtype == BF16
    assert not linear.weight[:, ::2].any()
    assert torch.equal(linear.weight[:, 1::2], before["model.layers.0.mlp.up_proj.weight"][:, 1::2])


def test_every_config_names_its_type_again(native: bool) -> None:
    model, _ = tiny_model("llava_next")
    model.bfloat16()
    model.config.dtype, model.config.text_config.dtype = BF16, None
    model.config.vision_config.dtype = FP32
    types = types_of(model)
    assert compute_faster(model) is not native
    if not native:
        assert model.config.text_config.dtype == model.config.dtype == FP32
        restore_types(model, types)
    assert types_of(model) == types
    assert [model.config.text_config.dtype, model.config.vision_config.dtype] == [None, FP32]


@pytest.mark.parametrize("make", [qwen3_moe, gpt_oss])
def test_experts_are_pruned_in_fp32_and_saved_in_their_type(
    make: Callable[[], Any], tmp_path: Path, native: bool
) -> None:
    folder = write_model("llama", tmp_path / "model")  # for its tokenizer
    model = make()
    model.resize_token_embeddings(load_config(str(folder)).vocab_size)
    model.bfloat16().save_pretrained(folder)
    done = tamp_modifier.prune(folder, data=ROWS, preset="best", output=tmp_path / "out")
    dense, saved = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "out"))
    types = {name: weight.dtype for name, weight in dense.items()}
    assert {name: weight.dtype for name, weight in saved.items()} == types
    assert any("experts" in name for name in done.report.linears)
    assert load_config(str(tmp_path / "out")).dtype == done.model.dtype == BF16


def test_pruning_saves_the_type_of_the_file(folder: Path, tmp_path: Path, native: bool) -> None:
    out = tmp_path / "out"
    done = tamp_modifier.prune(folder, data=ROWS, sparsity=0.5, preset="best", output=out)
    saved = load_file(out / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {BF16}
    assert {p.dtype for p in done.model.parameters()} == {BF16}
    assert load_config(str(out)).dtype == BF16
    report = PruningReport.load(out / "tamp_report.json")
    weights = [saved[f"{name}.weight"] for name in report.linears]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert zeros == pytest.approx(0.5, abs=0.01)


def test_a_recipe_that_quantizes_computes_in_the_type_of_the_file(
    folder: Path, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    seen: list[torch.dtype] = []
    run = PRUNE._run

    def watch(model: torch.nn.Module, *rest: object) -> None:
        seen.append(next(model.parameters()).dtype)
        run(model, *rest)

    monkeypatch.setattr(PRUNE, "_run", watch)
    both = [
        tamp_modifier.TAMPModifier(sparsity=0.5),
        QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]),
    ]
    tamp_modifier.prune(folder, data=ROWS, recipe=both)
    tamp_modifier.prune(folder, data=ROWS, recipe=[tamp_modifier.TAMPModifier(sparsity=0.5)])
    assert seen == [BF16, BF16 if native else FP32]
