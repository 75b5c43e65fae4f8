"""Second stage of training: the language model learns to answer about what it sees and hears.

Projectors go on learning, and every Linear of the decoder gets a LoRA (Hu et al., 2021,
arXiv:2106.09685) that `export` later merges. SmolLM2's own weights, the vision tower and whisper
stay as they are. Each step takes three packs of questions, one about a picture (often with a clip)
and two about videos, clips or text alone.

    python -m benchmarks.smolav.train --steps 700
    python -m benchmarks.smolav.train --steps 700 --rank 0 --world 2 &  # or with two processes:
    python -m benchmarks.smolav.train --steps 700 --rank 1 --world 2    # one core each

goes on where it was interrupted: step numbers seed the data, and the state is saved every four
minutes. `runs/smolav/train.log` has the accuracy of each task over the last questions, which are
always new ones.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from benchmarks.smolav.build import raw_model
from benchmarks.smolav.dense import CLIPS, clip_features, clip_sound, save, word_ids
from benchmarks.smolav.layout import IGNORED, Layout, Pack
from benchmarks.smolav.lora import LoRALinear, add_lora
from benchmarks.smolav.media import Medium, Studio, stream
from benchmarks.smolav.model import SmolAVForConditionalGeneration, SmolAVModel
from benchmarks.smolav.pictures import sample_picture, sample_video
from benchmarks.smolav.questions import TASKS, Question, captions, questions
from benchmarks.smolav.words import COLUMNS, ROWS
from examples.tiny_mllm.attention import packed_attention

PROJECTORS = ("image_projector", "video_projector", "audio_projector")
_FEW = 18
"""Most questions in a pack."""


class Teacher:
    """Make packs and their embeddings."""

    def __init__(self, model: SmolAVModel, tokenizer: Any, folder: Path) -> None:
        self._model = model
        self._studio = Studio(folder)
        self._layout = Layout(tokenizer, model.config)
        self._clips = np.load(folder / "train-clips.npy", mmap_mode="r")

    def medium(self, rng: random.Random, kind: str) -> tuple[Medium, int | None]:
        """Draw a medium; clips are among those encoded before, known by their index."""
        if kind == "text":
            return Medium(), None
        if kind == "video":
            return Medium(video=sample_video(rng)), None
        if kind == "picture":
            return Medium(picture=sample_picture(rng)), None
        index = rng.randrange(CLIPS)
        sound = clip_sound(index)
        if kind == "sound":
            return Medium(sound=sound), index
        said = sound.event("word")
        name = said.what if said is not None and rng.random() < 0.5 else None
        return Medium(picture=sample_picture(rng, name), sound=sound), index

    def pack(self, rng: random.Random, medium: Medium) -> tuple[Pack, list[Question]]:
        """Questions and captions about a medium."""
        asked = questions(rng, medium)
        if medium.picture is not None:  # there are many of these
            asked = sorted(asked, key=lambda q: q.task in ("where", "relation", "exists"))
        asked = captions(rng, medium) + asked
        asked = asked[:_FEW]
        return self._layout.pack(medium, asked), asked

    def embeds(self, medium: Medium, clip: int | None, pack: Pack) -> Tensor:
        """Embeddings of a pack [1, S, hidden]; gradients reach the projectors."""
        model, config = self._model, self._model.config
        ids = pack.input_ids
        embeds = model.get_input_embeddings()(ids).detach()
        parts: list[tuple[int, Tensor]] = []
        if medium.picture is not None:
            with torch.no_grad():
                features = model.vision_features(self._studio.pixels(medium.picture)[None])
            parts.append((config.image_token_id, model.image_projector(features)))
        if medium.video is not None:
            with torch.no_grad():
                features = model.vision_features(self._studio.pixels(medium.video))
                features = model.pooled_frames(features)
            parts.append((config.video_token_id, model.video_projector(features)))
        if clip is not None:
            features = clip_features(self._clips, [clip]).float()
            parts.append((config.audio_token_id, model.audio_projector(features)))
        for token, values in parts:
            embeds = embeds.index_put((ids == token,), values[0].to(embeds.dtype))
        return embeds[None]


def pack_mask(pack: Pack, dtype: torch.dtype) -> Tensor:
    """Return what `packed_attention` adds to the scores of the chunks, [1, 1, questions * C, P +
    C].
    """
    count, width = pack.chunks.shape
    future = torch.zeros(width, width, dtype=dtype).masked_fill(
        torch.ones(width, width, dtype=torch.bool).triu(1), -30000.0
    )
    own = future.repeat(count, 1)
    return torch.cat([own.new_zeros(len(own), len(pack.prefix)), own], 1)[None, None]


def pack_loss(
    model: SmolAVForConditionalGeneration, embeds: Tensor, pack: Pack
) -> tuple[Tensor, list[bool]]:
    """Mean loss of the answers' tokens, and which answers are right in every token."""
    count, width = pack.chunks.shape
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=pack_mask(pack, embeds.dtype),
        position_ids=pack.position_ids[None],
        use_cache=False,
    ).last_hidden_state[0, len(pack.prefix) :]
    hidden = hidden.view(count, width, -1)[:, :-1]
    goal = pack.labels[:, 1:]
    asked = goal != IGNORED
    logits = model.lm_head(hidden[asked]).float()
    loss = F.cross_entropy(logits, goal[asked])
    right = torch.ones_like(asked)
    right[asked] = logits.argmax(-1) == goal[asked]
    return loss, right.all(1).tolist()


