"""The plugin answers as stock vLLM does with the same weights, from less memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import FORCED, PACKED_STEP, TEXTS
from tests.serving.harness import run_jobs
from tests.serving.int4 import lacks_kernel, vllm_has_int4

Answers = dict[str, dict[str, Any]]

DENSE_ON_DISK = ["llama", "qwen", "box", "fp8", "int8", "int4"]
PACKED = ["llama", "qwen", "box", "fp8"]
# vLLM rounds logits to bf16 before the softmax. At their usual size here, 8 to 16, a step is 1/16;
# a very unlikely token comes from a larger logit, whose step is up to 2^-7 of it. Two steps are
# allowed.
LOGPROB_NOISE = 2 / 16
RELATIVE_NOISE = 2 * 2**-7


def assert_same(ours: dict[str, Any], theirs: dict[str, Any], noise: float = LOGPROB_NOISE) -> None:
    """Same tokens, and logprobs that differ by rounding only.

    Of two tokens that are equally likely but for rounding, either may come; what follows them
    cannot be compared.
    """
    assert "error" not in ours, ours["error"]
    assert "error" not in theirs, theirs["error"]
    for mine, other in zip(ours["outputs"], theirs["outputs"], strict=True):
        steps = zip(*(a[key] for key in ("tokens", "logprobs") for a in (mine, other)), strict=True)
        for token, other_token, got, expected in steps:
            assert got == pytest.approx(expected, abs=noise, rel=RELATIVE_NOISE)
            if token != other_token:
                assert expected[0] - expected[1] < noise
                break


def noise_of(name: str) -> float:
    """What another order of rounding does: INT8 inputs then are at the next level now and then."""
    return 2 * LOGPROB_NOISE if name == "int8" else LOGPROB_NOISE


def kept_dense(answer: dict[str, Any]) -> list[str]:
    """Names of the language model's Linears that are not served by one of our methods."""
    return [
        name
        for name, (method, _) in answer["linears"].items()
        if not method.startswith("Sparse") and "vision" not in name and "projector" not in name
    ]


def test_stock_vllm_serves_marked_checkpoints_dense(stock: Answers) -> None:
    assert stock["llama"]["quantization"] is None
    assert stock["fp8"]["quantization"] == "compressed-tensors"
    assert not any(
        method.startswith("Sparse")
        for answer in stock.values()
        if vllm_has_int4() or not lacks_kernel(answer)
        for method, _ in answer["linears"].values()
    )


@pytest.mark.parametrize("name", DENSE_ON_DISK)
def test_same_answers_as_stock(name: str, stock: Answers, served: Answers) -> None:
    assert served[name]["quantization"] == "tamp_sparse"
    if name == "int4" and not vllm_has_int4():
        assert lacks_kernel(stock[name])  # see test_quantized.py for what the plugin answers
        return
    assert_same(served[name], stock[name])


@pytest.mark.parametrize("name", PACKED)
def test_same_answers_from_a_packed_checkpoint(name: str, served: Answers) -> None:
    packed, dense = served[f"{name}-packed"], served[name]
    step = PACKED_STEP if name == "box" else 1
    assert_same(packed, dense | {"outputs": dense["outputs"][::step]})
    assert packed["linears"] == dense["linears"]


def test_fp8_with_one_scale_per_tensor(stock: Answers, served: Answers) -> None:
    assert_same(served["fp8-tensor"], stock["fp8-repeated"])


@pytest.mark.parametrize("name", ["llama", "qwen", "box", "fp8", "fp8-tensor", "int8", "int4"])
def test_every_pruned_linear_is_kept_packed(name: str, served: Answers) -> None:
    assert kept_dense(served[name]) == []


def test_the_model_in_the_box_still_answers(
    served: Answers, questions: list[dict[str, str]]
) -> None:
    texts = [output["text"].split() for output in served["box"]["outputs"]]
    assert len(texts) == len(questions) == 200
    assert all(0 < len(text) <= 8 for text in texts)
    assert len({tuple(text) for text in texts}) > 20


def test_two_ranks_answer_like_one(
    checkpoints: dict[str, Path], served: Answers, work: Path
) -> None:
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    names = ["llama-packed", "int8", "int4"]
    jobs = [{"model": str(checkpoints[n]), "prompts": TEXTS, "options": options} for n in names]
    # vLLM wants a NUMA node for each rank unless told otherwise.
    environ = FORCED | {"VLLM_CPU_SIM_MULTI_NUMA": "1"}
    for name, answer in zip(names, run_jobs(jobs, work / "ranks", environ=environ), strict=True):
        assert "error" not in answer, answer["error"]
        assert answer["quantization"] == "tamp_sparse"
        assert_same(answer, served[name.removesuffix("-packed")], noise_of(name))


def test_compiled_model_on_two_bound_threads_answers_like_the_eager_one(
    checkpoints: dict[str, Path], served: Answers, work: Path
) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    environ = {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "OMP_NUM_THREADS": str(len(cores)),
    }
    options = {"enforce_eager": False}
    names = ["llama", "int8", "int4"]
    jobs = [{"model": str(checkpoints[n]), "prompts": TEXTS, "options": options} for n in names]
    answers = run_jobs(jobs, work / "compiled", environ=FORCED | environ)
    for name, answer in zip(names, answers, strict=True):
        assert_same(answer, served[name], noise_of(name))
        assert answer["threads"] == len(cores)
