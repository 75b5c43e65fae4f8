"""What a model of the benchmark has to tell and to do."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from benchmarks.quality.cells import TaskItems


class QualityModel(ABC):
    """A model with calibration and evaluation data.

    Attributes:
        name: what the user calls it.
        title: for tables and figures.
        settings: where it is neither unharmed nor destroyed.
        quick: two of them.
        samples: calibration samples.
        only_seeds: the calibration seeds that there may be; empty where all may.
        layer: class name of its decoder layers.

    Args:
        data: folder for what has to be fetched.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    settings: ClassVar[tuple[str, ...]]
    quick: ClassVar[tuple[str, ...]]
    samples: int
    only_seeds: ClassVar[tuple[int, ...]] = ()
    layer: ClassVar[str] = "LlamaDecoderLayer"

    def __init__(self, data: Path) -> None:
        self.data = data

    def prepare(self, say: Callable[[str], None] = print) -> None:
        """Fetch what is not in the repository; by default there is nothing to fetch."""
        say(f"{self.name}: nothing to fetch")

    @abstractmethod
    def check(self) -> None:
        """Refuse to go on where weights or data are missing.

        Raises:
            FileNotFoundError: with what to do about it.
        """

    @abstractmethod
    def load(self) -> Any:
        """Return a fresh dense model, in fp32.

        Its weights are those of bfloat16. Processors without units for bfloat16 emulate its
        products, seven times slower than fp32, and others round them differently; in fp32 cells of
        all processors can stand side by side.
        """

    @abstractmethod
    def batches(self, seed: int, samples: int) -> list[dict[str, torch.Tensor]]:
        """Calibration samples, one a batch, always the same for the same seed."""

    @abstractmethod
    def evaluate(self, model: Any) -> dict[str, TaskItems]:
        """Answers to all items of all tasks."""

    @abstractmethod
    def weights(self) -> Path:
        """Return the file of the dense weights."""

    @classmethod
    def kinds(cls) -> dict[str, tuple[str, ...]]:
        """Kinds of tasks, kind -> tasks, that tables tell apart; none by default."""
        return {}

    def fields(self) -> dict[str, Any]:
        """Fields of TAMPModifier that this model needs."""
        return {}

    def processor(self) -> Any:
        """Tokenizer or processor, which oneshot wants."""
        return None

    @property
    @abstractmethod
    def items(self) -> str:
        """What is asked, in a few words; part of the identity."""

    @cached_property
    def identity(self) -> str:
        """Hash of the weights' bytes and of what is asked, see `cells.Conditions`."""
        digest = hashlib.sha256(self.weights().read_bytes())
        digest.update(self.items.encode())
        return digest.hexdigest()[:16]

    @staticmethod
    def linears(model: Any) -> dict[str, nn.Linear]:
        """Return the Linears of the decoder layers by name: what every method prunes."""
        names = {id(module): name for name, module in model.named_modules()}
        layers = model.get_decoder().layers
        return {names[id(m)]: m for m in layers.modules() if isinstance(m, nn.Linear)}
