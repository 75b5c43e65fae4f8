"""Score a model on picture and text questions, and make calibration samples.

Public functions (all offline, all from fixed seeds):

- ``load_model(folder=MODEL_FOLDER, dtype=torch.float32)``: the demo model.
- ``load_processor(folder=MODEL_FOLDER)``: its ``LlavaProcessor``.
- ``evaluate(model, processor, samples_per_task=100) -> Scores``: accuracy per task, their means
  over picture and over text tasks, and the negative log-likelihood of the right answers.
- ``quiz(processor, samples_per_task=100) -> Quiz``, ``seen(model, quiz)`` and
  ``score(model, processor, quiz) -> Scores``: the same in parts, for several models whose towers
  are alike.
- ``calibration_samples(n, seed=0) -> list[dict[str, Tensor]]``: one question a picture, with its
  answer: ``input_ids [1, S]``, ``attention_mask [1, S]``, ``pixel_values [1, 3, 96, 96]``.
- ``calibration_dataloader(n, seed=0) -> DataLoader``: the same, ready for
  ``llmcompressor.oneshot(dataset=...)``.
- ``evaluation_samples(task, n, seed=0) -> list[Sample]``: what `evaluate` asks.

Training, calibration and evaluation draw from random streams whose names begin with "train/",
"calibration/" and "evaluation/", so no seed of one is a seed of another. Text questions such as
"what is 3 plus 4 ?" come from small closed sets, so training has seen most of them; pictures are
always new.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tamp_modifier.demo.pictures import Scene, draw
from tamp_modifier.demo.processing import ASSISTANT, BOS, EOS, IMAGE, USER
from tamp_modifier.demo.questions import (
    PICTURE_TASKS,
    TEXT_TASKS,
    Question,
    balance_keys,
    balanced_picture_question,
    text_question,
)

MODEL_FOLDER = Path(__file__).parent / "model"
"""Where the demo model lies."""

Quiz = dict[str, list[dict[str, Tensor]]]
"""Task -> batches of its questions, as `encode` or `seen` make them."""


@dataclass(frozen=True)
class Sample:
    """A question with its picture (None for a text question)."""

    question: Question
    scene: Scene | None


@dataclass(frozen=True)
class Scores:
    """Result of `evaluate`.

    Attributes:
        tasks: Share of exactly right answers per task, 0 to 1.
        nll: Mean negative log-likelihood per answer token, in nats, per task.
        samples_per_task: Questions per task.
        seconds: Wall time.
    """

    tasks: dict[str, float]
    nll: dict[str, float]
    samples_per_task: int
    seconds: float

    @property
    def picture(self) -> float:
        """Mean accuracy over the picture tasks."""
        return _mean(self.tasks, PICTURE_TASKS)

    @property
    def text(self) -> float:
        """Mean accuracy over the text tasks."""
        return _mean(self.tasks, TEXT_TASKS)

    @property
    def picture_nll(self) -> float:
        """Mean negative log-likelihood over the picture tasks, in nats per answer token."""
        return _mean(self.nll, PICTURE_TASKS)

    @property
    def text_nll(self) -> float:
        """Mean negative log-likelihood over the text tasks, in nats per answer token."""
        return _mean(self.nll, TEXT_TASKS)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            **asdict(self),
            "picture": self.picture,
            "text": self.text,
            "picture_nll": self.picture_nll,
            "text_nll": self.text_nll,
        }


def _mean(values: dict[str, float], names: Sequence[str]) -> float:
    present = [values[name] for name in names if name in values]
    return sum(present) / len(present) if present else float("nan")


def load_model(folder: str | Path = MODEL_FOLDER, dtype: torch.dtype = torch.float32) -> Any:
    """Load the demo model, in evaluation mode.

    Args:
        folder: A folder that ``save_pretrained`` wrote.
        dtype: Type of the weights; they are stored in bfloat16.

    Returns:
        A ``LlavaForConditionalGeneration``.
    """
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, local_files_only=True
    ).eval()


def load_processor(folder: str | Path = MODEL_FOLDER) -> Any:
    """Load the processor (tokenizer, picture processor, chat template) of the demo model."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder, local_files_only=True)


