"""What the dense model says to the samples: asked each time, or once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tamp_modifier.data import Collator, Encoded
from tamp_modifier.files import whole_file
from tamp_modifier.recovery.losses import (
    divergence,
    divergence_of_top,
    hidden_error,
    logits_at,
)


@dataclass(frozen=True)
class Said:
    """A student's outputs for a batch.

    Attributes:
        logits: [positions, vocabulary], those that count, sample by sample (`losses.logits_at`).
        hidden: [samples, tokens, features] of each layer; None where they are not compared.
        counted: bool [samples, tokens - 1], positions that count (`losses.counted_positions`).
    """

    logits: Tensor
    hidden: Sequence[Tensor] | None
    counted: Tensor


class Teacher(Protocol):
    """Compare a student with the dense model."""

    def loss(self, inputs: dict[str, Tensor], numbers: Sequence[int], said: Said) -> Tensor:
        """Return the mean loss over the counted positions of a batch.

        Args:
            inputs: of the models.
            numbers: of the samples.
            said: by the student.
        """


class LiveTeacher:
    """The dense model itself, run beside the student.

    Args:
        model: the dense model, in evaluation mode.
        temperature: of both distributions.
        hidden: weight of the error of the hidden states.
    """

    def __init__(self, model: Any, temperature: float = 1.0, hidden: float = 0.0) -> None:
        self.model = model
        self.temperature = temperature
        self.hidden = hidden

    def loss(self, inputs: dict[str, Tensor], numbers: Sequence[int], said: Said) -> Tensor:
        """See `Teacher`."""
        counted = said.counted
        with torch.no_grad():
            theirs, states = logits_at(
                self.model, _of_type(inputs, self.model.dtype), counted, self.hidden > 0
            )
        loss = divergence(said.logits, theirs, self.temperature)
        if self.hidden:
            assert said.hidden is not None and states is not None
            loss = loss + self.hidden * hidden_error(
                [mine[:, :-1] for mine in said.hidden], [own[:, :-1] for own in states], counted
            )
        return loss


class KeptTeacher:
    """The dense model's most likely tokens, one safetensors file for each sample.

    Args:
        folder: of the files, which `ask_once` writes.
        temperature: that they were made with.
    """

    def __init__(self, folder: Path, temperature: float = 1.0) -> None:
        self.folder = folder
        self.temperature = temperature

    def loss(self, inputs: dict[str, Tensor], numbers: Sequence[int], said: Said) -> Tensor:
        """See `Teacher`."""
        indices, shares = [], []
        for number in numbers:
            with safe_open(answer_file(self.folder, number), "pt") as file:
                indices.append(file.get_tensor("indices").to(said.logits.device).long())
                shares.append(file.get_tensor("log_shares").to(said.logits.device))
        return divergence_of_top(
            said.logits, torch.cat(indices), torch.cat(shares), self.temperature
        )


def answer_file(folder: Path, number: int) -> Path:
    """Return the file of a sample."""
    return folder / f"{number:06d}.safetensors"


@torch.no_grad()
def ask_once(
    model: Any,
    samples: Sequence[Encoded],
    collator: Collator,
    folder: Path,
    top_k: int,
    temperature: float,
    counted: Callable[[dict[str, Tensor]], Tensor],
    step: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write what the dense model says to each sample; files that are there stay.

    Args:
        model: the dense model.
        samples: all of them.
        collator: makes a batch of one.
        folder: of the files; made if need be.
        top_k: most likely tokens of each position; all where the vocabulary has fewer.
        temperature: of the distribution.
        counted: which positions of a batch count.
        step: called after every sample with how many are done, and of how many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(samples):
        path = answer_file(folder, number)
        if not path.exists():
            batch = {name: value.to(model.device) for name, value in collator([sample]).items()}
            logits, _ = logits_at(model, _of_type(batch, model.dtype), counted(batch))
            logits = logits.float() / temperature
            top = logits.log_softmax(-1).topk(min(top_k, logits.shape[-1]), dim=-1)
            tensors = {
                "indices": top.indices.to("cpu", torch.int32).contiguous(),
                "log_shares": top.values.cpu().contiguous(),
            }
            with whole_file(path) as temporary:
                save_file(tensors, temporary)
        step(number + 1, len(samples))


def _of_type(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Bring pixels and features to a model's dtype; numbers of one dimension stay, as collated."""
    return {
        name: value.to(dtype) if value.is_floating_point() and value.dim() > 1 else value
        for name, value in inputs.items()
    }
