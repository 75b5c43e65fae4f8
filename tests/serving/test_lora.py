"""LoRA adapters on sparse Linears: answers of stock vLLM with the same adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.serving import models
from tests.serving.conftest import FORCED, TEXTS
from tests.serving.harness import run_jobs
from tests.serving.test_answers import assert_same, kept_dense

JOBS = {
    "llama": {"enforce_eager": True},
    "compiled": {"enforce_eager": False},
    "fp8": {"enforce_eager": True},
}
KINDS = ("stock", "ours")
# vLLM's CPU code takes the adapter of the last slot for requests without one, so one slot is free.
LORA = {"enable_lora": True, "max_loras": 3, "max_lora_rank": 8}


@pytest.fixture(scope="module")
def answers(checkpoints: dict[str, Path], work: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Of stock vLLM and of the plugin: two adapters and none, all in one batch."""
    source = checkpoints["llama"]
    first, second = (str(models.adapter(source, work / f"adapter{n}", n)) for n in (1, 2))
    jobs = [
        {
            "model": str(checkpoints[name if name in checkpoints else "llama"]),
            "prompts": [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0]],
            "adapters": [first, second, None, second],
            "options": options | LORA,
        }
        for name, options in JOBS.items()
    ]
    jobs.append({"model": str(checkpoints["llama"]), "prompts": [TEXTS[0]]})
    found = {
        kind: run_jobs(jobs, work / f"lora-{kind}", kind == "ours", environ=FORCED)
        for kind in KINDS
    }
    return {kind: dict(zip((*JOBS, "plain"), found[kind], strict=True)) for kind in KINDS}


@pytest.mark.parametrize("name", JOBS)
def test_same_answers_as_stock_with_the_same_adapters(
    name: str, answers: dict[str, dict[str, dict[str, Any]]]
) -> None:
    ours = answers["ours"][name]
    assert_same(ours, answers["stock"][name])
    assert kept_dense(ours) == []


def test_an_adapter_changes_only_its_own_request(
    answers: dict[str, dict[str, dict[str, Any]]],
) -> None:
    outputs = answers["ours"]["llama"]["outputs"]
    first, _, none, second = (output["tokens"] for output in outputs)
    assert none == answers["ours"]["plain"]["outputs"][0]["tokens"]
    assert len({tuple(tokens) for tokens in (first, none, second)}) == 3
