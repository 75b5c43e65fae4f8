"""Training rows: a picture, and many questions about it in one sequence.

A row is ``<bos> <user>`` and 144 image tokens, then blocks of question, answer and ``<eos>``.
Each block sees the picture and itself but no other block, and its positions start right after the
picture. So every block is computed exactly as if it were alone with the picture, which is how the
model is evaluated, while the picture is computed once. Text questions are blocks that do not see
the picture and start at position 0.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tamp_modifier.demo.pictures import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    ORDER,
    ROWS,
    SIZE,
    TEXTURES,
    Scene,
    draw,
    patch_words,
    sample_scene,
)
from tamp_modifier.demo.processing import IMAGE_TOKENS, WordIds
from tamp_modifier.demo.questions import (
    KINDS,
    PICTURE_TASKS,
    TEXT_TASKS,
    Question,
    caption,
    picture_question,
    text_question,
)

PREFIX = 2 + IMAGE_TOKENS
CHUNK = 40
"""Text tokens that may see each other; the longest question with its answer is a caption of 38."""

PATCH_GROUPS = (
    (*KINDS, "nothing"),
    ("shape", "letter", "digit", "number", "nothing"),
    (*COLOURS, *BACKGROUNDS),
    ROWS,
    COLUMNS,
    (*ORDER, *TEXTURES, "nothing"),
)
"""The words among which each entry of `patch_words` chooses."""

TASK_WEIGHTS = {
    "what": 0.6,
    "where": 3.0,
    "count": 3.0,
    "colour": 1.2,
    "relation": 2.5,
    "presence": 3.0,
    "background": 0.3,
    "number": 4.0,  # only some pictures have one
    "category": 0.6,
}
QUESTION_WEIGHT = 0.1
CAPTION_WEIGHT = 0.5
TEXT_SHARE = 0.1
NUMBER_SHARE = 0.4
CAPTION_SHARE = 0.3

Batch = dict[str, Tensor]


def pixels(scenes: list[Scene]) -> Tensor:
    """Pictures as the image processor gives them, [n, 3, 96, 96] in -1 to 1."""
    stacked = np.stack([np.asarray(draw(scene)) for scene in scenes])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def patch_targets(scenes: list[Scene]) -> Tensor:
    """Index into each of `PATCH_GROUPS` for each patch, [n, 144, 6]."""
    lookup = [{word: index for index, word in enumerate(group)} for group in PATCH_GROUPS]
    return torch.tensor(
        [
            [[table[word] for table, word in zip(lookup, entry, strict=True)] for entry in words]
            for words in map(patch_words, scenes)
        ]
    )


def _ease(scene: Scene, hardness: float, rng: random.Random) -> Scene:
    """Move a scene towards centred objects of one size on a plain ground (hardness 0)."""
    cell = SIZE / 3

    def near(value: float, centre: float) -> float:
        return centre + hardness * (value - centre)

    items = tuple(
        replace(
            item,
            x=near(item.x, (item.column + 0.5) * cell),
            y=near(item.y, (item.row + 0.5) * cell),
            radius=near(item.radius, 13.5),
            turn=hardness * item.turn,
        )
        for item in scene.items
    )
    texture = scene.texture if rng.random() < hardness else "plain"
    return replace(scene, items=items, texture=texture, noise=hardness * scene.noise)


def patch_batch(seed: int, step: int, size: int, hardness: float = 1.0) -> Batch:
    """Full pictures and patch targets for the tower alone."""
    rng = random.Random(f"train/{seed}/patches/{step}")
    scenes = [_ease(sample_scene(rng, full=True), hardness, rng) for _ in range(size)]
    return {"pixel_values": pixels(scenes), "patch_targets": patch_targets(scenes)}


def _questions(scene: Scene, rng: random.Random) -> list[Question]:
    """More than enough different questions for a row, in random order."""
    found = [caption(scene)] if rng.random() < CAPTION_SHARE else []
    weights = [TASK_WEIGHTS[task] for task in PICTURE_TASKS]
    for _ in range(40):
        if rng.random() < TEXT_SHARE:
            found.append(text_question(rng.choice(TEXT_TASKS), rng))
        else:
            task = rng.choices(PICTURE_TASKS, weights)[0]
            question = picture_question(task, scene, rng)
            if question is not None and question not in found:
                found.append(question)
    return found


def question_batch(words: WordIds, seed: int, step: int, size: int, chunks: int) -> Batch:
    """Rows of packed questions.

    Args:
        words: Vocabulary.
        seed: Seed of the training run.
        step: Step of the training run.
        size: Rows.
        chunks: Chunks of `CHUNK` text tokens after the picture; no question crosses from one into
            the next, and what is left over is padding.

    Returns:
        ``pixel_values`` [size, 3, 96, 96], ``patch_targets`` [size, 144, 6], with T = chunks *
        `CHUNK` and S = 146 + T ``input_ids``, ``position_ids``, ``weights`` (of each token as a
        target) [size, S], and ``attention_mask`` [size, 1, T, 146 + `CHUNK`], which is added to
        the scores of a text token with the picture and its own chunk.
    """
    length = PREFIX + chunks * CHUNK
    ids = torch.full((size, length), words.pad)
    positions = torch.zeros((size, length), dtype=torch.long)
    weights = torch.zeros((size, length))
    blocks = torch.zeros((size, length), dtype=torch.long)
    scenes = []
    for row in range(size):
        rng = random.Random(f"train/{seed}/questions/{step}/{row}")
        scene = sample_scene(rng, number=rng.random() < NUMBER_SHARE)
        scenes.append(scene)
        ids[row, :2] = torch.tensor([words.bos, words.user])
        ids[row, 2:PREFIX] = words.image
        positions[row, :PREFIX] = torch.arange(PREFIX)
        free = [CHUNK] * chunks
        for block, question in enumerate(_questions(scene, rng), start=1):
            text_only = question.task in TEXT_TASKS
            prompt = words.prompt(question.question, picture=False)
            prompt = prompt if text_only else prompt[2:]
            block_ids = prompt + words.answer(question.answer)
            fitting = [chunk for chunk in range(chunks) if free[chunk] >= len(block_ids)]
            if not fitting:
                continue
            start = PREFIX + (fitting[0] + 1) * CHUNK - free[fitting[0]]
            free[fitting[0]] -= len(block_ids)
            answered, end = start + len(prompt), start + len(block_ids)
            ids[row, start:end] = torch.tensor(block_ids)
            first = 0 if text_only else PREFIX
            positions[row, start:end] = torch.arange(first, first + end - start)
            blocks[row, start:end] = -block if text_only else block
            weights[row, start + (2 if text_only else 1) : answered] = QUESTION_WEIGHT
            weights[row, answered:end] = CAPTION_WEIGHT if question.task == "caption" else 1.0
    blocks = blocks[:, PREFIX:].reshape(size, chunks, CHUNK)
    same = blocks[..., :, None] == blocks[..., None, :]
    own = (same & torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()).flatten(1, 2)
    picture = (blocks > 0).flatten(1)[..., None].expand(-1, -1, PREFIX)
    seen = torch.cat([picture, own], -1)
    hidden = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(~seen, -30000.0)
    return {
        "pixel_values": pixels(scenes),
        "patch_targets": patch_targets(scenes),
        "input_ids": ids,
        "position_ids": positions,
        "weights": weights,
        "attention_mask": hidden[:, None],
    }
