"""Prune VideoLLaMA2.1-7B-AV to 50 % with the preset, ask it something, save it.

python examples/videollama2/videollama2_av.py --data conversations.jsonl  # wants a GPU
python examples/videollama2/videollama2_av.py --tiny  # a random one, on any machine

VideoLLaMA2 is no model of transformers: its own package puts the features of video and sound among
the embeddings of the text. That is done here once for every sample, so that the decoder alone is
calibrated, on embeddings; `token_types` tells TAMP what each of them is.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from llmcompressor import oneshot

from tamp_modifier import TAMPModifier
from tamp_modifier.data import choose, make_loader, read_conversations
from tamp_modifier.demo.tiny import tiny_model
from tamp_modifier.tokens import AUDIO, TEXT, VIDEO

MODEL_ID = "DAMO-NLP-SG/VideoLLaMA2.1-7B-AV"
SAMPLES = 128
SPARSITY = 0.5
SEED = 0
MEDIA_ID = -201  # stands for video and sound among the token ids

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="conversations about videos, see examples/README.md")
parser.add_argument("--tiny", action="store_true", help="a random model and data of its own")
parser.add_argument("--output", type=Path, default=Path("output/videollama2-50"))
args = parser.parse_args()
if args.data is None and not args.tiny:
    parser.error("give --data or --tiny")
torch.manual_seed(SEED)

# Load.
model: Any
processor: Any
if args.tiny:
    model, tokenizer = tiny_model("video_llama2")
else:
    from videollama2 import model_init
    from videollama2.mm_utils import tokenizer_multimodal_token

    model, processor, tokenizer = model_init(MODEL_ID)

# Data: per sample the ids with MEDIA_ID in their middle, and video and sound as tensors.
samples: list[tuple[torch.Tensor, Any]] = []
if args.tiny:
    ids = tokenizer("what animal is there ?", return_tensors="pt").input_ids[0]
    for _ in range(4):
        media = {"video": torch.randn(10, 12), "audio": torch.randn(6, 8)}
        media = {kind: value.to(model.dtype) for kind, value in media.items()}
        samples.append((torch.cat([ids[:1], torch.tensor([MEDIA_ID]), ids[1:]]), media))
else:
    for conversation in choose(read_conversations(args.data), None, SAMPLES, SEED):
        (part,) = conversation.media
        messages = [
            {"role": turn.role, "content": ("<video>\n" if turn.role == "user" else "") + turn.text}
            for turn in conversation.turns
        ]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer_multimodal_token(prompt, tokenizer, "<video>", return_tensors="pt")
        media = processor["video"](str(part.path), va=True)
        media = {kind: value.to(model.device, model.dtype) for kind, value in media.items()}
        samples.append((ids, media))

# How many of the media tokens are sound is told by the projector that they come from.
sound: list[int] = []
projector: Any = model.get_submodule("mm_projector_a" if args.tiny else "model.mm_projector_a")
counter = projector.register_forward_hook(lambda *passed: sound.append(passed[2].shape[-2]))
batches: list[dict[str, torch.Tensor]] = []
types: dict[bytes, torch.Tensor] = {}


def key(batch: Mapping[str, Any]) -> bytes:
    """Tell a batch by what is in it."""
    return batch["inputs_embeds"].float().cpu().numpy().tobytes()


for ids, media in samples:
    ids = ids[None].to(model.device)
    with torch.no_grad():
        _, mask, _, embeds, _ = model.prepare_inputs_labels_for_multimodal(
            ids, torch.ones_like(ids), None, None, [(media, "<video>")]
        )
    place = int((ids[0] == MEDIA_ID).nonzero())
    count = embeds.shape[1] - ids.shape[1] + 1
    kinds = torch.full(embeds.shape[:2], TEXT)
    kinds[:, place : place + count] = VIDEO
    kinds[:, place + count - sound[-1] : place + count] = AUDIO
    batches.append({"inputs_embeds": embeds.cpu(), "attention_mask": mask.cpu()})
    types[key(batches[-1])] = kinds
counter.remove()


def token_types(batch: Mapping[str, Any]) -> torch.Tensor:
    """Return what each position of a batch is: 0 text, 2 video, 3 sound."""
    return types[key(batch)]


def one(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return a batch of one sample is the sample."""
    return rows[0]


loader = make_loader(batches, one)

# Recipe. It prunes the Linears of the text decoder; encoders, projectors and lm_head stay.
args.output.mkdir(parents=True, exist_ok=True)
recipe = TAMPModifier(
    preset="best",
    sparsity=SPARSITY,
    token_types_fn=token_types,
    dense_pipeline="basic",
    report_path=str(args.output / "tamp_report.json"),
)

# Oneshot. The basic pipeline runs the whole model and needs no tracing of the package's code.
oneshot(model=model, processor=tokenizer, dataset=loader, recipe=recipe, pipeline="basic")

# Sample: the next token after the first sample.
with torch.inference_mode():
    first = {name: value.to(model.device) for name, value in batches[0].items()}
    logits = model(**first).logits
print(f"answer:   {tokenizer.decode(logits[0, -1].argmax())}")

# Save.
model.save_pretrained(args.output)
tokenizer.save_pretrained(args.output)
print(f"wrote {args.output}")