def evaluation_samples(task: str, n: int, seed: int = 0) -> list[Sample]:
    """Make the questions of one task, with balanced answers.

    Args:
        task: A name of `PICTURE_TASKS` or `TEXT_TASKS`.
        n: How many.
        seed: Which evaluation set.

    Returns:
        ``n`` samples; the first ``n`` of a longer list with the same seed.

    Raises:
        ValueError: An unknown task.
    """
    if task not in PICTURE_TASKS + TEXT_TASKS:
        known = ", ".join(PICTURE_TASKS + TEXT_TASKS)
        raise ValueError(f"task: {task!r} is unknown; known are {known}")
    rng = random.Random(f"evaluation/{seed}/{task}")
    if task in TEXT_TASKS:
        return [Sample(text_question(task, rng), None) for _ in range(n)]
    return _balanced(task, n, rng)


def _balanced(task: str, n: int, rng: random.Random) -> list[Sample]:
    samples = []
    order: list[str] = []
    for _ in range(n):
        if not order:
            order = list(balance_keys(task))
            rng.shuffle(order)
        scene, question = balanced_picture_question(task, rng, order.pop())
        samples.append(Sample(question, scene))
    return samples


def encode(samples: Sequence[Sample], processor: Any) -> dict[str, Tensor]:
    """Run the processor on samples with their answers.

    Args:
        samples: All with a picture, or all without.
        processor: From `load_processor`.

    Returns:
        ``input_ids`` and ``attention_mask`` [n, S], padded on the right, and ``pixel_values``
        [n, 3, 96, 96] where the samples have pictures.
    """
    texts, pictures = [], []
    for sample in samples:
        image = f"{IMAGE} " if sample.scene is not None else ""
        question = sample.question
        texts.append(f"{BOS} {USER} {image}{question.question} {ASSISTANT} {question.answer} {EOS}")
        if sample.scene is not None:
            pictures.append(draw(sample.scene))
    if not pictures:
        return dict(processor.tokenizer(texts, padding=True, return_tensors="pt"))
    return dict(processor(text=texts, images=pictures, padding=True, return_tensors="pt"))


def quiz(
    processor: Any,
    samples_per_task: int = 100,
    *,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 50,
) -> Quiz:
    """Make all kinds of questions, encoded.

    Args:
        processor: From `load_processor`.
        samples_per_task: Questions per task, at least 1.
        tasks: Names of `PICTURE_TASKS` and `TEXT_TASKS`; None means all.
        seed: Which evaluation set.
        batch_size: Questions per batch.

    Returns:
        Batches of every task.

    Raises:
        ValueError: An unknown task, or fewer than one sample.
    """
    if samples_per_task < 1:
        raise ValueError(f"samples_per_task: {samples_per_task} is too small; at least 1")
    asked = {}
    for task in tasks if tasks is not None else PICTURE_TASKS + TEXT_TASKS:
        samples = evaluation_samples(task, samples_per_task, seed)
        starts = range(0, len(samples), batch_size)
        asked[task] = [encode(samples[i : i + batch_size], processor) for i in starts]
    return asked


