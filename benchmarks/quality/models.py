"""The models of the benchmark, behind one small interface.

A new model is one subclass of `QualityModel`, listed in `MODELS`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.base import QualityModel
from benchmarks.quality.cells import TaskItems
from benchmarks.quality.language import SmolLM2, SmolLM2Elsewhere

EVALUATION_SEED = 2
"""Methods are tuned on 1. Tables on 0 had shown where the preset was not ahead yet, so 2 is what no
choice was made on."""

CALIBRATION_SEEDS = (0, 1, 2)
"""Those that are run by default."""


def _questions(per_task: int, asked: object) -> str:
    """`QualityModel.items` of questions.

    Questions and what they are about are dataclasses of plain values, whose `repr` holds names and
    values of fields and no module.
    """
    digest = hashlib.sha256(repr(asked).encode()).hexdigest()[:12]
    return f"{per_task} questions a task, evaluation seed {EVALUATION_SEED}, {digest}"


class BoxModel(QualityModel):
    """The demo model: quick to run, and the effects of modalities show."""

    name = "box"
    title = "demo model (pictures and text)"
    settings = ("50", "60", "70", "2:4")
    quick = ("60", "70")
    samples = 32
    per_task = 30

    @property
    def items(self) -> str:
        return _questions(self.per_task, self._asked)

    @cached_property
    def _asked(self) -> dict[str, list[Any]]:
        from tamp_modifier.demo.evaluation import PICTURE_TASKS, TEXT_TASKS, evaluation_samples

        tasks = PICTURE_TASKS + TEXT_TASKS
        return {task: evaluation_samples(task, self.per_task, EVALUATION_SEED) for task in tasks}

    def weights(self) -> Path:
        from tamp_modifier.demo.evaluation import MODEL_FOLDER

        return MODEL_FOLDER / "model.safetensors"

    def check(self) -> None:
        if not self.weights().is_file():
            raise FileNotFoundError(f"the demo model is missing: {self.weights()}")

    @classmethod
    def kinds(cls) -> dict[str, tuple[str, ...]]:
        from tamp_modifier.demo.evaluation import PICTURE_TASKS, TEXT_TASKS

        return {"picture": PICTURE_TASKS, "text": TEXT_TASKS}

    def load(self) -> Any:
        from tamp_modifier.demo.evaluation import load_model

        return load_model(dtype=torch.float32)

    @cached_property
    def _processor(self) -> Any:
        from tamp_modifier.demo.evaluation import load_processor

        return load_processor()

    def processor(self) -> Any:
        return self._processor

    def batches(self, seed: int, samples: int) -> list[dict[str, torch.Tensor]]:
        from tamp_modifier.demo.evaluation import calibration_samples

        return calibration_samples(samples, seed, self._processor)

    def evaluate(self, model: Any) -> dict[str, TaskItems]:
        from tamp_modifier.demo.evaluation import evaluate_items

        answers = evaluate_items(model, self._processor, self.per_task, seed=EVALUATION_SEED)
        number: dict[str, int] = {}
        found = {}
        for task, (right, nll) in answers.items():
            asked = self._asked[task]
            # Short questions come more than once.
            group = [number.setdefault(repr(sample), len(number)) for sample in asked]
            ((_, often),) = Counter(sample.question.answer for sample in asked).most_common(1)
            found[task] = TaskItems.from_values(
                right.tolist(), [1] * len(right), nll.tolist(), group, often / len(asked)
            )
        return found


class SmolAV(QualityModel):
    """Pictures, video and sound on a real language model, see benchmarks/smolav."""

    name = "smolav"
    title = "SmolAV (pictures, video, sound and text)"
    settings = ("20", "30", "40", "50", "60", "2:4", "4:8")
    quick = ("30", "40")
    samples = 32
    only_seeds = CALIBRATION_SEEDS
    per_task = 40

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self._cache: dict[Any, dict[str, torch.Tensor]] = {}

    @property
    def items(self) -> str:
        from benchmarks.smolav.choice import choose_questions

        asked = choose_questions(EVALUATION_SEED, self.per_task, self._calibrated)
        return _questions(self.per_task, asked)

    @cached_property
    def _calibrated(self) -> set[str]:
        """Questions that calibration asks, so that none of text alone is asked again."""
        from benchmarks.smolav.choice import calibration_questions

        return {
            question.text
            for seed in self.only_seeds
            for _, question in calibration_questions(self.samples, seed)
        }

    @property
    def _folder(self) -> Path:
        from benchmarks.smolav.data import FOLDER

        return FOLDER

    def prepare(self, say: Callable[[str], None] = print) -> None:
        self.check()
        say(f"{self.name}: nothing to fetch")

    def weights(self) -> Path:
        return self._folder / "model" / "model.safetensors"

    def check(self) -> None:
        if not self.weights().is_file():
            raise FileNotFoundError(f"there is no SmolAV in {self._folder}; run `make smolav`")

    @classmethod
    def kinds(cls) -> dict[str, tuple[str, ...]]:
        from benchmarks.smolav.questions import TASKS

        every = [task for tasks in TASKS.values() for task in tasks]
        return {
            **TASKS,
            "all but text": tuple(task for task in every if task not in TASKS["text"]),
            "all but sum": tuple(task for task in every if task != "sum"),
        }

    def load(self) -> Any:
        from benchmarks.smolav.data import load

        return load(self._folder)[0].float()

    def processor(self) -> Any:
        from benchmarks.smolav.data import load_processor

        return load_processor(self._folder).tokenizer

    def batches(self, seed: int, samples: int) -> list[dict[str, torch.Tensor]]:
        from benchmarks.smolav.data import calibration_batches

        return calibration_batches(samples, seed, self._folder)

    @cached_property
    def _items(self) -> list[Any]:
        from benchmarks.smolav.data import evaluation_items

        return evaluation_items(EVALUATION_SEED, self.per_task, self._folder, self._calibrated)

    def evaluate(self, model: Any) -> dict[str, TaskItems]:
        from benchmarks.smolav.data import evaluate

        by_task: dict[str, list[Any]] = {}
        for score in evaluate(model, self._items, self._cache):
            by_task.setdefault(score.task, []).append(score)
        return {
            task: TaskItems.from_values(
                [score.correct for score in scores],
                [1] * len(scores),
                [score.nll for score in scores],
                [score.group for score in scores],
                sum(score.chance for score in scores) / len(scores),
            )
            for task, scores in by_task.items()
        }


MODELS: dict[str, type[QualityModel]] = {
    model.name: model for model in (BoxModel, SmolLM2, SmolLM2Elsewhere, SmolAV)
}
