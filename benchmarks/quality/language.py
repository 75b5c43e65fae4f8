"""SmolLM2 under the benchmark: on kinds of text that calibration has seen, and on others."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks.quality import smollm2, texts
from benchmarks.quality.base import QualityModel
from benchmarks.quality.cells import TaskItems


class SmolLM2(QualityModel):
    """A real language model on running text. Accuracy is that of the next token."""

    name = "smollm2"
    title = "SmolLM2-135M-Instruct (text)"
    settings: ClassVar[tuple[str, ...]] = ("20", "30", "40", "50", "60", "2:4")
    quick = ("40", "50")
    samples = 24
    windows = 12

    @property
    def base(self) -> Path:
        """Folder of the model and its texts."""
        return self.data / "smollm2"

    @property
    def items(self) -> str:
        digest = smollm2.digest(self.base)
        return f"{self.windows} windows of {smollm2.WINDOW} tokens a text, {digest}"

    def prepare(self, say: Callable[[str], None] = print) -> None:
        smollm2.prepare(self.base, say)

    def weights(self) -> Path:
        return self.base / "model" / "model.safetensors"

    def check(self) -> None:
        if not smollm2.is_ready(self.base):
            raise FileNotFoundError(
                f"SmolLM2 and its texts are not in {self.base}; fetch them with "
                f"python -m benchmarks.quality --prepare --data {self.data}"
            )

    def load(self) -> Any:
        from transformers import AutoModelForCausalLM

        folder = self.weights().parent
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.weights().parent, local_files_only=True)

    def processor(self) -> Any:
        return self._tokenizer

    def batches(self, seed: int, samples: int) -> list[dict[str, torch.Tensor]]:
        ids = smollm2.windows(self.base, smollm2.CALIBRATION_FILES, self._tokenizer, samples, seed)
        return [
            {"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids
        ]

    def texts(self) -> dict[str, torch.Tensor]:
        """Return evaluation windows, task -> [windows, tokens]."""
        folder, count = self.base, self.windows
        return {
            "constitution": smollm2.windows(
                folder, ("us-constitution", "us-declaration"), self._tokenizer, count, None
            ),
            "fortunes": smollm2.windows(
                folder, smollm2.EVALUATION_FILES, self._tokenizer, count, smollm2.EVALUATION_SEED
            ),
        }

    @torch.inference_mode()
    def evaluate(self, model: Any) -> dict[str, TaskItems]:
        found = {}
        for task, rows in self.texts().items():
            right, nll = [], []
            for batch in rows.split(4 * smollm2.WINDOW // rows.shape[1]):
                logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
                wanted = batch[:, 1:]
                right += (logits.argmax(-1) == wanted).sum(1).tolist()
                loss = -logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
                nll += loss.mean(1).tolist()
            found[task] = TaskItems.from_values(
                right, [rows.shape[1] - 1] * len(rows), nll, [], 0.0
            )
        return found


class SmolLM2WithTexts(SmolLM2):
    """SmolLM2 that has the prose and the code of `texts` beside it."""

    @property
    def texts_folder(self) -> Path:
        """Folder of prose and code."""
        return self.base / texts.FOLDER

    def prepare(self, say: Callable[[str], None] = print) -> None:
        super().prepare(say)
        texts.prepare(self.texts_folder, say)

    def check(self) -> None:
        super().check()
        if not self.texts_folder.is_dir():
            raise FileNotFoundError(
                f"there are no texts in {self.texts_folder}; fetch them with python -m "
                f"benchmarks.quality --prepare --models smollm2_elsewhere --data {self.data}"
            )


class SmolLM2Elsewhere(SmolLM2WithTexts):
    """SmolLM2 on kinds of text that no calibration sample comes from, and on long windows.

    `texts.MODULES` has one module that the preset's damping was chosen on, which is left out.
    """

    name = "smollm2_elsewhere"
    title = "SmolLM2-135M-Instruct (other kinds of text)"
    settings = ("40", "50", "60", "2:4")
    modules = tuple(name for name in texts.MODULES if name != "textwrap")
    long = 4 * smollm2.WINDOW

    @property
    def items(self) -> str:
        names = (*(f"{name}.py" for name in self.modules), *(f"{name}.txt" for name in texts.PROSE))
        found = texts.digest(self.texts_folder / name for name in names)
        return f"middles of {len(self.modules)} modules, {self.windows} windows of prose, {found}"

    def texts(self) -> dict[str, torch.Tensor]:
        folder, count = self.texts_folder, self.windows
        return {
            "code": texts.code(folder, self._tokenizer, self.modules),
            "jargon": texts.prose(folder, "jargon", self._tokenizer, count, smollm2.WINDOW),
            "long": texts.prose(folder, "debian-faq", self._tokenizer, count // 2, self.long),
        }
