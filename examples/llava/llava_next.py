"""Prune LLaVA-NeXT 8B to 50 % with the preset, ask it something, save it.

python examples/llava/llava_next.py                # from the hub; wants a GPU
python examples/llava/llava_next.py --model demo   # the demo model; any machine, a minute
python examples/llava/llava_next.py --model tiny   # a random LLaVA-NeXT, to see that all runs
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from llmcompressor import oneshot
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor

from tamp_modifier import TAMPModifier
from tamp_modifier.demo.evaluation import MODEL_FOLDER
from tamp_modifier.demo.pictures import draw
from tamp_modifier.demo.questions import PICTURE_TASKS, balance_keys, balanced_picture_question
from tamp_modifier.demo.tiny import tiny_model

MODEL_ID = "llava-hf/llama3-llava-next-8b-hf"
DATASET_ID = "lmms-lab/flickr30k"
SAMPLES = {"hub": 128, "demo": 32, "tiny": 4}
SPARSITY = 0.5
SEED = 0


parser = argparse.ArgumentParser()
parser.add_argument("--model", choices=tuple(SAMPLES), default="hub")
parser.add_argument("--output", type=Path, default=Path("output/llava-next-50"))
args = parser.parse_args()
torch.manual_seed(SEED)

# Load.
model: Any
if args.model == "tiny":
    model, processor = tiny_model("llava_next")
else:
    model_id = MODEL_ID if args.model == "hub" else str(MODEL_FOLDER)
    model = AutoModelForImageTextToText.from_pretrained(model_id, dtype=torch.bfloat16)
    processor = AutoProcessor.from_pretrained(model_id)

# Data: pictures, each with a question and its answer. Real ones from the hub, or drawn here.
conversations = []
if args.model == "hub":
    from datasets import load_dataset

    for row in load_dataset(DATASET_ID, split=f"test[:{SAMPLES['hub']}]"):
        conversations.append((row["image"], "Describe the picture.", row["caption"][0]))
else:
    rng = random.Random(SEED)
    for index in range(SAMPLES[args.model]):
        task = PICTURE_TASKS[index % len(PICTURE_TASKS)]
        scene, asked = balanced_picture_question(task, rng, rng.choice(balance_keys(task)))
        conversations.append((draw(scene), asked.question, asked.answer))


def encode(picture: Any, question: str, answer: str | None = None) -> dict[str, torch.Tensor]:
    """One conversation as model inputs; without an answer, a prompt for it."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    prompt = processor.apply_chat_template(messages, add_generation_prompt=answer is None)
    return dict(processor(text=[prompt], images=[picture], return_tensors="pt"))


samples: Any = [encode(*conversation) for conversation in conversations]
loader = DataLoader(samples, batch_size=None)

# Recipe. It prunes the Linears of the text decoder; vision tower, projector and lm_head stay.
args.output.mkdir(parents=True, exist_ok=True)
recipe = TAMPModifier(
    preset="best", sparsity=SPARSITY, report_path=str(args.output / "tamp_report.json")
)

# Oneshot.
oneshot(
    model=model,
    processor=processor,
    dataset=loader,
    recipe=recipe,
    num_calibration_samples=len(samples),
)

# Sample.
picture, question, _ = conversations[0]
inputs = {name: value.to(model.device) for name, value in encode(picture, question).items()}
if "pixel_values" in inputs:
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
with torch.inference_mode():
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
prompt_length = inputs["input_ids"].shape[1]
answer = processor.tokenizer.decode(output[0, prompt_length:], skip_special_tokens=True)
print(f"question: {question}\nanswer:   {answer}")

# Save.
model.save_pretrained(args.output)
processor.save_pretrained(args.output)
print(f"wrote {args.output}")
