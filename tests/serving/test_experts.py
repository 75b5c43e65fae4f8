"""Experts that llm-compressor has pruned one by one: vLLM loads what was saved."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from devtools.vllm_process import ROOT
from tests.serving.harness import run_jobs
from tests.serving.test_recipes import COMPRESS_PYTHON

MODELS = ["mixtral", "qwen3_moe", "olmoe"]
PROMPTS = [list(range(10, 30)), list(range(40, 55))]


@pytest.fixture(scope="module")
def served_experts(work: Path) -> dict[str, dict[str, Any]]:
    """What vLLM makes of each model, in fp32, in which no two tokens are a tie."""
    out = work / "experts"
    command = [str(COMPRESS_PYTHON), "-m", "tests.serving.experts", str(out), *MODELS]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    jobs = [
        {
            "model": str(out / name),
            "prompts": PROMPTS,
            "options": {"dtype": "float32"},
            "max_tokens": 6,
        }
        for name in MODELS
    ]
    results = run_jobs(jobs, work / "served-experts")
    for name, result in zip(MODELS, results, strict=True):
        result["expected"] = json.loads((out / name / "greedy.json").read_text())
    return dict(zip(MODELS, results, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_vllm_answers_as_the_pruned_model_did(
    name: str, served_experts: dict[str, dict[str, Any]]
) -> None:
    found = served_experts[name]
    assert "error" not in found, found["error"]
    assert [output["tokens"] for output in found["outputs"]] == found["expected"]
    assert found["linears"]["model.layers.0.self_attn.qkv_proj"][0] == "SparseLinearMethod"
    assert {method for method, _ in found["experts"].values()} == {"SparseExpertsMethod"}