@torch.inference_mode()
def seen(model: Any, asked: Quiz) -> Quiz:
    """Look at every picture once, for models that differ in their decoder layers only.

    Args:
        model: One of these models.
        asked: From `quiz`.

    Returns:
        The same questions with ``inputs_embeds`` [n, S, hidden] in place of ``pixel_values``, what
        the decoder gets. Any of the models gives the same answers to them.
    """

    def look(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if "pixel_values" not in batch:
            return batch
        ids = batch["input_ids"]
        pixels = batch["pixel_values"].to(model.dtype)
        found = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        place = (ids == model.config.image_token_id)[..., None]
        embeds = model.get_input_embeddings()(ids).masked_scatter(place, torch.cat(found))
        kept = {name: value for name, value in batch.items() if name != "pixel_values"}
        return kept | {"inputs_embeds": embeds}

    return {task: [look(batch) for batch in batches] for task, batches in asked.items()}


@torch.inference_mode()
def _answer(model: Any, batch: dict[str, Tensor], assistant: int) -> tuple[Tensor, Tensor]:
    """Exact match [n] and negative log-likelihood per answer token [n].

    With teacher forcing, every answer token (and ``<eos>``) is the most likely one if and only if
    greedy decoding gives exactly this answer, so one forward pass replaces decoding.
    """
    batch = {name: value.to(model.device) for name, value in batch.items()}
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    for name in {"pixel_values", "inputs_embeds"} & batch.keys():
        batch[name] = batch[name].to(model.dtype)
    if "inputs_embeds" in batch:
        del batch["input_ids"]
    started = (ids == assistant).cumsum(1) > 0  # from <assistant> on
    target = started[:, :-1] & mask[:, 1:]  # positions whose next token is an answer token
    keep = int(target.any(0).nonzero()[0])  # nothing before it is scored
    logits = model(**batch, logits_to_keep=ids.shape[1] - keep, use_cache=False).logits
    logits, target, wanted = logits[:, :-1].float(), target[:, keep:], ids[:, keep + 1 :]
    right = (logits.argmax(-1) == wanted) | ~target
    nll = -logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
    nll = (nll * target).sum(1) / target.sum(1)
    return right.all(1).cpu(), nll.cpu()


def answers(model: Any, processor: Any, asked: Quiz) -> dict[str, tuple[Tensor, Tensor]]:
    """Let a model answer, and tell of every single question.

    Args:
        model: A ``LlavaForConditionalGeneration`` that knows the words of the processor.
        processor: From `load_processor`.
        asked: From `quiz` or `seen`.

    Returns:
        Task -> exactly right or not, bool [n], and negative log-likelihood per answer token in
        nats, fp32 [n].
    """
    training = model.training
    model.eval()
    assistant = processor.tokenizer.convert_tokens_to_ids(ASSISTANT)
    found = {}
    for task, batches in asked.items():
        parts = [_answer(model, batch, assistant) for batch in batches]
        found[task] = (
            torch.cat([right for right, _ in parts]),
            torch.cat([nll for _, nll in parts]),
        )
    model.train(training)
    return found


def score(model: Any, processor: Any, asked: Quiz) -> Scores:
    """Count the exactly right answers of a model; arguments as of `answers`."""
    begin = time.perf_counter()
    found = answers(model, processor, asked)
    accuracy = {task: right.float().mean().item() for task, (right, _) in found.items()}
    likelihood = {task: nll.mean().item() for task, (_, nll) in found.items()}
    count = max(len(right) for right, _ in found.values())
    return Scores(accuracy, likelihood, count, time.perf_counter() - begin)


def evaluate(model: Any, processor: Any, samples_per_task: int = 100, **options: Any) -> Scores:
    """Ask a model all kinds of questions and count the exactly right answers.

    Args:
        model: A ``LlavaForConditionalGeneration`` that knows the words of the processor.
        processor: From `load_processor`.
        samples_per_task: Questions per task, at least 1.
        options: ``tasks``, ``seed`` and ``batch_size`` of `quiz`.

    Returns:
        Accuracy and negative log-likelihood per task.

    Raises:
        ValueError: An unknown task, or fewer than one sample.
    """
    return score(model, processor, quiz(processor, samples_per_task, **options))


def evaluate_items(
    model: Any, processor: Any, samples_per_task: int = 100, **options: Any
) -> dict[str, tuple[Tensor, Tensor]]:
    """Ask what `evaluate` asks, and tell of every single question, as `answers` does."""
    return answers(model, processor, quiz(processor, samples_per_task, **options))


def calibration_samples(
    n: int, seed: int = 0, processor: Any | None = None
) -> list[dict[str, Tensor]]:
    """Make calibration data: pictures with one question and its answer each.

    Args:
        n: How many; the picture tasks take turns.
        seed: Which calibration set.
        processor: From `load_processor`; None loads it.

    Returns:
        Per sample ``input_ids [1, S]``, ``attention_mask [1, S]`` and
        ``pixel_values [1, 3, 96, 96]``: 144 image tokens and at most 20 text tokens.
    """
    processor = load_processor() if processor is None else processor
    encoded = []
    for index in range(n):
        rng = random.Random(f"calibration/{seed}/{index}")
        task = PICTURE_TASKS[index % len(PICTURE_TASKS)]
        wanted = rng.choice(balance_keys(task))
        scene, question = balanced_picture_question(task, rng, wanted)
        encoded.append(encode([Sample(question, scene)], processor))
    return encoded


def _collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    (sample,) = samples
    return sample


def calibration_dataloader(
    n: int, seed: int = 0, processor: Any | None = None
) -> DataLoader[dict[str, Tensor]]:
    """`calibration_samples` as a DataLoader of single samples, in fixed order."""
    samples: Any = calibration_samples(n, seed, processor)
    return DataLoader(samples, batch_size=1, shuffle=False, collate_fn=_collate)
