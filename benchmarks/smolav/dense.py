"""First stage of training: towers and projectors learn to point at words.

Each image, video or audio token is projected to an embedding, and this embedding should point
towards the rows of SmolLM2's embedding table whose words tell what the token shows: name, colour,
row and column of a patch, or what is heard. No pass through the language model is needed, so this
is cheap, and afterwards the language model reads the tokens like odd words.

    python -m benchmarks.smolav.dense sounds   # encode the training clips once
    python -m benchmarks.smolav.dense vision   # tower, image and video projector
    python -m benchmarks.smolav.dense audio    # audio projector

Each command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from benchmarks.smolav.media import Studio, normalised, stream
from benchmarks.smolav.model import SmolAVModel
from benchmarks.smolav.pictures import patch_labels, sample_picture
from benchmarks.smolav.sounds import sample_sound, token_labels
from benchmarks.smolav.words import COLOUR_WORDS, COLUMNS, NAMES, ROWS, SOUNDS, SPOKEN
from examples.tiny_mllm.attention import packed_attention
from tamp_modifier.demo.pictures import BACKGROUNDS, DIGITS

CLIPS = 1600
"""Training clips; their encoder outputs are kept on disk, 205 KB each."""

PATCH_GROUPS = (
    ("nothing", *NAMES, *DIGITS),
    ("nothing", *dict.fromkeys((*COLOUR_WORDS, *BACKGROUNDS))),
    ROWS,
    COLUMNS,
)
"""What is told of a patch; the first word of a group is its background where it has one."""

SOUND_GROUP = ("nothing", "tone", *SOUNDS, *SPOKEN)


def word_ids(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Token of each word as it stands in a sentence; digits stand without a space.

    Raises:
        ValueError: A word is more than one token.
    """
    ids = []
    for word in words:
        word = {"beige": "tan"}.get(word, word)  # beige is two tokens
        tokens = tokenizer(word if word.isdigit() else f" {word}").input_ids
        if len(tokens) != 1:
            raise ValueError(f"{word!r} is {len(tokens)} tokens; one is needed")
        ids += tokens
    return ids


def pointing_loss(features: Tensor, table: Tensor, target: Tensor, rare: float) -> Tensor:
    """Cross entropy of the cosines between embeddings and the words of one group.

    Args:
        features: [tokens, hidden].
        table: Embeddings of the group's words [words, hidden].
        target: Index of the right word [tokens].
        rare: Weight of tokens whose word is the first of the group.
    """
    logits = 25.0 * F.normalize(features.float(), dim=-1) @ F.normalize(table, dim=-1).T
    loss = F.cross_entropy(logits, target, reduction="none")
    weight = torch.where(target == 0, rare, 1.0)
    return (loss * weight).sum() / weight.sum()


def length_loss(features: Tensor, table: Tensor) -> Tensor:
    """Keep embeddings as long as those of words."""
    return (features.float().norm(dim=-1) / table.norm(dim=-1).mean() - 1.0).square().mean()


def clip_sound(index: int) -> Any:
    """Return what training clip `index` holds."""
    return sample_sound(stream("train", "sound", index))


def encode_clips(model: SmolAVModel, studio: Studio, path: Path) -> None:
    """Write encoder outputs as bfloat16 bits, uint16 [CLIPS, 100, 1024]; resumes."""
    shape = (CLIPS, model.config.audio_tokens, 2 * model.config.audio_config.d_model)
    mode = "r+" if path.exists() else "w+"
    store = np.lib.format.open_memmap(path, mode=mode, dtype=np.uint16, shape=shape)
    begun = time.time()
    for first in range(0, CLIPS, 8):
        if store[min(first + 7, CLIPS - 1)].any():
            continue
        indices = range(first, min(first + 8, CLIPS))
        mel = torch.stack([studio.spectrogram(clip_sound(index)) for index in indices])
        with torch.no_grad():
            features = model.audio_features(mel)
        store[first : first + len(mel)] = features.bfloat16().view(torch.uint16).numpy()
        if first % 80 == 0:
            print(f"clip {first} {time.time() - begun:.0f} s", flush=True)
            store.flush()
    store.flush()


