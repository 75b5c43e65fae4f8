"""Prune Gemma 3 12B to 50 % with the preset, ask it something, save it.

python examples/gemma3/gemma3.py --data conversations.jsonl  # from the hub; wants a GPU
python examples/gemma3/gemma3.py --tiny  # a random one, on any machine
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from llmcompressor import oneshot
from transformers import AutoModelForImageTextToText, AutoProcessor

from tamp_modifier import TAMPModifier
from tamp_modifier.architectures import PER_TOKEN
from tamp_modifier.data import Collator, Encoder, choose, make_loader, read_conversations
from tamp_modifier.demo.tiny import tiny_data, tiny_model
from tamp_modifier.tokens import modality_token_ids

MODEL_ID = "google/gemma-3-12b-it"
SAMPLES = 128
MAX_LENGTH = 2048
SPARSITY = 0.5
SEED = 0

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="conversations, see examples/README.md")
parser.add_argument("--tiny", action="store_true", help="a random model and data of its own")
parser.add_argument("--output", type=Path, default=Path("output/gemma3-50"))
args = parser.parse_args()
if args.data is None and not args.tiny:
    parser.error("give --data or --tiny")
torch.manual_seed(SEED)

# Load.
model: Any
if args.tiny:
    model, processor = tiny_model("gemma3")
else:
    model = AutoModelForImageTextToText.from_pretrained(MODEL_ID, dtype=torch.bfloat16)
    processor = AutoProcessor.from_pretrained(MODEL_ID)

# Data: conversations about pictures, through the model's own processor.
conversations = read_conversations(tiny_data() if args.tiny else args.data)
placeholders = modality_token_ids(model.config)
encode = Encoder(processor, placeholders, MAX_LENGTH)
samples = [encode(conversation) for conversation in choose(conversations, None, SAMPLES, SEED)]
loader = make_loader(samples, Collator(processor, placeholders, dtype=model.dtype))

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
    sequential_targets=["Gemma3DecoderLayer"],
)

# Sample.
question = encode(conversations[0], find_answer=True)
prompt = {
    name: (value[:, : question.answer_start] if name in PER_TOKEN else value).to(model.device)
    for name, value in Collator(processor, dtype=model.dtype)([question]).items()
}
with torch.inference_mode():
    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)
answer = processor.tokenizer.decode(output[0, question.answer_start :], skip_special_tokens=True)
print(f"question: {conversations[0].turns[-2].text}\nanswer:   {answer}")

# Save.
model.save_pretrained(args.output)
processor.save_pretrained(args.output)
print(f"wrote {args.output}")
