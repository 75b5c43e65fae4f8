"""Which weights of a pruned model are trained, and in which form."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tamp_modifier.recovery.grid import Rounded
from tamp_modifier.recovery.settings import RecoverySettings


class LowRank(nn.Module):
    """A weight plus a low-rank update of what is kept of it (LoRA, arXiv 2106.09685).

    Args:
        weight: [out, in], the pruned weight.
        rank: of the update.
        generator: draws the first factor; the second begins with zeros.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        rank = min(rank, rows, columns)
        drawn = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
        self.down = nn.Parameter(drawn.to(weight.device, torch.float32))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.register_buffer("kept", weight != 0, persistent=False)
        self.kept: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight, zero where it was."""
        return weight + (self.up @ self.down).to(weight.dtype) * self.kept


@dataclass
class Trained:
    """A model that is ready for training.

    Attributes:
        model: the student.
        linears: its pruned Linears by name.
        dtypes: of every parameter before it was made fp32, by name.
        parametrized: the Linears whose weight is computed from what is trained.
    """

    model: nn.Module
    linears: dict[str, nn.Linear]
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    parametrized: list[nn.Linear] = field(default_factory=list)

    def numel(self) -> int:
        """Return the number of weights that are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @torch.no_grad()
    def finish(self) -> None:
        """Merge updates into the weights and bring all back to the dtypes that they had.

        Weights that were rounded in training come back as they were before rounding: the quantizer
        that follows rounds them in the same way.
        """
        for linear in self.parametrized:
            rounded = isinstance(linear.parametrizations.weight[0], Rounded)  # type: ignore[index, union-attr]
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=not rounded)
        self.parametrized.clear()
        for name, parameter in self.model.named_parameters():
            parameter.data = parameter.data.to(self.dtypes[name])
            parameter.requires_grad_(False)


def pruned_linears(model: nn.Module, names: Iterable[str] = ()) -> dict[str, nn.Linear]:
    """Return the Linears that have zeros, but not only zeros, and are not the output head.

    Args:
        model: the student.
        names: only Linears of these names, where any are given.

    Raises:
        ValueError: there is none.
    """
    wanted = set(names)
    head_of: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = head_of()
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or (wanted and name not in wanted):
            continue
        if module is head:  # of a model that was quantized once it has many zeros that none pruned
            continue
        zeros = int((module.weight == 0).sum())
        # A weight of any model may be zero by chance; a pruned Linear has more of them.
        if module.weight.numel() > zeros > module.weight.numel() / 100:
            found[name] = module
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no pruned Linear, so there is nothing to recover; prune "
            "it first"
        )
    return found


def make_trainable(
    model: nn.Module, linears: dict[str, nn.Linear], settings: RecoverySettings
) -> Trained:
    """Let what `settings` name be trained, in fp32, and nothing else.

    Norms and biases of the decoder layers that hold pruned Linears are always trained. Towers,
    embeddings and the output head never are.

    Args:
        model: the student.
        linears: its pruned Linears.
        settings: what is trained, and against which grid.
    """
    trained = Trained(model, linears, {name: p.dtype for name, p in model.named_parameters()})
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in _small_parameters(model, linears):
        _train(parameter)
    generator = torch.Generator().manual_seed(settings.seed)
    for linear in linears.values():
        if settings.train == "kept":
            weight = linear.weight
            assert isinstance(weight, nn.Parameter)
            _train(weight)
        if settings.scheme is not None:
            rounded = Rounded(settings.scheme, settings.group)
            parametrize.register_parametrization(linear, "weight", rounded)
        elif settings.train == "lora":
            update = LowRank(linear.weight, settings.rank, generator)
            parametrize.register_parametrization(linear, "weight", update)
        else:
            continue
        trained.parametrized.append(linear)
    return trained


def _train(parameter: nn.Parameter) -> None:
    # Steps of 1e-5 of a weight are lost in bfloat16, which has 8 bits.
    parameter.data = parameter.data.float()
    parameter.requires_grad_(True)


def _small_parameters(model: nn.Module, linears: dict[str, nn.Linear]) -> list[nn.Parameter]:
    """Norms and biases of the stack of layers that the pruned Linears are in."""
    stacks = {name.split(".layers.")[0] + ".layers." for name in linears if ".layers." in name}
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() == 1 and any(name.startswith(stack) for stack in stacks)
    ]
