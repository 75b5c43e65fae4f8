"""Prunes tiny mixtures of experts: ``python -m tests.serving.experts OUT NAME...``.

Runs in .venv, where llm-compressor is. Each model goes into ``OUT/NAME`` as oneshot saves it, with
``greedy.json``: what the pruned model, before it was saved, answers to `PROMPTS`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from llmcompressor import oneshot
from torch.utils.data import DataLoader

from tamp_modifier import TAMPModifier
from tests.serving.models import build_tokenizer, text_config

PROMPTS = [list(range(10, 30)), list(range(40, 55))]
TOKENS = 6
EXPERTS = {"num_experts_per_tok": 2}
_QWEN3 = {"num_experts": 4, "head_dim": 32, "moe_intermediate_size": 64}
MODELS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "mixtral": (tf.MixtralForCausalLM, tf.MixtralConfig, {"num_local_experts": 4}),
    "qwen3_moe": (tf.Qwen3MoeForCausalLM, tf.Qwen3MoeConfig, _QWEN3),
    "olmoe": (tf.OlmoeForCausalLM, tf.OlmoeConfig, {"num_experts": 4}),
}


def main() -> None:
    """Prune, answer and save."""
    out = Path(sys.argv[1])
    for name in sys.argv[2:]:
        cls, config, fields = MODELS[name]
        torch.manual_seed(0)
        model = cls(config(**text_config(**EXPERTS, **fields)))
        model.save_pretrained(out / "dense" / name)  # llm-compressor looks for the config there
        model = cls.from_pretrained(out / "dense" / name, dtype=torch.float32)
        batches = [{"input_ids": torch.randint(7, 100, (1, length))} for length in (40, 50, 60)]
        oneshot(
            model=model,
            tokenizer=build_tokenizer(),
            dataset=DataLoader(batches, batch_size=None),  # type: ignore[arg-type]
            recipe=TAMPModifier(sparsity=0.5),
            output_dir=str(out / name),
        )
        answers = [
            model.generate(torch.tensor([p]), max_new_tokens=TOKENS, do_sample=False)[0, len(p) :]
            for p in PROMPTS
        ]
        (out / name / "greedy.json").write_text(json.dumps([a.tolist() for a in answers]))


if __name__ == "__main__":
    main()
