"""Memory and speed of vLLM on CPU: stock dense bf16 against the plugin at 50, 60 and 70 %.

    python benchmarks/serving.py --output output/bench-serving.json [--markdown]

Runs in the serving environment. Every engine is a process of its own, bound to one core or to two.
Steps of the engine are timed: the first step of a batch is the prefill of its prompts, each later
one gives a token to every sequence; the fastest counts. The limit is what a decode step has to
read: the bytes of the weights, dense against packed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

SPARSITIES = (0.5, 0.6, 0.7)
BATCHES = (1, 2, 4, 8, 16)
THREADS = (1, 2)
PROMPT = 64
STEPS = 24
REPEATS = 1
MODELS = {
    "350m": "random Llama, 348 M parameters, tied embeddings",
    "box": "model in the box, language model of 5 M parameters",
}
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
MIB = 1 << 20
LIMIT = 600  # seconds for one engine


# ---- models --------------------------------------------------------------------------------------


def magnitude_prune(weight: Any, sparsity: float) -> Any:
    """Set the smallest weights of a matrix to zero."""
    import torch

    rank = max(1, int(sparsity * weight.numel()))
    threshold = weight.abs().float().flatten().kthvalue(rank).values
    return torch.where(weight.abs() > threshold, weight, torch.zeros_like(weight))


def write_random(folder: Path, sparsity: float) -> None:
    """A Llama with random weights; the marker in config.json if it is pruned."""
    import torch
    from safetensors.torch import save_file

    hidden, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    kv = hidden // SHAPE["num_attention_heads"] * SHAPE["num_key_value_heads"]
    linears = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "model.embed_tokens.weight": torch.randn(SHAPE["vocab_size"], hidden, generator=generator),
        "model.norm.weight": torch.ones(hidden),
    }
    for layer in range(SHAPE["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, shape in linears.items():
            weight = torch.randn(shape, generator=generator) * 0.02
            if sparsity:
                weight = magnitude_prune(weight, sparsity)
            tensors[f"{prefix}{name}.weight"] = weight.bfloat16()
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = torch.ones(hidden)
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.bfloat16() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    config = SHAPE | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    write_config(folder, config, sparsity)


def write_box(folder: Path, sparsity: float) -> None:
    """The model in the box with the Linears of its language model pruned by magnitude."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from tamp_modifier.demo.evaluation import MODEL_FOLDER

    shutil.copytree(MODEL_FOLDER, folder)
    file = folder / "model.safetensors"
    with safe_open(file, framework="pt") as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if sparsity and "language_model" in name and "_proj." in name:
            tensors[name] = magnitude_prune(tensor, sparsity)
    save_file(tensors, file, {"format": "pt"})
    write_config(folder, json.loads((folder / "config.json").read_text()), sparsity)


def write_config(folder: Path, config: dict[str, Any], sparsity: float) -> None:
    """Write config.json, with the marker for a pruned model."""
    from tamp_modifier.sparse.serialization import CONFIG_KEY, config_marker

    if sparsity:
        config[CONFIG_KEY] = config_marker("dense")
    (folder / "config.json").write_text(json.dumps(config, indent=2))


WRITERS = {"350m": write_random, "box": write_box}


# ---- one engine, in a process of its own ---------------------------------------------------------


