"""Score a model on picture and text questions, and make calibration samples.

Public functions (all offline, all from fixed seeds):

- ``load_model(folder=MODEL_FOLDER, dtype=torch.float32)``: the model in the box.
- ``load_processor(folder=MODEL_FOLDER)``: its ``LlavaProcessor``.
- ``evaluate(model, processor, samples_per_task=100) -> Scores``: accuracy per task, their means
  over picture and over text tasks, and the negative log-likelihood of the right answers.
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
"""Where the model in the box lies."""


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
    """Load the model in the box, in evaluation mode.

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
    """Load the processor (tokenizer, picture processor, chat template) of the model in the box."""
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


@torch.inference_mode()
def _score(model: Any, batch: dict[str, Tensor], assistant: int) -> tuple[Tensor, Tensor]:
    """Exact match [n] and negative log-likelihood per answer token [n].

    With teacher forcing, every answer token (and ``<eos>``) is the most likely one if and only if
    greedy decoding gives exactly this answer, so one forward pass replaces decoding.
    """
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in batch.items()}
    if "pixel_values" in batch:
        batch["pixel_values"] = batch["pixel_values"].to(next(model.parameters()).dtype)
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    started = (ids == assistant).cumsum(1) > 0  # from <assistant> on
    target = started[:, :-1] & mask[:, 1:]  # positions whose next token is an answer token
    keep = int(target.any(0).nonzero()[0])  # nothing before it is scored
    logits = model(**batch, logits_to_keep=ids.shape[1] - keep, use_cache=False).logits
    logits, target, wanted = logits[:, :-1].float(), target[:, keep:], ids[:, keep + 1 :]
    right = (logits.argmax(-1) == wanted) | ~target
    nll = -logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
    nll = (nll * target).sum(1) / target.sum(1)
    return right.all(1).cpu(), nll.cpu()


def evaluate(
    model: Any,
    processor: Any,
    samples_per_task: int = 100,
    *,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 50,
) -> Scores:
    """Ask a model all kinds of questions and count the exactly right answers.

    Args:
        model: A ``LlavaForConditionalGeneration`` that knows the words of the processor.
        processor: From `load_processor`.
        samples_per_task: Questions per task, at least 1.
        tasks: Names of `PICTURE_TASKS` and `TEXT_TASKS`; None means all.
        seed: Which evaluation set.
        batch_size: Questions per forward pass.

    Returns:
        Accuracy and negative log-likelihood per task.

    Raises:
        ValueError: An unknown task, or fewer than one sample.
    """
    begin = time.perf_counter()
    answers = evaluate_items(
        model, processor, samples_per_task, tasks=tasks, seed=seed, batch_size=batch_size
    )
    accuracy = {task: right.float().mean().item() for task, (right, _) in answers.items()}
    likelihood = {task: nll.mean().item() for task, (_, nll) in answers.items()}
    return Scores(accuracy, likelihood, samples_per_task, time.perf_counter() - begin)


def evaluate_items(
    model: Any,
    processor: Any,
    samples_per_task: int = 100,
    *,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 50,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Ask what `evaluate` asks, and tell of every single question.

    Args:
        model: A ``LlavaForConditionalGeneration`` that knows the words of the processor.
        processor: From `load_processor`.
        samples_per_task: Questions per task, at least 1.
        tasks: Names of `PICTURE_TASKS` and `TEXT_TASKS`; None means all.
        seed: Which evaluation set.
        batch_size: Questions per forward pass.

    Returns:
        Task -> exactly right or not, bool [n], and negative log-likelihood per answer token in
        nats, fp32 [n].

    Raises:
        ValueError: An unknown task, or fewer than one sample.
    """
    if samples_per_task < 1:
        raise ValueError(f"samples_per_task: {samples_per_task} is too small; at least 1")
    training = model.training
    model.eval()
    assistant = processor.tokenizer.convert_tokens_to_ids(ASSISTANT)
    answers = {}
    for task in tasks if tasks is not None else PICTURE_TASKS + TEXT_TASKS:
        samples = evaluation_samples(task, samples_per_task, seed)
        parts = [
            _score(model, encode(samples[start : start + batch_size], processor), assistant)
            for start in range(0, len(samples), batch_size)
        ]
        answers[task] = (
            torch.cat([right for right, _ in parts]),
            torch.cat([nll for _, nll in parts]),
        )
    model.train(training)
    return answers


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
