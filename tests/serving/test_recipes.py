"""Recipe to server: what llm-compressor writes with our quantized recipes, vLLM serves sparse."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from devtools.vllm_process import ROOT
from tamp_modifier.checkpoint.pack import pack_checkpoint
from tamp_modifier.demo.evaluation import evaluation_samples
from tamp_modifier.demo.pictures import draw
from tamp_modifier.demo.questions import PICTURE_TASKS, TEXT_TASKS
from tests.serving.conftest import FORCED
from tests.serving.harness import run_jobs

COMPRESS_PYTHON = ROOT / ".venv" / "bin" / "python"
METHODS = {
    "best_2of4_fp8": "SparseFp8LinearMethod",
    "best_50_int8": "SparseInt8LinearMethod",
    "best_60_int8": "SparseInt8LinearMethod",
    "best_50_w4a16": "SparseInt4LinearMethod",
}
"""How the plugin serves the Linears of the decoder, by recipe."""
PACKED = ("best_50_int8", "best_50_w4a16")
"""Recipes whose checkpoint is served from `tamp pack` as well."""
RIGHT = 0.9
"""Share of right answers: the dense model has 0.98, the pruned and quantized ones 0.95 to 0.98."""


@pytest.fixture(scope="module")
def served_recipes(work: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What vLLM makes of each recipe's checkpoint, and the right answers."""
    assert COMPRESS_PYTHON.exists(), "make venv makes the environment that the recipes run in"
    recipes = [str(ROOT / "recipes" / f"{name}.yaml") for name in METHODS]
    command = [str(COMPRESS_PYTHON), "-m", "tests.serving.compress", str(work / "recipes")]
    done = subprocess.run(
        [*command, *recipes],
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    prompts: list[Any] = []
    answers: list[str] = []
    for task in PICTURE_TASKS + TEXT_TASKS:
        for sample in evaluation_samples(task, 2):
            question = sample.question.question
            answers.append(sample.question.answer)
            if sample.scene is None:
                prompts.append(f"<bos> <user> {question} <assistant>")
                continue
            picture = work / f"recipe{len(prompts)}.png"
            draw(sample.scene).save(picture)
            text = f"<bos> <user> <image> {question} <assistant>"
            prompts.append({"text": text, "picture": str(picture)})
    folders = [work / "recipes" / name for name in METHODS]
    for name in PACKED:
        folders.append(work / "recipes" / f"{name}-packed")
        pack_checkpoint(work / "recipes" / name, folders[-1])
    jobs = [{"model": str(folder), "prompts": prompts} for folder in folders]
    results = run_jobs(jobs, work / "served-recipes", environ=FORCED)
    return {folder.name: found for folder, found in zip(folders, results, strict=True)}, answers


@pytest.mark.parametrize("name", METHODS)
def test_a_pruned_and_quantized_model_answers(
    name: str, served_recipes: tuple[dict[str, dict[str, Any]], list[str]]
) -> None:
    results, answers = served_recipes
    found = results[name]
    assert "error" not in found, found["error"]
    assert found["quantization"] == "tamp_sparse"
    methods = {m for linear, (m, _) in found["linears"].items() if "language_model" in linear}
    assert methods == {METHODS[name]}
    given = [output["text"].split() for output in found["outputs"]]
    right = sum(text == answer.split() for text, answer in zip(given, answers, strict=True))
    assert right >= RIGHT * len(answers)


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_folder_gives_the_same_answers(
    name: str, served_recipes: tuple[dict[str, dict[str, Any]], list[str]]
) -> None:
    results, _ = served_recipes
    packed = results[f"{name}-packed"]
    assert "error" not in packed, packed["error"]
    assert packed["outputs"] == results[name]["outputs"]
