"""Measure one engine, inside of its process: ``python -m benchmarks.serving.engine ...``.

Steps of the engine are timed: the first step of a batch is the prefill of its prompts, each later
one gives a token to every sequence; the fastest counts.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from devtools.vllm_process import watch_load

PROMPT = 64
"""Tokens of a prompt."""
STEPS = 12
REPEATS = 2
MIB = 1 << 20


def weight_bytes(model: Any) -> dict[str, int]:
    """Return what a decode step reads: packed Linears, dense ones by their shape, the head."""
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

    block = torch.ones(256 * MIB, dtype=torch.int16)  # 512 MiB, past any cache
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.max(block)  # a plain stream through memory, faster than a sum
        best = min(best, time.perf_counter() - start)
    return block.nbytes / best


def measure(model: str, batches: list[int]) -> dict[str, Any]:
    """Load a model and time the steps of its engine for each batch size."""
    import torch
    from vllm import LLM, SamplingParams

    config = json.loads((Path(model) / "config.json").read_text())
    multimodal = "vision_config" in config
    options: dict[str, Any] = {"limit_mm_per_prompt": {"image": 0}} if multimodal else {}
    start = time.perf_counter()
    with watch_load() as load:
        llm = LLM(
            model=model,
            dtype="bfloat16",
            max_model_len=128,
            max_num_seqs=max(batches),
            max_num_batched_tokens=max(batches) * PROMPT,
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
        "load_s": load.seconds,
        "resident_bytes": load.ready - load.before,
        "peak_bytes": load.peak - load.before,
        "weights": llm.apply_model(weight_bytes)[0],
        "threads_used": torch.get_num_threads(),
        "prefill": {},
        "decode": {},
    }
    engine = llm.llm_engine
    vocabulary = engine.model_config.get_vocab_size()
    for repeat in range(1 + REPEATS):  # the first one warms up
        steps = STEPS if repeat else 3
        sampling = SamplingParams(
            temperature=0, max_tokens=steps, min_tokens=steps, ignore_eos=True, detokenize=False
        )
        for batch in batches if repeat else (min(batches), max(batches)):
            for index in range(batch):
                ids = [(7 * index + 13 * place) % vocabulary for place in range(PROMPT)]
                name = f"{repeat}-{batch}-{index}"
                engine.add_request(name, {"prompt_token_ids": ids}, sampling)
            times = []
            while engine.has_unfinished_requests():
                begin = time.perf_counter()
                engine.step()
                times.append(time.perf_counter() - begin)
            if repeat:
                for key, seconds in (("prefill", times[0]), ("decode", min(times[2:]))):
                    best = result[key].get(batch, seconds)
                    result[key][batch] = min(best, seconds)
    result["bandwidth"] = read_bandwidth()
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure one engine.")
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--batches", nargs="+", type=int, required=True)
    arguments = parser.parse_args()
    arguments.output.write_text(json.dumps(measure(arguments.model, arguments.batches)))
    os._exit(0)  # vLLM's own clean-up sometimes hangs


if __name__ == "__main__":
    main()
