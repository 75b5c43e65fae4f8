"""Every W8A8 and W4A16 scheme that the plugin takes over answers as the scheme does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tamp_modifier.checkpoint.marker import CONFIG_KEY
from tamp_modifier.checkpoint.pack import pack_checkpoint
from tamp_modifier.checkpoint.served import activations
from tests.serving import models
from tests.serving.conftest import FORCED, TEXTS
from tests.serving.harness import run_jobs
from tests.serving.int4 import lacks_kernel, vllm_has_int4
from tests.serving.test_answers import assert_same

INT8: dict[str, dict[str, Any]] = {
    "int8-asymmetric": {"symmetric": False},
    "int8-static-tensor": {"static": True, "symmetric": False, "strategy": "tensor"},
}
INT4: dict[str, dict[str, Any]] = {
    "int4-32": {},
    "int4-64-asymmetric": {"size": 64, "symmetric": False, "actorder": "weight"},
    "int4-channel": {"size": -1},
}


def methods(answer: dict[str, Any]) -> set[str]:
    assert "error" not in answer, answer["error"]
    return {method for method, _ in answer["linears"].values()}


@pytest.fixture(scope="module")
def folders(work: Path) -> dict[str, Path]:
    """Checkpoints of a Llama; those that end in ``-dense`` have the weights of INT4 in bf16."""
    llama = models.llama(work / "for-quantized")
    found = {name: models.int8(llama, work / name, **how) for name, how in INT8.items()}
    for name, how in INT4.items():
        found[name] = models.int4(llama, work / name, **how)
        found[f"{name}-dense"] = models.dequantized(found[name], work / f"{name}-dense")
    pack_checkpoint(found["int8-asymmetric"], work / "int8-asymmetric-packed")
    found["int8-asymmetric-packed"] = work / "int8-asymmetric-packed"
    return found


Answers = dict[str, dict[str, Any]]


def answers(
    folders: dict[str, Path], work: Path, names: list[str], environ: dict[str, str], **how: Any
) -> Answers:
    jobs = [{"model": str(folders[name]), "prompts": TEXTS} for name in names]
    folder = work / "-".join(["quantized", *environ.values(), *map(str, how.values())])
    return dict(zip(names, run_jobs(jobs, folder, environ=environ, **how), strict=True))


@pytest.fixture(scope="module")
def ours(folders: dict[str, Path], work: Path) -> Answers:
    """With sparse kernels."""
    names = [name for name in folders if not name.endswith("-dense")]
    return answers(folders, work, names, FORCED)


@pytest.fixture(scope="module")
def stock(folders: dict[str, Path], work: Path) -> Answers:
    """Of stock vLLM, for INT4 with the same weights in bf16."""
    names = [*INT8, *(f"{name}-dense" for name in INT4)]
    return answers(folders, work, names, {}, plugin=False)


@pytest.mark.parametrize("name", INT8)
def test_int8_answers_as_the_stock_scheme(name: str, ours: Answers, stock: Answers) -> None:
    assert methods(ours[name]) == {"SparseInt8LinearMethod"}
    assert_same(ours[name], stock[name])


def test_packed_int8_is_the_same_in_memory(ours: Answers) -> None:
    packed, dense = ours["int8-asymmetric-packed"], ours["int8-asymmetric"]
    assert packed["linears"] == dense["linears"] and packed["outputs"] == dense["outputs"]


@pytest.mark.parametrize("name", INT4)
def test_int4_answers_as_its_weights_in_bf16(name: str, ours: Answers, stock: Answers) -> None:
    assert methods(ours[name]) == {"SparseInt4LinearMethod"}
    assert_same(ours[name], stock[f"{name}-dense"])


# -- what is chosen, forced, and refused -----------------------------------------------------------


def test_dense_weights_can_be_forced(folders: dict[str, Path], stock: Answers, work: Path) -> None:
    name = "int8-asymmetric-packed"
    found = answers(folders, work, [name], {"TAMP_SERVE": "dense"})
    assert methods(found[name]) == {"CompressedTensorsLinearMethod"}
    assert_same(found[name], stock["int8-asymmetric"])


def test_int4_goes_back_to_the_stock_kernel_if_there_is_one(
    folders: dict[str, Path], stock: Answers, work: Path
) -> None:
    jobs = [{"model": str(folders["int4-64-asymmetric"]), "prompts": TEXTS}]
    (found,) = run_jobs(jobs, work / "int4-dense", environ={"TAMP_SERVE": "dense"})
    if vllm_has_int4():
        assert methods(found) == {"CompressedTensorsLinearMethod"}
        assert_same(found, stock["int4-64-asymmetric-dense"])
    else:
        assert lacks_kernel(found)


def test_fp8_is_served_dense_and_the_log_says_why(checkpoints: dict[str, Path], work: Path) -> None:
    found = answers(checkpoints, work, ["fp8-packed"], {"TAMP_SERVE": "auto"})
    assert methods(found["fp8-packed"]) == {"CompressedTensorsLinearMethod"}
    assert "served dense, 8: FP8 has no sparse kernel" in log_of(work / "quantized-auto")


def test_int8_inputs_of_int4_are_asked_for_and_told(
    folders: dict[str, Path], ours: Answers, work: Path
) -> None:
    marked = shutil.copytree(folders["int4-32"], work / "int4-marked")
    models.edit_config(marked, lambda config: config[CONFIG_KEY].update(activations="int8"))
    jobs = [{"model": str(marked), "prompts": TEXTS}]
    (found,) = run_jobs(jobs, work / "int8-inputs", environ=FORCED)
    assert methods(found) == {"SparseInt4LinearMethod"}
    assert "are rounded to INT8" in log_of(work / "int8-inputs")
    expected = ours["int4-32"]["outputs"]
    assert found["outputs"] != expected
    for mine, other in zip(found["outputs"], expected, strict=True):  # rounded, not wrong
        assert mine["logprobs"][0] == pytest.approx(other["logprobs"][0], abs=0.5)


def test_the_environment_goes_before_config_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAMP_INT4_ACTIVATIONS", raising=False)
    assert [activations(value) for value in (None, "int8")] == ["scheme", "int8"]
    monkeypatch.setenv("TAMP_INT4_ACTIVATIONS", "scheme")
    assert activations("int8") == "scheme"
    monkeypatch.setenv("TAMP_INT4_ACTIVATIONS", "fp8")
    message = "TAMP_INT4_ACTIVATIONS is 'fp8', allowed are scheme, int8"
    with pytest.raises(ValueError, match=message):
        activations(None)


def log_of(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def _scheme(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        groups = config["quantization_config"]["config_groups"]
        groups["group_0"]["weights"].update(changes)

    return change


def test_a_wrong_mode_is_refused(folders: dict[str, Path], work: Path) -> None:
    found = answers(folders, work, ["int4-32"], {"TAMP_SERVE": "fast"})
    assert "TAMP_SERVE is 'fast', allowed are auto, sparse, dense" in found["int4-32"]["error"]


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    # name: (what is done to config.json, part of the message)
    "marker": (
        lambda config: config[CONFIG_KEY].update(activations=8),
        "activations is 8, allowed are scheme, int8",
    ),
    "order": (_scheme(actorder="group"), "activation ordering (actorder="),
}


def test_bad_settings_in_config_json_are_refused_by_name(
    folders: dict[str, Path], work: Path
) -> None:
    jobs = []
    for name, (edit, _) in REFUSED.items():
        folder = shutil.copytree(folders["int4-32"], work / f"bad-{name}")
        models.edit_config(folder, edit)
        jobs.append({"model": str(folder), "prompts": TEXTS})
    found = run_jobs(jobs, work / "bad-settings")
    for (_, message), answer in zip(REFUSED.values(), found, strict=True):
        assert message in answer.get("error", "the engine started")
