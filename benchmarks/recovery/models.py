"""The models of this benchmark: those of the Pareto tables, with data to train on.

SmolLM2 is asked a kind of text more, code, which neither calibration nor training sees, as little
as the constitution. The identity of its cells is therefore another than in `benchmarks.quality`;
the other texts and their windows are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import torch

from benchmarks.quality import texts
from benchmarks.quality.language import SmolLM2WithTexts
from benchmarks.quality.models import SmolAV
from benchmarks.quality.smollm2 import CALIBRATION_FILES
from benchmarks.recovery.texts import training
from tamp_modifier.data import Encoded

TRAINING_SEED = 100
"""Of the samples of training; calibration has small numbers."""


class TrainableModel(Protocol):
    """A `QualityModel` in fp32 that also has data to train on."""

    def load_stored(self) -> Any:
        """Return a fresh dense model as it is stored, in bfloat16."""

    def training_samples(self) -> Sequence[Encoded]:
        """Return what is trained on, in random order, disjoint from what is asked."""

    @property
    def told(self) -> str:
        """What is trained on, in a few words; part of a cell's recipe."""

    def placeholders(self) -> dict[str, list[int]]:
        """Return ids of media tokens by modality."""


class RecoverySmolLM2(SmolLM2WithTexts):
    """SmolLM2 with windows of prose to train on, and code as a kind of text that it never sees."""

    @property
    def items(self) -> str:
        found = texts.digest(self.texts_folder / f"{name}.py" for name in texts.MODULES)
        return f"{super().items}; middles of {len(texts.MODULES)} modules of Python, {found}"

    @classmethod
    def kinds(cls) -> dict[str, tuple[str, ...]]:
        return {"never seen": ("constitution", "code"), "of a kind seen": ("fortunes",)}

    def texts(self) -> dict[str, torch.Tensor]:
        return {**super().texts(), "code": texts.code(self.texts_folder, self._tokenizer)}

    def load_stored(self) -> Any:
        """See `TrainableModel`."""
        return self.load().bfloat16()

    def training_samples(self) -> Sequence[Encoded]:
        """See `TrainableModel`."""
        unseen = torch.cat(list(self.texts().values()))
        rows = training(
            self.base / "texts", self.texts_folder, self._tokenizer, unseen, TRAINING_SEED
        )
        return [
            Encoded(f"window {i}", {"input_ids": row[None], "attention_mask": torch.ones(1, 256)})
            for i, row in enumerate(rows)
        ]

    @property
    def told(self) -> str:
        """See `TrainableModel`."""
        found = texts.digest(self.texts_folder / f"{name}.txt" for name in texts.PROSE)
        return f"windows of {', '.join((*CALIBRATION_FILES, *texts.PROSE))}, {found}"

    def placeholders(self) -> dict[str, list[int]]:
        """See `TrainableModel`."""
        return {}


class RecoverySmolAV(SmolAV):
    """SmolAV with new media and questions about them to train on."""

    count = 1600
    """Samples: more than an hour of one core reads."""

    def load_stored(self) -> Any:
        """See `TrainableModel`."""
        return self.load().bfloat16()

    @cached_property
    def _trained(self) -> list[tuple[Any, Any]]:
        """Media and questions; of text alone none that is asked."""
        from benchmarks.smolav.choice import calibration_questions
        from benchmarks.smolav.media import Medium

        asked = {item.question.text for item in self._items}
        return [
            (medium, question)
            for medium, question in calibration_questions(self.count, TRAINING_SEED)
            if medium != Medium() or question.text not in asked
        ]

    def training_samples(self) -> Sequence[Encoded]:
        """See `TrainableModel`."""
        from benchmarks.smolav.data import load_processor

        processor = load_processor(self._folder)
        layout = processor.layout
        return [
            Encoded(
                f"sample {i}",
                processor.inputs(
                    medium,
                    layout.prefix(medium) + layout.question(question) + layout.answer(question),
                ),
            )
            for i, (medium, question) in enumerate(self._trained)
        ]

    @property
    def told(self) -> str:
        """See `TrainableModel`."""
        return f"{self.count} questions of calibration seed {TRAINING_SEED}, none that is asked"

    def placeholders(self) -> dict[str, list[int]]:
        """See `TrainableModel`."""
        from benchmarks.smolav.data import load_processor

        config = load_processor(self._folder).config
        return {kind: [getattr(config, f"{kind}_token_id")] for kind in ("image", "video", "audio")}


MODELS = {model.name: model for model in (RecoverySmolLM2, RecoverySmolAV)}
