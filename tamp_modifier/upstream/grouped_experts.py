"""Make Linears of fused experts that llm-compressor does not know.

llm-compressor replaces the experts of a layer by one Linear per expert and projection where their
class carries transformers' ``use_experts_implementation``. Aria's grouped GEMM and Step-3's experts
do not, so they would stay dense. They are registered here; saving brings them back into the layout
that they came from, as `upstream.experts` does with all others.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from compressed_tensors.offload import get_cache_init_kwargs, offload_module
from llmcompressor.modeling.moe.linear_experts import ExpertMLPWithGate, LinearExperts2D
from torch import Tensor, nn


class GroupedExperts(LinearExperts2D):
    """The experts of one layer as Linears; subclasses know one layout of the fused tensors.

    Args:
        experts: the fused experts.
    """

    is_concatenated = True
    is_transposed = False
    has_bias = False
    has_gate = True
    sources: ClassVar[tuple[str, ...]]
    """Class names of the fused experts."""

    def __init__(self, experts: Any) -> None:
        views = self.views(experts, 0)
        hidden, intermediate = views["down_proj.weight"].shape
        gate: Any = getattr(self, "_apply_gate")  # noqa: B009  # a method, whatever upstream declares
        mlps = [
            _Expert(hidden, intermediate, False, gate, views["down_proj.weight"].dtype)
            for _ in range(self.count(experts))
        ]
        nn.ModuleList.__init__(self, mlps)
        self.num_experts = len(mlps)
        self.intermediate_size = intermediate

    @classmethod
    @torch.no_grad()
    def from_experts_module(cls, experts: Any, config: Any) -> GroupedExperts:
        """Return Linears with the weights of fused experts."""
        with torch.device("meta"):
            self = cls(experts)
        self.to_empty(device=next(experts.parameters()).device)
        self.train(experts.training)
        for index in range(self.num_experts):
            self[index].copy_from_experts_module(experts, index)  # type: ignore[operator]
        self.__dict__.update(
            _source_experts_cls=type(experts), _source_config=config.get_text_config()
        )
        options = get_cache_init_kwargs(experts)
        for module in self.modules():
            offload_module(module, **options)
        return self

    @staticmethod
    def count(experts: Any) -> int:
        """Return how many fused experts there are."""
        raise NotImplementedError

    @staticmethod
    def views(experts: Any, index: int) -> dict[str, Tensor]:
        """Return the part of the fused tensors of one expert, [out, in] by name of its Linear."""
        raise NotImplementedError


class _Expert(ExpertMLPWithGate):
    def copy_from_experts_module(self, experts: Any, index: int) -> None:
        for kind in GroupedExperts.__subclasses__():
            if type(experts).__name__ in kind.sources:
                for name, view in kind.views(experts, index).items():
                    self.get_parameter(name).copy_(view)


class AriaLinearExperts(GroupedExperts):
    """Aria: two grouped GEMMs, transposed, and a router whose choice is made inside."""

    sources = ("AriaExperts",)

    def __init__(self, experts: Any) -> None:
        super().__init__(experts)
        self.top_k = experts.config.moe_topk

    def _apply_gate(self, gate_up: Tensor) -> Tensor:  # type: ignore[override]
        gate, up = gate_up.chunk(2, dim=-1)
        return nn.functional.silu(gate) * up

    def route(self, router_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return index and weight of each token's experts, [tokens, top_k]."""
        logits, index = torch.topk(router_logits, k=self.top_k, dim=1)
        return index, nn.functional.softmax(logits, dim=-1)

    def forward(self, hidden_states: Tensor, router_logits: Tensor) -> Tensor:  # type: ignore[override]
        """Compute what the grouped GEMMs do, one expert after the other."""
        return super().forward(hidden_states, *self.route(router_logits))

    @staticmethod
    def count(experts: Any) -> int:
        """Return how many fused experts there are."""
        return experts.fc1.weight.shape[0]

    @staticmethod
    def views(experts: Any, index: int) -> dict[str, Tensor]:
        """Return the part of the fused tensors of one expert, [out, in] by name of its Linear."""
        gate, up = experts.fc1.weight.data[index].T.chunk(2)
        down = experts.fc2.weight.data[index].T
        return {"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": down}


class Step3LinearExperts(GroupedExperts):
    """Step-3: the usual layout, with a limit on the activations."""

    sources = ("Step3p7Experts",)

    def __init__(self, experts: Any) -> None:
        super().__init__(experts)
        self.limit = experts.limit
        self.act_fn = experts.act_fn

    def _apply_gate(self, gate_up: Tensor) -> Tensor:  # type: ignore[override]
        gate, up = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate).clamp(max=self.limit) * up.clamp(-self.limit, self.limit)

    @staticmethod
    def count(experts: Any) -> int:
        """Return how many fused experts there are."""
        return experts.down_proj.shape[0]

    @staticmethod
    def views(experts: Any, index: int) -> dict[str, Tensor]:
        """Return the part of the fused tensors of one expert, [out, in] by name of its Linear."""
        gate, up = experts.gate_up_proj.data[index].chunk(2)
        down = experts.down_proj.data[index]
        return {"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": down}


def register_experts(model: nn.Module) -> None:
    """Tell llm-compressor of the fused experts of a model that it does not know."""
    kinds = {name: kind for kind in GroupedExperts.__subclasses__() for name in kind.sources}
    for cls in {type(module) for module in model.modules()}:
        if cls.__name__ in kinds:
            LinearExperts2D._registry[cls] = kinds[cls.__name__]
