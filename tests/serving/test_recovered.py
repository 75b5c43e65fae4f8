"""Pruned, recovered, quantized, served: the plugin answers as transformers with these weights."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from devtools.vllm_process import ROOT
from tests.serving.conftest import FORCED
from tests.serving.harness import run_jobs
from tests.serving.test_answers import LOGPROB_NOISE, assert_same
from tests.serving.test_recipes import COMPRESS_PYTHON

METHODS = {"W8A8": "SparseInt8LinearMethod", "W4A16": "SparseInt4LinearMethod"}
"""How the plugin serves the Linears of the decoder, by scheme."""
ASKED = 8
"""Every so manieth question of the session's is asked."""


@pytest.fixture(scope="module")
def answers(work: Path, questions: list[dict[str, str]]) -> dict[str, list[dict[str, Any]]]:
    """What vLLM and transformers answer, by scheme."""
    assert COMPRESS_PYTHON.exists(), "make venv makes the environment that compresses"
    prompts: list[Any] = []
    for entry in questions[::ASKED]:
        image = "<image> " if "picture" in entry else ""
        text = f"<bos> <user> {image}{entry['question']} <assistant>"
        prompts.append({"text": text, "picture": entry["picture"]} if image else text)
    out = work / "recovered"
    out.mkdir()
    job = out / "job.json"
    job.write_text(json.dumps({"out": str(out), "prompts": prompts}))
    done = subprocess.run(
        [str(COMPRESS_PYTHON), "-m", "tests.serving.recover", str(job)],
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    jobs = [{"model": str(out / scheme), "prompts": prompts} for scheme in METHODS]
    served = run_jobs(jobs, out / "served", environ=FORCED)
    theirs = [json.loads((out / f"{scheme}.json").read_text()) for scheme in METHODS]
    return {s: [ours, other] for s, ours, other in zip(METHODS, served, theirs, strict=True)}


@pytest.mark.parametrize("scheme", METHODS)
def test_a_recovered_and_quantized_model_is_served(
    scheme: str, answers: dict[str, list[dict[str, Any]]]
) -> None:
    served, by_transformers = answers[scheme]
    assert "error" not in served, served["error"]
    assert served["quantization"] == "tamp_sparse"
    methods = {m for linear, (m, _) in served["linears"].items() if "language_model" in linear}
    assert methods == {METHODS[scheme]}
    # transformers rounds to bf16 in other places than vLLM, and then W8A8 inputs to other levels.
    assert_same(served, by_transformers, 4 * LOGPROB_NOISE)
