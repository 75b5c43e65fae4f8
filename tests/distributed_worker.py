"""Prunes tiny models in one of several processes, or in one: what torchrun starts for the tests.

torchrun --nproc-per-node 2 -m tests.distributed_worker FOLDER CASE...
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tamp_modifier import TAMPModifier
from tamp_modifier.calibration.distributed import partition, rank
from tests.architectures.models import build
from tests.running import linear_weights, prune

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "das_amia": ("llava_llama", {}, {}),
    "one_pass": ("qwen2_5_vl", {"one_pass": True}, {"pipeline": "basic"}),
    "owl_drift": ("llava_llama", {"allocation": "owl", "selection": "drift"}, {}),
    "experts": ("qwen3_vl_moe", {"mask_structure": "2:4", "selection": "text"}, {}),
    "sparsegpt": ("llava_llama", {"score": "sparsegpt", "sparsity": 0.6}, {}),
}
"""Case -> architecture, fields of the modifier, arguments of oneshot."""


def run_case(case: str, folder: Path) -> None:
    """Prunes with this process's share of the samples; leaves the weights and the report."""
    architecture, fields, arguments = CASES[case]
    torch.manual_seed(0)
    model, batches, expected = build(architecture)
    name = f"{case}.{rank()}"
    modifier = TAMPModifier(report_path=str(folder / f"{name}.json"), **fields)
    prune(
        model,
        partition(batches),
        modifier,
        folder / name,
        sequential_targets=[expected.decoder_layer],
        output_dir=str(folder / case),
        **arguments,
    )
    torch.save(linear_weights(model, expected.targets), folder / f"{name}.pt")


def run_bad_sample(folder: Path) -> None:
    """One process gets a token whose embedding is not a number: all refuse, and undo."""
    model, batches, expected = build("llava_llama")
    first, last = (set(batch["input_ids"].flatten().tolist()) for batch in (batches[0], batches[2]))
    model.get_input_embeddings().weight.data[min(last - first - {120})] = torch.nan
    before = linear_weights(model, expected.targets)
    message = "none"
    try:
        prune(
            model,
            [batches[0] if rank() == 0 else batches[2]],
            TAMPModifier(allocation="uniform", selection="text"),
            folder / f"bad.{rank()}",
            sequential_targets=[expected.decoder_layer],
        )
    except RuntimeError as error:
        message = str(error)
    after = linear_weights(model, expected.targets)
    unchanged = all(torch.equal(before[name], after[name]) for name in before)
    (folder / f"bad.{rank()}.txt").write_text(f"unchanged={unchanged} {message}")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for argument in sys.argv[2:]:
        if argument == "bad_sample":
            run_bad_sample(Path(sys.argv[1]))
        else:
            run_case(argument, Path(sys.argv[1]))
    dist.destroy_process_group()
