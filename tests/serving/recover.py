"""Prunes, recovers and quantizes the demo model: ``python -m tests.serving.recover JOB``.

Runs in .venv, where llm-compressor is. JOB is a JSON file: ``{"out": DIR, "prompts": [...]}``, as
`runner` takes prompts. The checkpoints go into ``OUT/SCHEME``, what transformers answers with them
into ``OUT/SCHEME.json``, in the form in which `runner` writes what vLLM answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from llmcompressor import oneshot
from PIL import Image

from tamp_modifier import TAMPModifier
from tamp_modifier.demo.evaluation import calibration_dataloader, load_model, load_processor
from tamp_modifier.demo.recovered import recover
from tamp_modifier.recovery.settings import SCHEMES, RecoverySettings
from tamp_modifier.workflows.models import load_config
from tamp_modifier.workflows.models import load_model as load_checkpoint
from tamp_modifier.workflows.recover import quantize

TOKENS = 8


def recovered(processor: Any) -> tuple[Any, list[str]]:
    """Return the model after a few steps of recovery, and the names of its pruned Linears."""
    model = load_model(dtype=torch.bfloat16)
    loader = calibration_dataloader(8)
    oneshot(model=model, dataset=loader, recipe=[TAMPModifier(sparsity=0.6)])
    done = recover(model, processor, count=100, samples=96, batch_size=8)
    assert done.best < done.before, (done.best, done.before)
    return model, done.linears


@torch.inference_mode()
def answer(model: Any, processor: Any, prompt: Any) -> dict[str, Any]:
    """Greedy tokens of one prompt, and the two largest logprobs at each."""
    text = prompt if isinstance(prompt, str) else prompt["text"]
    pictures = None if isinstance(prompt, str) else [Image.open(prompt["picture"]).convert("RGB")]
    inputs = processor(text=text, images=pictures, return_tensors="pt")
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    found = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=TOKENS,
        output_scores=True,
        return_dict_in_generate=True,
    )
    tokens = found.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    tops = [scores[0].float().log_softmax(-1).topk(2).values.tolist() for scores in found.scores]
    text = processor.tokenizer.decode(tokens, skip_special_tokens=True)
    return {"tokens": tokens, "text": text, "logprobs": tops}


def main() -> None:
    """Make the checkpoints, and answer with them."""
    job = json.loads(Path(sys.argv[1]).read_text())
    out, processor = Path(job["out"]), load_processor()
    model, linears = recovered(processor)
    model.save_pretrained(out / "recovered")
    for scheme in SCHEMES:
        # From the folder, as a user has it: llm-compressor ties saving to one object.
        student, folder = load_model(out / "recovered", dtype=torch.bfloat16), out / scheme
        quantize(student, processor, linears, RecoverySettings(scheme=scheme))
        student.save_pretrained(folder)
        processor.save_pretrained(folder)
        loaded = load_checkpoint(str(folder), load_config(str(folder)))
        outputs = [answer(loaded, processor, prompt) for prompt in job["prompts"]]
        (out / f"{scheme}.json").write_text(json.dumps({"outputs": outputs}))


if __name__ == "__main__":
    main()
