"""What a benchmark needs of SmolAV: the model, calibration samples, evaluation items, scores.

- ``load(folder) -> (model, processor)``
- ``calibration_batches(n, seed) -> list[dict[str, Tensor]]``
- ``evaluation_items(seed, per_task) -> list[EvaluationItem]``
- ``evaluate(model, items, cache) -> list[Score]``

Training, calibration and evaluation draw from random streams of different names, so no seed of one
is a seed of another. Words, emoji and kinds of sound are the same everywhere; pictures, videos and
clips (voice, speed, pitch, order, noise) are always new.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.smolav.choice import (
    CALIBRATION_KINDS,
    PACKED,
    calibration_questions,
    choose_questions,
)
from benchmarks.smolav.layout import IGNORED, Layout, Pack
from benchmarks.smolav.media import Medium, Studio
from benchmarks.smolav.model import SmolAVConfig, SmolAVForConditionalGeneration, SmolAVModel
from benchmarks.smolav.questions import ANSWERS, Question, options

FOLDER = Path("runs/smolav")
"""Where `make smolav` puts the model (``model/``) and the emoji (``emoji/``)."""


class SmolAVProcessor:
    """Tokenizer, layout and studio of one model folder.

    Args:
        folder: What `make smolav` made.

    Raises:
        ValueError: The folder has no model.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        if not (folder / "model" / "config.json").is_file():
            raise ValueError(f"{folder} has no SmolAV model; run `make smolav`")
        self.folder = folder
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model")
        self.config = SmolAVConfig.from_pretrained(folder / "model")
        self.layout = Layout(self.tokenizer, self.config)
        self.studio = Studio(folder)

    def inputs(self, medium: Medium, ids: Sequence[int]) -> dict[str, Tensor]:
        """Model inputs of one sample: ids, mask and media, batch of one."""
        input_ids = torch.tensor([list(ids)])
        sample = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        return {**sample, **self.studio.inputs(medium)}


