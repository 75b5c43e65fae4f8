"""Time and memory of pruning: TAMP and the preset against llm-compressor's Wanda and SparseGPT.

    python benchmarks/calibration.py --output output/bench-calibration.json [--markdown]

Every run is a process of its own with one thread. Methods take turns, so that a slow minute of the
machine hits all of them, and the fastest of the repeats counts. Seconds are processor time: that is
wall time on an idle machine, and leaves out the waiting on a busy one (the JSON has both). Peak
memory is the high-water mark of the process while it prunes, and once more without what it held
before (libraries, model).
The limit is what the forward passes alone take: no method can be faster than the passes it makes.
"""

from __future__ import annotations

import argparse
import gc
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

METHODS = ("Wanda", "TAMP", "TAMP one_pass", "SparseGPT", "best")
FORWARDS = {"Wanda": 2, "TAMP": 3, "TAMP one_pass": 1, "SparseGPT": 2, "best": 2, "forward": 1}
"""Passes of all samples through the decoder that a method makes in the sequential pipeline."""

MODELS = {
    "box": "demo model, 144 image tokens",
    "llava-100m": "random 100 M, 576 image tokens",
    "layers-0.5b": "4 random layers of a 0.5 B language model (896 and 4864 wide), 512 tokens",
}
SCALING_METHOD = "TAMP"
SPARSITY = 0.5


# ---- one run, in a process of its own ------------------------------------------------------------


def load(name: str, samples: int) -> tuple[Any, Any, Any]:
    """Model, processor and calibration loader of one of ``MODELS``."""
    from tamp_modifier.demo import evaluation, processing

    if name == "box":
        processor = evaluation.load_processor()
        loader = evaluation.calibration_dataloader(samples, 0, processor)
        return evaluation.load_model(), processor, loader
    if name == "layers-0.5b":
        return random_layers(), processing.build_processor(), random_text(samples)
    return random_llava(), processing.build_processor(), random_batches(samples)


def random_llava() -> Any:
    """Return a LLaVA of 100 million parameters with random weights and 576 image tokens, in
    bfloat16.
    """
    import torch
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        SiglipVisionConfig,
    )

    torch.manual_seed(0)
    vision: Any = SiglipVisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=384,
        patch_size=16,
    )
    text = LlamaConfig(
        vocab_size=8000,
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    vision.vision_use_head = False
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_ID,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=576,
        tie_word_embeddings=True,
    )
    model: Any = LlavaForConditionalGeneration(config).eval()
    return named(model.to(torch.bfloat16))


def random_layers() -> Any:
    """Return four decoder layers as wide as those of a model of 0.5 billion, random, in fp32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=4,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return named(LlamaForCausalLM(config).eval())


def named(model: Any) -> Any:
    """Return the model with its config in a folder: oneshot looks it up by the model's name."""
    folder = tempfile.mkdtemp(prefix="bench-model-")
    model.config.save_pretrained(folder)
    model.config._name_or_path = folder
    return model


IMAGE_ID = 7


def random_batches(samples: int) -> Any:
    """Batches of one random picture and 24 random words."""
    import torch
    from torch.utils.data import DataLoader

    generator = torch.Generator().manual_seed(0)
    batches: Any = []
    for _ in range(samples):
        words = torch.randint(100, 8000, (1, 24), generator=generator)
        ids = torch.cat([words[:, :4], torch.full((1, 576), IMAGE_ID), words[:, 4:]], 1)
        pixels = torch.randn(1, 3, 384, 384, generator=generator, dtype=torch.float32)
        batches.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "pixel_values": pixels.to(torch.bfloat16),
            }
        )
    return DataLoader(batches, batch_size=None)


def random_text(samples: int) -> Any:
    """Batches of 512 random words."""
    import torch
    from torch.utils.data import DataLoader

    generator = torch.Generator().manual_seed(0)
    words = [torch.randint(100, 8000, (1, 512), generator=generator) for _ in range(samples)]
    batches: Any = [{"input_ids": w, "attention_mask": torch.ones_like(w)} for w in words]
    return DataLoader(batches, batch_size=None)


def measure(model_name: str, method: str, samples: int) -> dict[str, float]:
    """Prune once and return wall and processor seconds, memory in bytes and the sparsity."""
    import torch

    torch.set_num_threads(1)
    model, processor, loader = load(model_name, samples)
    before = reset_high_water()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    if method == "forward":
        model.set_attn_implementation("eager")
        with torch.inference_mode():
            for batch in loader:
                model(**batch, logits_to_keep=1, use_cache=False)
    else:
        prune(model, processor, loader, method)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    from tamp_modifier.demo.run import sparsity_of

    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": high_water(),
        "added_bytes": high_water() - before,
        "sparsity": sparsity_of(model),
    }


def prune(model: Any, processor: Any, loader: Any, method: str) -> None:
    """Prune the text decoder with one of ``METHODS``."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    from tamp_modifier import TAMPModifier

    layer = "LlamaDecoderLayer"
    options: dict[str, Any] = {"propagate_error": False} if method == "TAMP one_pass" else {}
    recipes: dict[str, Any] = {
        "Wanda": lambda: WandaPruningModifier(sparsity=SPARSITY, targets=[layer]),
        "SparseGPT": lambda: SparseGPTModifier(sparsity=SPARSITY, targets=[layer]),
        "TAMP": lambda: TAMPModifier(sparsity=SPARSITY),
        "TAMP one_pass": lambda: TAMPModifier(sparsity=SPARSITY, one_pass=True),
        "best": lambda: TAMPModifier(sparsity=SPARSITY, preset="best"),
    }
    oneshot(
        model=model,
        processor=processor,
        dataset=loader,
        recipe=recipes[method](),
        num_calibration_samples=len(loader),
        shuffle_calibration_samples=False,
        sequential_targets=[layer],
        **options,
    )


def reset_high_water() -> int:
    """Forget the peak so far (loading a model has its own) and return the resident bytes now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return high_water()


