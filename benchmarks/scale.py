"""Time and memory of pruning large models, on paper, and a run that checks the paper.

    python -m benchmarks.scale                      # the tables of docs/scale.md and examples/
    python -m benchmarks.scale --check --output output/bench-scale.json

The check prunes a random LLaVA of a billion parameters in a process of its own, with its weights in
memory and on disk, and compares processor time and memory with the estimate for this machine. What
this machine does a second is measured on one decoder layer before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.calibration import IMAGE_ID, high_water, reset_high_water
from benchmarks.configs import EXAMPLES, LARGE

SAMPLES, TOKENS = 128, 2048
"""Of the table: 128 samples of 2,048 tokens."""
CHECK_SAMPLES, IMAGE_TOKENS, TEXT_TOKENS = 4, 144, 48


def large_table() -> list[str]:
    """Rows of docs/scale.md."""
    from tamp_modifier.messages import duration
    from tamp_modifier.workflows.estimate import estimate
    from tamp_modifier.workflows.shapes import measure_config

    rows = [
        "| model | accelerators | run | time | time, from disk | each accelerator | host | "
        "host, from disk |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for name, make in LARGE.items():
        shapes = measure_config(make())
        runs: dict[str, dict[str, Any]] = {"3 passes": {}, "`one_pass`": {"passes": 1}}
        if shapes.experts:
            runs["3 passes, all experts"] = {"all_experts": True}
        for processes in (1, 8):
            for label, options in runs.items():
                found = estimate(shapes, SAMPLES, TOKENS, processes=processes, **options)
                rows.append(
                    f"| {name} | {processes} | {label} | {duration(found.seconds)} | "
                    f"{duration(found.seconds_disk)} | {found.device_peak / 1e9:.1f} GB | "
                    f"{found.host_peak / 1e9:.0f} GB | {found.host_peak_disk / 1e9:.0f} GB |"
                )
    return rows


def example_table() -> list[str]:
    """Rows of examples/README.md: the preset at 50 %."""
    from tamp_modifier import TAMPModifier
    from tamp_modifier.messages import duration
    from tamp_modifier.pruning.settings import Rules
    from tamp_modifier.workflows.estimate import estimate
    from tamp_modifier.workflows.shapes import measure_config

    rules = Rules.of(TAMPModifier(preset="best", sparsity=0.5))
    rows = ["| example | weights | accelerator | host | time |", "|---|---:|---:|---:|---:|"]
    for name, make in EXAMPLES.items():
        found = estimate(
            measure_config(make()),
            SAMPLES,
            TOKENS,
            passes=rules.passes,
            selection=rules.selection,
            score=rules.score,
            allocation=rules.allocation,
        )
        rows.append(
            f"| `{name}` | {found.weights / 1e9:.0f} GB | {found.device_peak / 1e9:.1f} GB | "
            f"{found.host_peak / 1e9:.0f} GB | {duration(found.seconds)} |"
        )
    return rows


# ---- the check -----------------------------------------------------------------------------------


def check_config(layers: int) -> Any:
    """Config of a LLaVA of a billion parameters with 20 decoder layers."""
    import transformers as tf

    text = tf.LlamaConfig(
        vocab_size=8000,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    vision: Any = tf.SiglipVisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=192,
        patch_size=16,
    )
    vision.vision_use_head = False
    return tf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_ID,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=IMAGE_TOKENS,
    )


def write_model(folder: Path, layers: int) -> None:
    """Save the model of the check, with random weights in bfloat16."""
    import torch
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(0)
    make: Any = LlavaForConditionalGeneration._from_config
    make(check_config(layers), dtype=torch.bfloat16).save_pretrained(folder)


def batches(count: int = CHECK_SAMPLES) -> Any:
    """Loader of pictures of noise in random text."""
    import torch
    from torch.utils.data import DataLoader

    samples = []
    for _ in range(count):
        text = torch.randint(100, 8000, (TEXT_TOKENS,))
        ids = torch.cat([text[:16], torch.full((IMAGE_TOKENS,), IMAGE_ID), text[16:]])[None]
        pixels = torch.randn(1, 3, 192, 192).bfloat16()
        samples.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        samples[-1]["pixel_values"] = pixels
    data: Any = samples
    return DataLoader(data, batch_size=None)


def machine_speed(model: Any) -> float:
    """Operations a second of this process in one decoder layer's largest Linear, in bf16."""
    import torch

    linear = model.model.language_model.layers[0].mlp.up_proj
    x = torch.randn(IMAGE_TOKENS + TEXT_TOKENS, linear.in_features).bfloat16()
    with torch.no_grad():
        linear(x)
        start = time.process_time()
        for _ in range(10):
            linear(x)
    seconds = time.process_time() - start
    return 10 * 2.0 * x.shape[0] * linear.weight.numel() / seconds


