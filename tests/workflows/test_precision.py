"""Where a type is emulated a model computes in fp32, and is saved in its own type all the same."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from loguru import logger
from safetensors.torch import load_file

import tamp_modifier
from tamp_modifier.report import PruningReport
from tamp_modifier.workflows import precision
from tamp_modifier.workflows.models import load_config, load_model, load_to_run
from tamp_modifier.workflows.precision import compute_faster, emulates, restore_types, types_of
from tests.data.files import asked
from tests.data.folders import write_model

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
    """Whether the processor is taken to multiply bfloat16."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: request.param)
    return bool(request.param)


def load(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = load_model(str(folder), load_config(str(folder)))
    return model


def test_what_is_emulated(native: bool) -> None:
    assert [emulates(dtype) for dtype in (BF16, FP16, FP32)] == [not native, True, False]
    assert not emulates(FP16, torch.device("cuda"))


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


def test_every_type_comes_back_and_zeros_stay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, dtype=BF16), torch.nn.LayerNorm(8))
    model.register_buffer("scale", torch.ones(3, dtype=FP16))
    types = types_of(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.float()
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    model.register_buffer("new", torch.zeros(2))
    restore_types(model, types)
    assert types_of(model) == types | {"new": FP32}
    assert not model[0].weight[:, ::2].any()
    assert torch.equal(model[0].weight[:, 1::2], before["0.weight"][:, 1::2])


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
    call = importlib.import_module("tamp_modifier.workflows.prune")  # its name is a function's, too
    run = call._run

    def watch(model: torch.nn.Module, *rest: object) -> None:
        seen.append(next(model.parameters()).dtype)
        run(model, *rest)

    monkeypatch.setattr(call, "_run", watch)
    both = [
        tamp_modifier.TAMPModifier(sparsity=0.5),
        QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]),
    ]
    tamp_modifier.prune(folder, data=ROWS, recipe=both)
    tamp_modifier.prune(folder, data=ROWS, recipe=[tamp_modifier.TAMPModifier(sparsity=0.5)])
    assert seen == [BF16, BF16 if native else FP32]