def anonymous_bytes() -> int:
    """Resident memory of this process without mapped files."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))


class Loading:
    """Time and memory between vLLM's announcement of the load and that of the KV cache."""

    begin = end = 0.0
    before = after = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Look for the two messages."""
        message = record.getMessage()
        if message.startswith("Starting to load model"):
            self.begin, self.before = time.perf_counter(), anonymous_bytes()
        elif "for KV cache on node" in message:
            self.end, self.after = time.perf_counter(), anonymous_bytes()


def weight_bytes(model: Any) -> dict[str, int]:
    """What a decode step reads: the packed Linears, the dense ones by their shape, the head."""
    from vllm.model_executor.layers.linear import LinearBase

    sizes = {"sparse": 0, "dense": 0}
    for name, module in model.named_modules():
        if not isinstance(module, LinearBase) or "vision" in name or "projector" in name:
            continue
        if hasattr(module, "weight_mask"):
            packed = (module.weight_mask, module.weight_values, module.weight_offsets)
            sizes["sparse"] += sum(tensor.nbytes for tensor in packed)
        else:
            rows = getattr(module, "output_size_per_partition", module.output_size)
            columns = getattr(module, "input_size_per_partition", module.input_size)
            sizes["dense"] += rows * columns * 2
    head = getattr(model, "language_model", model).lm_head
    sizes["head"] = head.num_embeddings_per_partition * head.embedding_dim * 2
    return sizes


def read_bandwidth() -> float:
    """Bytes a second that this process reads from memory with its threads."""
    import torch

    block = torch.ones(64 * MIB, dtype=torch.int64)  # 512 MiB, past any cache
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        block.sum()
        best = min(best, time.perf_counter() - start)
    return block.nbytes / best


def measure(model: str, threads: int) -> dict[str, Any]:
    """Load a model and time the steps of its engine for each batch size."""
    import torch
    from vllm import LLM, SamplingParams

    loading = Loading()
    factory = logging.getLogRecordFactory()

    def observed(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        loading.emit(record)
        return record

    # Handlers would be lost: vLLM configures its loggers anew while it starts.
    logging.setLogRecordFactory(observed)

    multimodal = (
        "Llava" in json.loads((Path(model) / "config.json").read_text())["architectures"][0]
    )
    options: dict[str, Any] = {"limit_mm_per_prompt": {"image": 0}} if multimodal else {}
    start = time.perf_counter()
    llm = LLM(
        model=model,
        dtype="bfloat16",
        max_model_len=128,
        max_num_seqs=max(BATCHES),
        max_num_batched_tokens=max(BATCHES) * PROMPT,
        kv_cache_memory_bytes=192 * MIB,
        enforce_eager=True,
        enable_prefix_caching=False,
        async_scheduling=False,
        skip_tokenizer_init=True,
        disable_log_stats=True,
        **options,
    )
    result: dict[str, Any] = {
        "start_s": time.perf_counter() - start,
        "load_s": loading.end - loading.begin,
        "load_bytes": loading.after - loading.before,
        "weights": llm.apply_model(weight_bytes)[0],
        "threads": torch.get_num_threads(),
        "prefill": {},
        "decode": {},
    }
    engine = llm.llm_engine
    sampling = SamplingParams(
        temperature=0, max_tokens=STEPS, min_tokens=STEPS, ignore_eos=True, detokenize=False
    )
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    for repeat in range(1 + REPEATS):  # the first one warms up
        for batch in BATCHES:
            for index in range(batch):
                ids = [(7 * index + 13 * place) % vocabulary for place in range(PROMPT)]
                name = f"{repeat}-{batch}-{index}"
                engine.add_request(name, {"prompt_token_ids": ids}, sampling)
            times = []
            while engine.has_unfinished_requests():
                begin = time.perf_counter()
                engine.step()
                times.append(time.perf_counter() - begin)
            prefill, decode = times[0], min(times[2:])
            if repeat:
                result["prefill"].setdefault(batch, []).append(prefill)
                result["decode"].setdefault(batch, []).append(decode)
    for key in ("prefill", "decode"):
        result[key] = {batch: min(seconds) for batch, seconds in result[key].items()}
    result["bandwidth"] = read_bandwidth()
    return result


def run_engine(model: Path, threads: int, plugin: bool) -> dict[str, Any]:
    """Run `measure` in a process bound to `threads` cores."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    changes = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "OMP_NUM_THREADS": str(threads),
        "VLLM_HOST_IP": "127.0.0.1",
    }
    if not plugin:
        changes["VLLM_PLUGINS"] = ""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--engine", str(model), "--threads", str(threads)]
        done = subprocess.run(
            [*command, "--output", str(output)],
            env=os.environ | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
        )
        if not output.exists():
            raise RuntimeError(f"the engine failed:\n{done.stdout[-3000:]}")
        return json.loads(output.read_text())


# ---- all engines, and the tables -----------------------------------------------------------------