def trained_state(model: SmolAVForConditionalGeneration) -> dict[str, Tensor]:
    """Everything this stage trains, by name."""
    state: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            state[f"{name}.lora_a"], state[f"{name}.lora_b"] = module.lora_a, module.lora_b
    for part in PROJECTORS:
        for name, value in getattr(model.model, part).named_parameters():
            state[f"model.{part}.{name}"] = value
    return state


def load_dense(model: SmolAVForConditionalGeneration, tokenizer: Any, folder: Path) -> None:
    """Load what the first stage trained, and tells every token its place in words."""
    vision = torch.load(folder / "dense-vision.pt", weights_only=True)
    audio = torch.load(folder / "dense-audio.pt", weights_only=True)
    for name in ("vision_tower", "image_projector", "video_projector"):
        getattr(model.model, name).load_state_dict(vision[name])
    model.model.audio_projector.load_state_dict(audio["audio_projector"])
    for part, places in zip(PROJECTORS, place_words(model.model, tokenizer), strict=True):
        getattr(model.model, part).places.data += places


def place_words(model: SmolAVModel, tokenizer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of the words that tell where, or when, each token is.

    Without them the language model finds names but not places: the first stage makes a token point
    at the right row and column, but only a little.

    Returns:
        Of images, videos and clips, each [tokens, hidden].
    """
    table = model.language_model.embed_tokens.weight.detach().float()
    loudness = 0.5 * table.norm(dim=-1).mean()

    def words(names: Sequence[str]) -> Tensor:
        return loudness * F.normalize(table[word_ids(tokenizer, names)], dim=-1)

    def grid(side: int) -> Tensor:
        third = torch.arange(side) * 3 // side
        return (words(ROWS)[third][:, None] + words(COLUMNS)[third][None]).flatten(0, 1)

    config = model.config
    frame = round((config.video_tokens // config.frames) ** 0.5)
    ordinals = words(("first", "second", "third", "last"))
    video = ordinals.repeat_interleave(frame**2, 0) + grid(frame).repeat(config.frames, 1)
    share = torch.linspace(0, 1, config.audio_tokens)[:, None]
    audio = (1 - share) * ordinals[0] + share * ordinals[-1]
    return grid(round(config.image_tokens**0.5)), video, audio


def learning_rate(step: int, steps: int) -> float:
    """Warm up, stay, and fall over the last fifth, as a factor of the peak."""
    return min(1.0, (step + 1) / 20) * min(1.0, max(0.03, (steps - step) / (0.2 * steps)))


def train(arguments: argparse.Namespace) -> None:
    """Train, or resume training, until `steps` or `seconds`."""
    folder: Path = arguments.folder
    rank, world = arguments.rank, arguments.world
    if world > 1:
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{arguments.port}", rank=rank, world_size=world
        )
    torch.manual_seed(0)
    model, tokenizer = raw_model(folder)
    load_dense(model, tokenizer, folder)
    model.model.vision_tower.requires_grad_(False)
    add_lora(model.model.language_model, arguments.lora_rank)
    AttentionInterface.register("packed", packed_attention)
    model.model.language_model.config._attn_implementation = "packed"
    model.model.vision_tower.config._attn_implementation = "packed"
    trained = trained_state(model)
    lora = [value for name, value in trained.items() if ".lora_" in name]
    projectors = [value for name, value in trained.items() if ".lora_" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": lora, "peak": arguments.rate}, {"params": projectors, "peak": 3e-4}],
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    path = folder / "train-state.pt"
    step = 0
    recent: dict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=60))
    if path.exists():
        state = torch.load(path, weights_only=True)
        for name, value in trained.items():
            value.data.copy_(state["trained"][name])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        for task, values in state["recent"].items():
            recent[task].extend(values)
        print(f"going on from step {step}", flush=True)
    teacher = Teacher(model.model, tokenizer, folder)
    begun = saved = time.time()
    losses: deque[float] = deque(maxlen=40)
    while step < arguments.steps:
        rng = stream("train", "step", step)
        # The first costs as much as the other two together.
        kinds = [rng.choice(("picture", "both", "both"))]
        kinds += [rng.choice(("video",) * 5 + ("sound", "sound", "text")) for _ in "ab"]
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate(step, arguments.steps)
        optimizer.zero_grad(set_to_none=True)
        answered: list[tuple[str, bool]] = []
        lost: list[float] = []
        for index, kind in enumerate(kinds):
            if world > 1 and min(index, 1) != rank:
                continue
            rng = stream("train", "step", step, index)
            medium, clip = teacher.medium(rng, kind)
            pack, asked = teacher.pack(rng, medium)
            loss, right = pack_loss(model, teacher.embeds(medium, clip, pack), pack)
            (loss * len(asked) / _FEW).backward()
            lost.append(loss.item())
            answered += [(q.task, correct) for q, correct in zip(asked, right, strict=True)]
        over = time.time() - begun > arguments.seconds
        if world > 1:
            answered, lost, over = add_up([*lora, *projectors], answered, lost, over)
        losses.extend(lost)
        for task, correct in answered:
            recent[task].append(correct)
        nn.utils.clip_grad_norm_([*lora, *projectors], 1.0)
        optimizer.step()
        step += 1
        if rank > 0:
            if over:
                break
            continue
        if step % 10 == 0 or over or step == arguments.steps:
            report(folder / "train.log", step, time.time() - begun, losses, recent)
        if time.time() - saved > 240 or over or step == arguments.steps:
            save(
                path,
                {
                    "trained": {name: value.detach() for name, value in trained.items()},
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "recent": {task: list(values) for task, values in recent.items()},
                },
            )
            saved = time.time()
        if over:
            break


def add_up(
    trained: list[Tensor], answered: list[tuple[str, bool]], lost: list[float], over: bool
) -> tuple[list[tuple[str, bool]], list[float], bool]:
    """Add the gradients of all processes, and joins what else they know."""
    for value in trained:
        if value.grad is None:
            value.grad = torch.zeros_like(value)
    flat = torch.cat([value.grad.flatten() for value in trained if value.grad is not None])
    dist.all_reduce(flat)
    for value, summed in zip(
        trained, flat.split([value.numel() for value in trained]), strict=True
    ):
        value.grad = summed.view_as(value).clone()
    known: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(known, (answered, lost, over))
    return (
        [pair for pairs, _, _ in known for pair in pairs],
        [loss for _, values, _ in known for loss in values],
        any(late for _, _, late in known),
    )


def report(
    path: Path, step: int, seconds: float, losses: deque[float], recent: dict[str, deque[bool]]
) -> None:
    """Append a line of JSON to the log and prints it shortly."""
    shares = {task: round(float(np.mean(v)), 3) for task, v in sorted(recent.items())}
    means = {
        modality: round(float(np.mean([shares[task] for task in tasks if task in shares])), 3)
        for modality, tasks in TASKS.items()
        if any(task in shares for task in tasks)
    }
    line = {
        "step": step,
        "seconds": round(seconds),
        "loss": round(float(np.mean(losses)), 4),
        "means": means,
        "tasks": shares,
    }
    with path.open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train SmolAV's projectors and LoRA.")
    parser.add_argument("--folder", type=Path, default=Path("runs/smolav"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this time")
    parser.add_argument("--lora-rank", type=int, default=12)
    parser.add_argument("--rank", type=int, default=0, help="number of this process")
    parser.add_argument("--world", type=int, default=1, choices=(1, 2), help="processes")
    parser.add_argument("--port", type=int, default=29541, help="where two processes meet")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate of the LoRA")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
