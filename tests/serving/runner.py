"""Runs vLLM in a process of its own: ``python -m tests.serving.runner JOBS RESULTS``.

JOBS is a JSON list, one entry an engine: ``{"model": DIR, "options": {...}, "prompts": [...]}``. A
prompt is text, token ids or ``{"text": ..., "picture": PATH}``; ``"adapters"`` has the folder of a
LoRA adapter, or null, for each of them. RESULTS gets, for each job, the generated tokens and
logprobs, how each Linear keeps its weight and the memory of loading, or the error.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from devtools.vllm_process import watch_load
from tests.serving.exact_int8 import saturates, use_exact_sums

SMALL = {
    "dtype": "bfloat16",
    "max_model_len": 256,
    "max_num_seqs": 4,
    "kv_cache_memory_bytes": 64 << 20,
    "enforce_eager": True,
    "disable_log_stats": True,
}


def weight_report(model: Any) -> dict[str, Any]:
    """How each Linear, and the experts of each layer, keep their weights: method and bytes."""
    from vllm.model_executor.layers.fused_moe import RoutedExperts
    from vllm.model_executor.layers.linear import LinearBase

    report: dict[str, Any] = {"linears": {}, "experts": {}}
    for name, module in model.named_modules():
        if isinstance(module, LinearBase | RoutedExperts):
            kind = "linears" if isinstance(module, LinearBase) else "experts"
            size = sum(p.nbytes for key, p in module.named_parameters() if "bias" not in key)
            report[kind][name] = [type(module.quant_method).__name__, size]
    return report


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Build one engine and generate."""
    import torch
    from PIL import Image
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    with watch_load() as load:
        llm = LLM(model=job["model"], **(SMALL | job.get("options", {})))
    result: dict[str, Any] = {
        "quantization": llm.llm_engine.model_config.quantization,
        "peak": load.peak - load.built,
        "kept": load.loaded - load.built,
        "threads": torch.get_num_threads(),
    }
    if "tensor_parallel_size" not in job.get("options", {}):
        result |= llm.apply_model(weight_report)[0]
    prompts: list[Any] = []
    for prompt in job["prompts"]:
        if isinstance(prompt, str):
            prompts.append(prompt)
        elif isinstance(prompt, list):
            prompts.append({"prompt_token_ids": prompt})
        else:
            picture = Image.open(prompt["picture"]).convert("RGB")
            prompts.append({"prompt": prompt["text"], "multi_modal_data": {"image": picture}})
    adapters = job.get("adapters", [None] * len(prompts))
    numbers = {folder: number for number, folder in enumerate(dict.fromkeys(adapters), 1)}
    lora = [
        None if folder is None else LoRARequest(folder, numbers[folder], folder)
        for folder in adapters
    ]
    sampling = SamplingParams(temperature=0, max_tokens=job.get("max_tokens", 8), logprobs=2)
    result["outputs"] = [
        {
            "tokens": list(output.outputs[0].token_ids),
            "text": output.outputs[0].text,
            "logprobs": [
                sorted((entry.logprob for entry in step.values()), reverse=True)
                for step in output.outputs[0].logprobs
            ],
        }
        for output in llm.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
    ]
    return result


def main() -> None:
    """Run all jobs; results are written after each one, so that a hang at exit loses nothing."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    if saturates():
        use_exact_sums()
    jobs, path = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    results: list[dict[str, Any]] = []
    for job in jobs:
        try:
            results.append(run(job))
        except Exception as error:
            traceback.print_exc()
            results.append({"error": f"{type(error).__name__}: {error}"})
        path.write_text(json.dumps(results))
        cleanup_dist_env_and_memory()
        gc.collect()
    os._exit(0)  # one run in ten hung in vLLM's own clean-up


if __name__ == "__main__":
    main()