def sorting_speed(model: Any) -> float:
    """Weights a second of this process that are compared and masked."""
    import torch

    from tamp_modifier.masks import wanda_mask

    weight = model.model.language_model.layers[0].mlp.up_proj.weight.detach()
    start = time.process_time()
    wanda_mask(weight, torch.ones(weight.shape[1]), 0.5)
    return weight.numel() / (time.process_time() - start)


def run_check(folder: Path, weights: str) -> dict[str, Any]:
    """Prune the model once, with weights in "memory" or on "disk"."""
    import torch
    from llmcompressor import oneshot
    from transformers import LlavaForConditionalGeneration

    from tamp_modifier import TAMPModifier
    from tamp_modifier.demo.processing import build_processor

    torch.set_num_threads(1)
    speeds: dict[str, float] = {}
    options: dict[str, Any] = {}
    if weights == "disk":
        options = {"device_map": {"": "disk"}, "offload_folder": str(folder / "offloaded")}
    model: Any = LlavaForConditionalGeneration.from_pretrained(
        folder / "model", dtype=torch.bfloat16, **options
    )
    if weights == "memory":
        speeds = {"flops": machine_speed(model), "sorted_per_second": sorting_speed(model)}
    before = reset_high_water()
    wall, cpu = time.perf_counter(), time.process_time()
    report = folder / f"{weights}.json"
    oneshot(
        model=model,
        processor=build_processor(),
        dataset=batches(),
        recipe=TAMPModifier(sparsity=0.5, report_path=str(report)),
    )
    return {
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "added_bytes": high_water() - before,
        "reached_sparsity": json.loads(report.read_text())["reached_sparsity"],
        **speeds,
    }


def check(layers: int) -> dict[str, Any]:
    """Run the check in processes of their own, and puts the estimate beside it."""
    from tamp_modifier.workflows.estimate import Machine, estimate
    from tamp_modifier.workflows.shapes import measure_config

    shapes = measure_config(check_config(layers))
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as folder:
        write_model(Path(folder) / "model", layers)
        for weights in ("memory", "disk"):
            command = [sys.executable, "-m", "benchmarks.scale", "--child", weights, folder]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            runs[weights] = json.loads(done.stdout.splitlines()[-1])
    speeds = {name: runs["memory"].pop(name) for name in ("flops", "sorted_per_second")}
    # Everything is on the host: nothing crosses a link, and a file read lately is in memory.
    machine = Machine(link=1e12, disk=1e12, **speeds)
    found = estimate(shapes, CHECK_SAMPLES, IMAGE_TOKENS + TEXT_TOKENS, machine=machine)
    return {
        "benchmark": "scale",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "parameters": shapes.parameters,
        "samples": CHECK_SAMPLES,
        "tokens": IMAGE_TOKENS + TEXT_TOKENS,
        "speeds": speeds,
        "estimate": found.to_dict(),
        "runs": runs,
    }


def main() -> None:
    """Print the table, or runs the check."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="prune a billion parameters")
    parser.add_argument("--layers", type=int, default=20, help="of the check (%(default)s)")
    parser.add_argument("--output", type=Path, help="where the JSON of the check goes")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run_check(Path(args.child[1]), args.child[0])))
    elif args.check:
        from tamp_modifier.files import write_json

        found = check(args.layers)
        print(json.dumps(found, indent=1))
        if args.output is not None:
            write_json(args.output, found)
    else:
        print("\n".join([*large_table(), "", *example_table()]))


if __name__ == "__main__":
    main()
