"""Find input columns that may change places, and give them the order that N:4 loses least with.

Two kinds of columns are free, as what feeds them can be reordered without changing the model:

- those of an MLP's down_proj, together with the rows of up_proj and gate_proj;
- those of o_proj within the head of a key and value, together with the rows of v_proj: the same
  order for all query heads that share it.

Columns that read the residual stream (q_proj, up_proj, ...) stay: all layers share their order.
Where a model does something else with these activations, the logits of a calibration batch would
change. They are compared, and the model is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from compressed_tensors.offload import get_execution_device
from compressed_tensors.utils import align_module_device, update_offload_parameter
from llmcompressor.modifiers.utils.hooks import HooksMixin
from torch import Tensor, nn

from tamp_modifier.architectures import ATTENTION, MLPS
from tamp_modifier.calibration.activations import Activations
from tamp_modifier.calibration.targets import Target
from tamp_modifier.permutation import GROUP, best_order
from tamp_modifier.statistics import RowScalars

# Relative change of the logits that rounding explains; another function gives about 1.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
HALF_TOLERANCE = 0.1


@dataclass(frozen=True, eq=False)
class FreeColumns:
    """Columns that may change places in blocks of their own.

    Attributes:
        reader: the Linear whose columns they are.
        givers: Linears whose rows move with them.
        heads: blocks within which columns move; 1 for an MLP.
        shared: how many neighbouring blocks of the reader each row of the givers feeds.
    """

    reader: Target
    givers: tuple[nn.Linear, ...]
    heads: int = 1
    shared: int = 1

    @property
    def width(self) -> int:
        """Columns of a block."""
        return self.reader.module.in_features // (self.heads * self.shared)


def find_free_columns(model: nn.Module, targets: Sequence[Target]) -> list[FreeColumns]:
    """Return target Linears whose input columns may change places, by the names of their parts.

    Raises:
        ValueError: there is none.
    """
    found = []
    for target in targets:
        parent = model.get_submodule(target.name.rpartition(".")[0])
        linears = {n: m for n, m in parent.named_children() if isinstance(m, nn.Linear)}
        name = target.name.rpartition(".")[2]
        free = _of_mlp(target, name, linears) or _of_attention(target, name, parent, linears)
        if free is not None and free.width % GROUP == 0:
            found.append(free)
    if not found:
        raise ValueError(
            "permute_columns finds no Linear whose columns may change places: no down_proj "
            "(or fc2) of an MLP and no o_proj among the targets"
        )
    return found


class ColumnOrder:
    """Reorder the free columns of a model by the dense model's activations.

    Args:
        model: the model.
        free: its free columns.
        prune_n: N of N:4.
    """

    def __init__(self, model: nn.Module, free: Sequence[FreeColumns], prune_n: int) -> None:
        self._model = model
        self._prune_n = prune_n
        self._free = free
        self._scalars = {
            free.reader.name: RowScalars(free.reader.module.in_features) for free in self._free
        }
        self._moved: list[tuple[FreeColumns, Tensor]] = []

    @property
    def targets(self) -> list[Target]:
        """The Linears whose inputs are needed."""
        return [free.reader for free in self._free]

    def collect(self, activations: Activations) -> None:
        """Add the inputs of one Linear in one sample."""
        if activations.routed:
            self._scalars[activations.target.name].update(activations.inputs)

    @torch.no_grad()
    def apply(self, batch: Mapping[str, Any]) -> None:
        """Reorder the columns, and check that the model computes what it did.

        Args:
            batch: inputs of the model.

        Raises:
            ValueError: the logits changed by more than rounding; all weights are as they were.
        """
        before = self._logits(batch)
        for free in self._free:
            scalars = self._scalars.pop(free.reader.name)
            if scalars.tokens and scalars.is_finite():
                order = self._best(free, scalars.result())
                _move(free, order)
                self._moved.append((free, order))
        after = self._logits(batch)
        allowed = TOLERANCE.get(next(self._model.parameters()).dtype, HALF_TOLERANCE)
        change = float((after - before).norm() / before.norm().clamp_min(1e-30))
        if not change <= allowed:
            self.undo()
            raise ValueError(
                f"permute_columns changes the logits of {type(self._model).__name__} by "
                f"{100 * change:.2g} %: its columns may not change places. Leave it out"
            )

    @torch.no_grad()
    def undo(self) -> None:
        """Bring all columns back to their places."""
        for free, order in self._moved:
            _move(free, order.argsort())
        self._moved.clear()

    def _best(self, free: FreeColumns, scalars: Tensor) -> Tensor:
        """Return the order within every block: int64 [heads, width]."""
        with align_module_device(free.reader.module):
            weight = free.reader.module.weight.detach().float()
        metric = (weight.abs() * scalars.to(weight).sqrt()).unflatten(1, (free.heads, -1))
        blocks = metric.unflatten(2, (free.shared, free.width))  # [out, heads, shared, width]
        return torch.stack(
            [best_order(blocks[:, head].flatten(0, 1), self._prune_n) for head in range(free.heads)]
        )

    def _logits(self, batch: Mapping[str, Any]) -> Tensor:
        device = get_execution_device(self._model)
        inputs = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
        with HooksMixin.disable_hooks():
            output = self._model(**inputs)
        if not isinstance(output, Tensor):
            output = output.logits if hasattr(output, "logits") else output[0]
        return output.float().cpu()


def _of_mlp(target: Target, name: str, linears: Mapping[str, nn.Linear]) -> FreeColumns | None:
    for reader, givers in MLPS:
        if name == reader and linears.keys() == {reader, *givers}:
            modules = tuple(linears[giver] for giver in givers)
            if all(m.out_features == target.module.in_features for m in modules):
                return FreeColumns(target, modules)
    return None


def _of_attention(
    target: Target, name: str, parent: nn.Module, linears: Mapping[str, nn.Linear]
) -> FreeColumns | None:
    width = getattr(parent, "head_dim", None)
    if name != "o_proj" or linears.keys() != ATTENTION or not isinstance(width, int):
        return None
    columns, rows = target.module.in_features, linears["v_proj"].out_features
    # A q_proj that is wider than o_proj holds a gate for the columns of o_proj.
    plain = linears["q_proj"].out_features == columns and linears["k_proj"].out_features == rows
    if not plain or columns % rows or rows % width:
        return None
    return FreeColumns(target, (linears["v_proj"],), rows // width, columns // rows)


def _move(free: FreeColumns, order: Tensor) -> None:
    """Put the columns of the reader and the rows of the givers into another order.

    Args:
        free: what moves.
        order: int64 [heads, width], which column of its block comes to each place.
    """
    starts = torch.arange(free.heads * free.shared).view(free.heads, free.shared, 1) * free.width
    columns = (starts + order[:, None]).flatten()
    rows = (torch.arange(free.heads)[:, None] * free.width + order).flatten()
    _reorder(free.reader.module, "weight", 1, columns)
    for giver in free.givers:
        _reorder(giver, "weight", 0, rows)
        if giver.bias is not None:
            _reorder(giver, "bias", 0, rows)


def _reorder(module: nn.Module, name: str, dim: int, order: Tensor) -> None:
    with align_module_device(module):
        value = getattr(module, name).detach()
        moved = value.index_select(dim, order.to(value.device))
    update_offload_parameter(module, name, moved)