def run(models: list[str], sparsities: list[float], threads: list[int]) -> dict[str, Any]:
    """Measure everything; a model is written, measured and removed before the next one."""
    started = datetime.now(timezone.utc)
    results: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "date": started.isoformat(timespec="seconds"),
        "prompt": PROMPT,
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as work:
        for model in models:
            for sparsity in [0.0, *sparsities]:
                folder = Path(work) / f"{model}-{sparsity}"
                WRITERS[model](folder, sparsity)
                for count in threads:
                    label = {"model": model, "sparsity": sparsity, "threads": count}
                    print(label, file=sys.stderr, flush=True)
                    measured = run_engine(folder, count, plugin=sparsity > 0)
                    results["runs"].append(measured | label)
                shutil.rmtree(folder)
    return results


def cpu_name() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def step_bytes(run: dict[str, Any]) -> int:
    """Bytes of weights that one decode step reads."""
    sizes = run["weights"]
    return sizes["sparse"] + sizes["dense"] + sizes["head"]


def markdown(results: dict[str, Any]) -> str:
    """The tables: memory and loading, decode and prefill with their ratios to dense."""
    lines = []
    for model in dict.fromkeys(run["model"] for run in results["runs"]):
        runs = [run for run in results["runs"] if run["model"] == model]
        lines += ["", f"### {MODELS[model]}", ""]
        lines += ["| | Linears, MiB | of dense | resident after load, MiB | load, s |"]
        lines += ["|---|---|---|---|---|"]
        dense = next(run for run in runs if not run["sparsity"])
        for run in runs:
            if run["threads"] != runs[0]["threads"]:
                continue
            size = run["weights"]["sparse"] + run["weights"]["dense"]
            ratio = size / dense["weights"]["dense"]
            lines.append(
                f"| {name(run)} | {size / MIB:.1f} | {ratio:.2f} | {run['load_bytes'] / MIB:.0f} "
                f"| {run['load_s']:.1f} |"
            )
        for title, key, count in (
            ("Decode, tokens/s (ratio to dense)", "decode", 1),
            ("Prefill, tokens/s (ratio to dense)", "prefill", results["prompt"]),
        ):
            limit = " limit |" if key == "decode" else ""
            lines += ["", f"{title}, by batch size:", ""]
            lines += ["| threads | | " + " | ".join(map(str, BATCHES)) + " |" + limit]
            lines += ["|---" * (2 + len(BATCHES) + bool(limit)) + "|"]
            for run in sorted(runs, key=lambda run: (run["threads"], run["sparsity"])):
                base = next(r for r in runs if not r["sparsity"] and r["threads"] == run["threads"])
                cells = []
                for batch in map(str, BATCHES):
                    speed = int(batch) * count / run[key][batch]
                    times = base[key][batch] / run[key][batch]
                    cells.append(f"{speed:.0f}" + (f" ({times:.2f}x)" if run["sparsity"] else ""))
                row = f"| {run['threads']} | {name(run)} | " + " | ".join(cells) + " |"
                if limit:
                    bound = run["bandwidth"] / step_bytes(run)
                    row += f" {bound:.0f} ({step_bytes(base) / step_bytes(run):.2f}x) |"
                lines.append(row)
    lines += [
        "",
        f"{results['cpu']}, {results['cores']} cores, {results['date'][:10]}, vLLM 0.32.0 on CPU, "
        f"eager; prompts of {results['prompt']} tokens. The limit is for batch size 1: the read "
        "bandwidth, measured, over the bytes of the weights that a step reads, and their ratio.",
    ]
    return "\n".join(lines).lstrip()


def name(run: dict[str, Any]) -> str:
    """A row's name."""
    return f"{run['sparsity']:.0%} sparse" if run["sparsity"] else "stock dense"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables only")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--threads", nargs="+", type=int, default=list(THREADS))
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        measured = measure(arguments.engine, arguments.threads[0])
        arguments.output.write_text(json.dumps(measured))
        os._exit(0)  # vLLM's own clean-up sometimes hangs
    results = run(arguments.models, arguments.sparsities, arguments.threads)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(markdown(results))


if __name__ == "__main__":
    main()