@dataclass(frozen=True)
class EvaluationItem:
    """One question.

    Attributes:
        question: Question, answer and task.
        medium: What it is about; several items share one.
        group: Number of the medium, for statistics that respect that items share it.
        processor: How to make tensors of it.
    """

    question: Question
    medium: Medium
    group: int
    processor: SmolAVProcessor

    @property
    def task(self) -> str:
        """A key of `questions.ANSWERS`."""
        return self.question.task

    @property
    def answer(self) -> str:
        """The right answer."""
        return self.question.answer

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Model inputs of the prompt, without the answer."""
        layout = self.processor.layout
        ids = layout.prefix(self.medium) + layout.question(self.question)
        return self.processor.inputs(self.medium, ids)


@dataclass(frozen=True)
class Score:
    """How a model did on one item.

    Attributes:
        task: The item's task.
        group: Number of the item's medium.
        chance: Of guessing the answer among those that the question leaves.
        correct: Greedy decoding gives the answer and ends it.
        word: Greedy decoding gives the answer, whether or not it ends there.
        choice: Among all answers of the task, the right one begins most likely ("reading": as
            `word`).
        nll: Mean negative log-likelihood of the answer's tokens and its end, in nats.
    """

    task: str
    group: int
    chance: float
    correct: bool
    word: bool
    choice: bool
    nll: float


@lru_cache(maxsize=4)
def load_processor(folder: Path = FOLDER) -> SmolAVProcessor:
    """Return the processor of a folder, made once."""
    return SmolAVProcessor(folder)


def load(
    folder: Path = FOLDER, dtype: torch.dtype = torch.bfloat16
) -> tuple[SmolAVForConditionalGeneration, SmolAVProcessor]:
    """Load the model and its processor.

    Raises:
        ValueError: The folder has no model.
    """
    processor = load_processor(folder)
    model = SmolAVForConditionalGeneration.from_pretrained(folder / "model", dtype=dtype)
    return model.eval(), processor


def calibration_batches(
    n: int, seed: int = 0, folder: Path = FOLDER, kinds: Sequence[str] = CALIBRATION_KINDS
) -> list[dict[str, Tensor]]:
    """Calibration samples: one question with its answer about one medium, batches of one.

    Args:
        n: Number of samples.
        seed: Which samples.
        folder: What `make smolav` made.
        kinds: Kinds of medium, taken in turn.

    Returns:
        Model inputs; media that a sample does not have are left out.

    Raises:
        ValueError: n is not positive, an unknown kind, or no model.
    """
    asked = calibration_questions(n, seed, kinds)
    processor = load_processor(folder)
    layout = processor.layout
    return [
        processor.inputs(
            medium, layout.prefix(medium) + layout.question(question) + layout.answer(question)
        )
        for medium, question in asked
    ]


def evaluation_items(
    seed: int = 0, per_task: int = 20, folder: Path = FOLDER, without: Collection[str] = ()
) -> list[EvaluationItem]:
    """Return the questions of an evaluation, answers balanced within each task.

    Args:
        seed: Which questions; tune on one seed and report on others.
        per_task: Questions of each of the 19 tasks, see `choose_questions`.
        folder: What `make smolav` made.
        without: Questions of text alone that are not asked.

    Raises:
        ValueError: per_task is not positive, or no model.
    """
    if per_task < 1:
        raise ValueError(f"per_task must be at least 1; got {per_task}")
    processor = load_processor(folder)
    return [
        EvaluationItem(question, medium, group, processor)
        for group, medium, question in choose_questions(seed, per_task, without)
    ]


def evaluate(
    model: SmolAVForConditionalGeneration,
    items: Sequence[EvaluationItem],
    cache: dict[Medium, dict[str, Tensor]] | None = None,
) -> list[Score]:
    """Scores a model, one forward pass for all items that share a medium.

    Greedy decoding gives an answer exactly when every token of it is the most likely one after the
    tokens before it, so a pass over the right answers tells both exact match and likelihood.

    Args:
        model: The model, pruned or not.
        items: Of one folder.
        cache: Outputs of the towers by medium. Give the same dict to every call with the same
            towers and they run once; leave it out for a model whose towers were changed.

    Returns:
        One score per item, in their order.
    """
    groups: dict[Medium, list[int]] = {}
    for index, item in enumerate(items):
        # Text alone shares no medium: the packs would be as long as there are questions.
        groups.setdefault(item.medium, []).append(index)
    scores: dict[int, Score] = {}
    with torch.no_grad():
        for medium, indices in groups.items():
            for first in range(0, len(indices), 4 * PACKED):
                some = indices[first : first + 4 * PACKED]
                for index, score in zip(
                    some, _score(model, medium, [items[i] for i in some], cache), strict=True
                ):
                    scores[index] = score
    return [scores[index] for index in range(len(items))]


def _score(
    model: SmolAVForConditionalGeneration,
    medium: Medium,
    items: list[EvaluationItem],
    cache: dict[Medium, dict[str, Tensor]] | None,
) -> list[Score]:
    processor = items[0].processor
    pack = processor.layout.pack(medium, [item.question for item in items])
    features = cache.get(medium) if cache is not None else None
    if features is None:
        features = tower_features(model.model, processor.studio, medium)
        if cache is not None:
            cache[medium] = features
    hidden = model.model.language_model(
        inputs_embeds=pack_embeds(model.model, features, pack),
        attention_mask=pack.visible[None, None],
        position_ids=pack.position_ids[None],
        use_cache=False,
    ).last_hidden_state[0, len(pack.prefix) :]
    hidden = hidden.view(*pack.chunks.shape, -1)[:, :-1]
    goals = pack.labels[:, 1:]
    scores = []
    for item, states, goal in zip(items, hidden, goals, strict=True):
        asked = goal != IGNORED
        logits = model.lm_head(states[asked]).float()
        tokens = goal[asked]
        nll = torch.nn.functional.cross_entropy(logits, tokens).item()
        right = (logits.argmax(-1) == tokens).tolist()
        word = all(right[:-1])
        choices = _first_tokens(processor, item.task)
        best = int(logits[0, choices].argmax()) if len(choices) else -1
        choice = int(choices[best]) == int(tokens[0]) if len(choices) else word
        chance = 1 / len(options(item.question))
        scores.append(Score(item.task, item.group, chance, word and right[-1], word, choice, nll))
    return scores


@lru_cache(maxsize=64)
def _first_tokens(processor: SmolAVProcessor, task: str) -> Tensor:
    """First token of every answer of a task, int64 [answers]."""
    questions_of = [Question(task, "", answer) for answer in ANSWERS[task]]
    return torch.tensor(
        [processor.layout.answer(question)[0] for question in questions_of], dtype=torch.long
    )


def tower_features(model: SmolAVModel, studio: Studio, medium: Medium) -> dict[str, Tensor]:
    """Return outputs of the towers, before the projectors: "image", "video" and "audio"."""
    inputs = studio.inputs(medium)
    features = {}
    if "pixel_values" in inputs:
        features["image"] = model.vision_features(inputs["pixel_values"])
    if "pixel_values_videos" in inputs:
        frames = model.vision_features(inputs["pixel_values_videos"][0])
        features["video"] = model.pooled_frames(frames)
    if "input_features" in inputs:
        features["audio"] = model.audio_features(inputs["input_features"])
    return features


def pack_embeds(model: SmolAVModel, features: dict[str, Tensor], pack: Pack) -> Tensor:
    """Embeddings of a pack, media in their places, [1, S, hidden]."""
    ids = pack.input_ids
    embeds = model.get_input_embeddings()(ids)
    for name, values in features.items():
        projector = getattr(model, f"{name}_projector")
        token = getattr(model.config, f"{name}_token_id")
        projected = projector(values.to(projector.linear_1.weight.dtype))
        embeds = embeds.index_put((ids == token,), projected[0].to(embeds.dtype))
    return embeds[None]
