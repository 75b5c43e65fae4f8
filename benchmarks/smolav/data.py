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

import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.smolav.layout import IGNORED, Layout, Pack
from benchmarks.smolav.media import Medium, Studio, stream
from benchmarks.smolav.model import SmolAVConfig, SmolAVForConditionalGeneration, SmolAVModel
from benchmarks.smolav.pictures import sample_picture, sample_video
from benchmarks.smolav.questions import ANSWERS, TASKS, Question, options, questions
from benchmarks.smolav.sounds import sample_sound
from benchmarks.smolav.words import SPOKEN

FOLDER = Path("runs/smolav")
"""Where `make smolav` puts the model (``model/``) and the emoji (``emoji/``)."""

KINDS = ("picture", "video", "sound", "both", "text")
CALIBRATION_KINDS = ("picture", "video", "sound", "picture", "both", "video", "sound", "text")
"""Kinds of medium, in the order of calibration samples."""

_PACKED = 6
_PATIENCE = 40


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
    """The processor of a folder, made once."""
    return SmolAVProcessor(folder)


def load(
    folder: Path = FOLDER, dtype: torch.dtype = torch.bfloat16
) -> tuple[SmolAVForConditionalGeneration, SmolAVProcessor]:
    """Loads the model and its processor.

    Raises:
        ValueError: The folder has no model.
    """
    processor = load_processor(folder)
    model = SmolAVForConditionalGeneration.from_pretrained(folder / "model", dtype=dtype)
    return model.eval(), processor


def sample_medium(rng: random.Random, kind: str) -> Medium:
    """Draws a medium of one of `KINDS`; for "both" the word said is shown in half of them."""
    if kind == "picture":
        return Medium(picture=sample_picture(rng))
    if kind == "video":
        return Medium(video=sample_video(rng))
    if kind == "sound":
        return Medium(sound=sample_sound(rng))
    if kind == "both":
        word = rng.choice(SPOKEN)
        shown = word if rng.random() < 0.5 else None
        return Medium(picture=sample_picture(rng, shown), sound=sample_sound(rng, word))
    return Medium()


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


def calibration_questions(
    n: int, seed: int = 0, kinds: Sequence[str] = CALIBRATION_KINDS
) -> list[tuple[Medium, Question]]:
    """What `calibration_batches` makes samples of.

    Raises:
        ValueError: n is not positive, or an unknown kind.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"kinds must be of {', '.join(KINDS)}; got {list(kinds)}")
    chosen = []
    for index in range(n):
        rng = stream("calibration", seed, index)
        kind = kinds[index % len(kinds)]
        medium = sample_medium(rng, kind)
        asked = questions(rng, medium)
        if kind == "both":
            asked = [question for question in asked if question.task in TASKS["both"]]
        task = rng.choice(sorted({question.task for question in asked}))
        chosen.append((medium, next(question for question in asked if question.task == task)))
    return chosen


def quotas(rng: random.Random, task: str, per_task: int) -> Counter[str]:
    """How often each answer of a task is asked for: equally often, to one."""
    answers = list(ANSWERS[task]) or [str(number) for number in range(10, 100)]
    rng.shuffle(answers)
    each, more = divmod(per_task, len(answers))
    return Counter({answer: each + (i < more) for i, answer in enumerate(answers)})


def choose_questions(
    seed: int, per_task: int, without: Collection[str] = ()
) -> list[tuple[int, Medium, Question]]:
    """Draws media until every task has its questions with balanced answers.

    Args:
        seed: Which ones.
        per_task: Questions of each task; fewer where text alone does not have so many. None of
            these is asked twice.
        without: Questions of text alone that are not asked.

    Returns:
        Number of the medium, medium and question; at most six share a medium. Questions of text
        alone have a number each.
    """
    order = stream("evaluation", seed, "quotas")
    left = {task: quotas(order, task, per_task) for task in ANSWERS}
    chosen: list[tuple[int, Medium, Question]] = []
    asked = set(without)
    group = 0
    # Kinds that can fill their tasks only by themselves come first.
    for kind in ("both", "video", "sound", "picture", "text"):
        modality = {"sound": "audio"}.get(kind, kind)
        most = 1 if kind == "text" else _PACKED
        wanted, rejected, index = most, 0, 0
        while any(left[task].total() for task in TASKS[modality]):
            rng = stream("evaluation", seed, kind, index)
            index += 1
            medium = sample_medium(rng, kind)
            useful: list[Question] = []
            taken: Counter[tuple[str, str]] = Counter()
            for question in questions(rng, medium):
                key = (question.task, question.answer)
                if kind == "text" and question.text in asked:
                    continue
                if left[question.task][question.answer] > taken[key] and len(useful) < most:
                    taken[key] += 1
                    useful.append(question)
            own = any(question.task in TASKS[modality] for question in useful)
            if len(useful) < wanted or not own:
                rejected += 1
                if rejected >= _PATIENCE and wanted > 1:
                    wanted, rejected = wanted - 1, 0
                if kind == "text" and rejected >= 25 * _PATIENCE:
                    break  # all have been asked
                continue
            rejected = 0
            for question in useful:
                left[question.task][question.answer] -= 1
                asked.add(question.text)
                chosen.append((group, medium, question))
            group += 1
    return chosen


def evaluation_items(
    seed: int = 0, per_task: int = 20, folder: Path = FOLDER, without: Collection[str] = ()
) -> list[EvaluationItem]:
    """The questions of an evaluation, answers balanced within each task.

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
            for first in range(0, len(indices), 4 * _PACKED):
                some = indices[first : first + 4 * _PACKED]
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
    """Outputs of the towers, before the projectors: "image", "video" and "audio"."""
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