def clip_features(store: np.ndarray, indices: Sequence[int]) -> Tensor:
    """bfloat16 [n, 100, 1024] of some training clips."""
    return torch.from_numpy(np.stack([store[index] for index in indices])).view(torch.bfloat16)


def _optimizer(groups: list[tuple[nn.Module, float]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [{"params": list(m.parameters()), "lr": rate, "peak": rate} for m, rate in groups],
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )


def _set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    factor = min(1.0, (step + 1) / 50, max(0.02, (steps - step) / (0.5 * steps)))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def save(path: Path, state: dict[str, Any]) -> None:
    """Write so that an interruption never leaves half a file."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train_vision(
    model: SmolAVModel, tokenizer: Any, studio: Studio, path: Path, steps: int, seconds: float
) -> None:
    """Train tower, image and video projector on pictures; save every two minutes."""
    parts = {
        "vision_tower": model.vision_tower,
        "image_projector": model.image_projector,
        "video_projector": model.video_projector,
    }
    for part in parts.values():
        part.to(torch.float32).train()
    AttentionInterface.register("packed", packed_attention)
    model.vision_tower.config._attn_implementation = "packed"
    embeddings = model.language_model.embed_tokens.weight.detach().float()
    tables = [embeddings[word_ids(tokenizer, group)] for group in PATCH_GROUPS]
    optimizer = _optimizer(
        [
            (model.vision_tower, 5e-4),
            (model.image_projector, 1e-3),
            (model.video_projector, 1e-3),
        ]
    )
    step = _resume(path, parts, optimizer)
    lookups = [{word: i for i, word in enumerate(group)} for group in PATCH_GROUPS]
    begun = saved = time.time()
    while step < steps:
        rng = stream("train", "dense-picture", step)
        pictures = [sample_picture(rng) for _ in range(32)]
        pixels = normalised(np.stack([studio.drawer.picture(picture) for picture in pictures]))
        target = torch.tensor(
            [
                [
                    [lookup[word] for lookup, word in zip(lookups, label, strict=True)]
                    for label in patch_labels(picture)
                ]
                for picture in pictures
            ]
        )
        _set_rate(optimizer, step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            features = model.vision_features(pixels)
            image = model.image_projector(features)
            video = model.video_projector(model.pooled_frames(features))
        # A video token covers 2 x 2 patches: it is named after one of them that shows a thing.
        side = round(target.shape[1] ** 0.5)
        blocks = target.view(-1, side // 2, 2, side // 2, 2, 4).transpose(2, 3).flatten(3, 4)
        shown = (blocks[..., 0] > 0).float().argmax(-1, keepdim=True)
        pooled = blocks.gather(3, shown[..., None].expand(-1, -1, -1, -1, 4)).flatten(0, 3)
        loss = torch.zeros(())
        right = []
        for index, table in enumerate(tables):
            goal = target[..., index].flatten()
            rare = 0.15 if index == 0 else 0.5 if index == 1 else 1.0
            importance = 2.0 if index == 0 else 1.0 if index == 1 else 0.5
            loss = loss + importance * pointing_loss(image.flatten(0, 1), table, goal, rare)
            goal_video = pooled[..., index].flatten()
            loss = loss + importance * pointing_loss(video.flatten(0, 1), table, goal_video, rare)
            with torch.no_grad():
                thing = target[..., 0].flatten() > 0
                guess = F.normalize(image.float().flatten(0, 1), dim=-1) @ (
                    F.normalize(table, dim=-1).T
                )
                right.append((guess.argmax(-1) == goal)[thing].float().mean().item())
                if index == 0:
                    thing = pooled[..., 0].flatten() > 0
                    guess = video.float().flatten(0, 1) @ F.normalize(table, dim=-1).T
                    right.append((guess.argmax(-1) == goal_video)[thing].float().mean().item())
        loss = loss + 0.1 * (length_loss(image, embeddings) + length_loss(video, embeddings))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        step += 1
        over = time.time() - begun > seconds
        if step % 20 == 0 or over:
            names = ("name", "video name", "colour", "row", "column")
            shares = " ".join(f"{n} {100 * r:.0f}" for n, r in zip(names, right, strict=True))
            print(
                f"vision {step} loss {loss.item():.3f} {shares} {time.time() - begun:.0f} s",
                flush=True,
            )
        if time.time() - saved > 120 or step == steps or over:
            _save_parts(path, parts, optimizer, step)
            saved = time.time()
        if over:
            break


def train_audio(
    model: SmolAVModel, tokenizer: Any, store: np.ndarray, path: Path, steps: int
) -> None:
    """Train the audio projector on the encoded clips; the last 40 are for its score."""
    projector = model.audio_projector.to(torch.float32).train()
    parts = {"audio_projector": projector}
    embeddings = model.language_model.embed_tokens.weight.detach().float()
    table = embeddings[word_ids(tokenizer, SOUND_GROUP)]
    lookup = {word: i for i, word in enumerate(SOUND_GROUP)}
    tokens = model.config.audio_tokens
    known = int(np.flatnonzero(store[:, 0, :8].any(1))[-1]) + 1
    target = torch.tensor(
        [[lookup[w] for w in token_labels(clip_sound(i), tokens)] for i in range(known)]
    )
    optimizer = _optimizer([(projector, 1e-3)])
    step = _resume(path, parts, optimizer)
    held_out = range(known - 40, known)
    while step < steps:
        rng = stream("train", "dense-sound", step)
        chosen = rng.sample(range(known - 40), 24)
        _set_rate(optimizer, step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            features = projector(clip_features(store, chosen).float())
        goal = target[chosen].flatten()
        loss = pointing_loss(features.flatten(0, 1), table, goal, 0.2)
        loss = loss + 0.1 * length_loss(features, embeddings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if step % 100 == 0 or step == steps:
            with torch.no_grad():
                guess = projector(clip_features(store, held_out).float()).flatten(0, 1)
                guess = (guess @ F.normalize(table, dim=-1).T).argmax(-1)
                goal = target[held_out].flatten()
                words = goal >= 2 + len(SOUNDS)
                sounds = (goal > 0) & ~words
                right = guess == goal
            print(
                f"audio {step} loss {loss.item():.3f} words {right[words].float().mean():.2f} "
                f"sounds {right[sounds].float().mean():.2f}",
                flush=True,
            )
            _save_parts(path, parts, optimizer, step)


def _resume(path: Path, parts: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save_parts(
    path: Path, parts: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, step: int
) -> None:
    state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
    save(path, {**state, "optimizer": optimizer.state_dict(), "step": step})


def main() -> None:
    """Command line."""
    from benchmarks.smolav.build import raw_model

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=("sounds", "vision", "audio"))
    parser.add_argument("--folder", type=Path, default=Path("runs/smolav"))
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this time")
    arguments = parser.parse_args()
    folder = arguments.folder
    torch.manual_seed(0)
    model, tokenizer = raw_model(folder)
    studio = Studio(folder)
    clips = folder / "train-clips.npy"
    if arguments.stage == "sounds":
        encode_clips(model.model, studio, clips)
    elif arguments.stage == "vision":
        path = folder / "dense-vision.pt"
        train_vision(model.model, tokenizer, studio, path, arguments.steps, arguments.seconds)
    else:
        store = np.load(clips, mmap_mode="r")
        train_audio(model.model, tokenizer, store, folder / "dense-audio.pt", arguments.steps)


if __name__ == "__main__":
    main()
