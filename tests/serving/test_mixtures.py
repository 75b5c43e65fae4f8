"""Experts of MoE layers are kept packed, and answer as stock vLLM does with the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tamp_modifier.checkpoint.pack import pack_checkpoint
from tests.serving import models
from tests.serving.harness import run_jobs
from tests.serving.test_answers import assert_same

Answers = dict[str, dict[str, Any]]

PROMPTS = [list(range(10, 30)), list(range(40, 55)), list(range(60, 90))]
# In fp32 no two tokens are a tie. In bf16 a token whose router's choice is one goes to another
# expert, which changes its logits by more than rounding does; "half" has none of them.
FP32 = {"dtype": "float32"}
FAMILIES = ["mixtral", "qwen2_moe", "gpt_oss"]  # a Qwen3-MoE is "half"
RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
LIMITS = {"bfloat16": 0.6, "float32": 0.55}  # packed over dense bytes, at 50 to 70 % zeros
MIB = 1 << 20


def job(folder: Path, **options: Any) -> dict[str, Any]:
    """One engine in fp32."""
    return {"model": str(folder), "prompts": PROMPTS, "options": FP32 | options}


@pytest.fixture(scope="module")
def mixtures(work: Path) -> dict[str, Path]:
    """Pruned mixtures by family; "half" has exactly 50 % zeros, "unpruned" dense experts."""
    folder = work / "mixtures"
    found = {family: models.mixture(folder / family, family) for family in FAMILIES}
    found["half"] = models.mixture(folder / "half", "qwen3_moe", (0.5,))
    found["unpruned"] = models.mixture(folder / "unpruned", "qwen3_moe", (0.0,))
    found["packed"] = folder / "packed"
    pack_checkpoint(found["mixtral"], found["packed"])
    return found


@pytest.fixture(scope="module")
def stock_mixtures(mixtures: dict[str, Path], work: Path) -> Answers:
    """Answers of stock vLLM."""
    names = [*FAMILIES, "half", "unpruned"]
    jobs = [job(mixtures[name]) for name in names]
    jobs += [job(mixtures["half"], dtype="bfloat16")]
    return dict(zip([*names, "bf16"], run_jobs(jobs, work / "stock-mixtures", False), strict=True))


@pytest.fixture(scope="module")
def served_mixtures(mixtures: dict[str, Path], work: Path) -> Answers:
    """Answers of vLLM with the plugin."""
    jobs = [job(folder) for folder in mixtures.values()]
    jobs += [job(mixtures["half"], dtype="bfloat16")]
    jobs += [job(mixtures["qwen2_moe"], enforce_eager=False)]
    names = [*mixtures, "bf16", "compiled"]
    return dict(zip(names, run_jobs(jobs, work / "served-mixtures"), strict=True))


def method_and_bytes(answer: dict[str, Any]) -> tuple[set[str], int]:
    """Methods of the experts of all layers, and the bytes of their weights."""
    experts = answer["experts"].values()
    return {method for method, _ in experts}, sum(size for _, size in experts)


@pytest.mark.parametrize("name", [*FAMILIES, "half", "unpruned", "bf16"])
def test_same_answers_as_stock(
    name: str, stock_mixtures: Answers, served_mixtures: Answers
) -> None:
    assert_same(served_mixtures[name], stock_mixtures[name])


@pytest.mark.parametrize("name", [*FAMILIES, "half", "bf16"])
def test_experts_are_kept_packed(
    name: str, stock_mixtures: Answers, served_mixtures: Answers
) -> None:
    methods, size = method_and_bytes(served_mixtures[name])
    assert methods == {"SparseExpertsMethod"}
    dense = method_and_bytes(stock_mixtures[name])[1]
    assert size <= LIMITS["bfloat16" if name == "bf16" else "float32"] * dense


def test_experts_without_zeros_stay_with_vllm(
    stock_mixtures: Answers, served_mixtures: Answers
) -> None:
    ours, stock = served_mixtures["unpruned"], stock_mixtures["unpruned"]
    assert ours["experts"] == stock["experts"]
    assert ours["linears"]["model.layers.0.self_attn.qkv_proj"][0] == "SparseLinearMethod"


def test_packed_on_disk(served_mixtures: Answers) -> None:
    packed, dense = served_mixtures["packed"], served_mixtures["mixtral"]
    assert_same(packed, dense)
    assert packed["experts"] == dense["experts"]


def test_compiled(served_mixtures: Answers) -> None:
    assert_same(served_mixtures["compiled"], served_mixtures["qwen2_moe"])


def test_two_ranks(mixtures: dict[str, Path], served_mixtures: Answers, work: Path) -> None:
    jobs = [
        job(mixtures["qwen2_moe"], **RANKS),
        job(mixtures["gpt_oss"], **RANKS),
        job(mixtures["packed"], enable_expert_parallel=True, **RANKS),
    ]
    environ = {"VLLM_CPU_SIM_MULTI_NUMA": "1"}  # vLLM wants a NUMA node for each rank
    answers = run_jobs(jobs, work / "mixtures-ranks", environ=environ)
    names = ("qwen2_moe", "gpt_oss", "mixtral")
    for answer, name in zip(answers, names, strict=True):
        assert_same(answer, served_mixtures[name])
    log = (work / "mixtures-ranks" / "log.txt").read_text()
    assert "layers of experts are served sparse" in log


def test_loading_takes_two_dense_layers_at_most(work: Path) -> None:
    layers = 6
    folder = models.mixture(
        work / "large-mixture",
        "qwen3_moe",
        num_hidden_layers=layers,
        hidden_size=512,
        moe_intermediate_size=512,
        num_experts=8,
        initializer_range=0.02,
    )
    tensors = models.read(folder).items()
    layer = sum(t.nbytes for name, t in tensors if ".layers.0." in name)
    (answer,) = run_jobs([job(folder, dtype="bfloat16")], work / "loading-mixture")
    assert "error" not in answer, answer["error"]
    kept = method_and_bytes(answer)[1] + sum(size for _, size in answer["linears"].values())
    others = 16 * MIB  # embeddings, norms, and what the measurement itself takes
    assert kept < 0.6 * layers * layer
    assert 0 < answer["peak"] <= kept + 2 * layer + others


def test_a_missing_expert_is_refused(mixtures: dict[str, Path], work: Path) -> None:
    folder = shutil.copytree(mixtures["mixtral"], work / "missing-expert")
    tensors = models.read(folder)
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    tensors.pop(name)
    models.write(folder, tensors)
    wrong = shutil.copytree(mixtures["mixtral"], work / "wrong-expert")
    models.write(wrong, models.read(wrong) | {name: torch.ones(128, 320).to(torch.int8)})
    missing, mistyped = run_jobs([job(folder), job(wrong)], work / "refused-mixtures")
    assert "model.layers.1.block_sparse_moe.experts: the checkpoint brought" in missing["error"]
    assert "the checkpoint's weight has dtype int8" in mistyped["error"]