def high_water() -> int:
    """Peak resident memory of this process in bytes since the last reset (Linux)."""
    # Not getrusage: its figure can neither be reset nor does it start anew in a child.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM; this benchmark needs Linux")


# ---- all runs ------------------------------------------------------------------------------------


def run_child(model: str, method: str, samples: int) -> dict[str, float]:
    """Run ``measure`` in a fresh process with one thread."""
    command = [sys.executable, __file__, "--child", model, method, str(samples)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{method} on {model} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_all(models: list[str], samples: int, repeats: int) -> list[dict[str, Any]]:
    """Best of the repeats per model, method and number of samples."""
    from rich.progress import Progress

    jobs = []
    for model in models:
        jobs += [(model, method, samples) for method in ("forward", *METHODS)]
        jobs += [(model, SCALING_METHOD, n) for n in (samples // 4, samples // 2) if n > 0]
    found: dict[tuple[str, str, int], list[dict[str, float]]] = {job: [] for job in jobs}
    with Progress() as progress:
        task = progress.add_task("", total=repeats * len(jobs))
        for _ in range(repeats):
            for job in jobs:
                progress.update(task, description=f"{job[1]} on {job[0]}, {job[2]} samples")
                found[job].append(run_child(*job))
                if not progress.console.is_terminal:
                    print(*job, found[job][-1], flush=True)
                progress.advance(task)
    return [
        {
            "model": model,
            "method": method,
            "samples": n,
            "seconds": min(run["seconds"] for run in runs),
            "cpu_seconds": min(run["cpu_seconds"] for run in runs),
            "peak_bytes": min(run["peak_bytes"] for run in runs),
            "added_bytes": min(run["added_bytes"] for run in runs),
            "sparsity": runs[0]["sparsity"],
            "all_seconds": [run["seconds"] for run in runs],
        }
        for (model, method, n), runs in found.items()
    ]


def machine() -> str:
    """Processor and number of cores."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, one thread used"


HEADERS = (
    "method",
    "CPU seconds",
    "to Wanda",
    "limit",
    "to limit",
    "peak MiB",
    "to Wanda",
    "added MiB",
)


def rows(results: list[dict[str, Any]], model: str, samples: int) -> list[tuple[str, ...]]:
    """Table cells of one model: time and memory, as such and relative to Wanda and the limit."""
    mine = {r["method"]: r for r in results if r["model"] == model and r["samples"] == samples}
    wanda, forward = mine["Wanda"], mine["forward"]["cpu_seconds"]
    cells: list[tuple[str, ...]] = []
    for method in (name for name in METHODS if name in mine):
        run = mine[method]
        limit = FORWARDS[method] * forward
        cells.append(
            (
                method,
                f"{run['cpu_seconds']:.1f}",
                f"{run['cpu_seconds'] / wanda['cpu_seconds']:.2f}x",
                f"{limit:.1f}",
                f"{run['cpu_seconds'] / limit:.2f}x",
                f"{run['peak_bytes'] / 2**20:.0f}",
                f"{run['peak_bytes'] / wanda['peak_bytes']:.2f}x",
                f"{run['added_bytes'] / 2**20:.0f}",
            )
        )
    return cells


def scaling(results: list[dict[str, Any]], model: str) -> str:
    """Processor seconds of TAMP by number of samples, in one line."""
    runs = sorted(
        (r["samples"], r["cpu_seconds"])
        for r in results
        if r["model"] == model and r["method"] == SCALING_METHOD
    )
    times = ", ".join(f"{n}: {seconds:.1f} s" for n, seconds in runs)
    (few, first), (many, last) = runs[0], runs[-1]
    per_sample = (last - first) / max(1, many - few)
    return f"{SCALING_METHOD} by number of samples: {times} ({per_sample:.3f} s per further sample)"


def markdown(results: list[dict[str, Any]], models: list[str], samples: int) -> str:
    """Return the tables of all models in Markdown."""
    lines = []
    for model in models:
        lines += [f"{MODELS[model]}, {samples} samples:", ""]
        lines += ["| " + " | ".join(HEADERS) + " |", "|---|" + "---:|" * (len(HEADERS) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in rows(results, model, samples)]
        lines += ["", scaling(results, model), ""]
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments, runs all, prints and writes the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("output/bench-calibration.json"))
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--markdown", action="store_true", help="also print Markdown tables")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        model, method, samples = args.child
        print(json.dumps(measure(model, method, int(samples))))
        return
    if args.samples < 1 or args.repeats < 1:
        parser.error("--samples and --repeats must be at least 1")

    from importlib.metadata import version

    from rich.console import Console
    from rich.table import Table

    from tamp_modifier.files import write_json

    results = run_all(args.models, args.samples, args.repeats)
    console = Console()
    for model in args.models:
        table = Table(title=f"{MODELS[model]}, {args.samples} samples", title_justify="left")
        for index, header in enumerate(HEADERS):
            table.add_column(header, justify="right" if index else "left", no_wrap=not index)
        for row in rows(results, model, args.samples):
            table.add_row(*row)
        console.print(table)
        console.print(scaling(results, model), highlight=False)
    data = {
        "format": "tamp-bench-calibration",
        "format_version": 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "repeats": args.repeats,
        "versions": {name: version(name) for name in ("torch", "transformers", "llmcompressor")},
        "results": results,
    }
    console.print(f"wrote {write_json(args.output, data)}", highlight=False)
    if args.markdown:
        print(markdown(results, args.models, args.samples))


if __name__ == "__main__":
    main()
