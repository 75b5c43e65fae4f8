"""Turns forward hooks on Linears into calls with the tokens of one sample, padding removed.

This is the only room that knows in which shapes activations pass through a model: batches with
padding, experts that see the tokens routed to them, attention weights that arrive after the
projections that wait for them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from llmcompressor.modeling.moe.context import get_calibrate_all_experts_flag
from torch import nn

from tamp_modifier.attention import (
    attention_weights_from_output,
    find_attention_module,
    last_token_attention,
)
from tamp_modifier.batches import TokenBatch
from tamp_modifier.targets import Target

RegisterHook = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Activations:
    """What one Linear saw and gave in one sample.

    Attributes:
        target: the Linear.
        sample: number of the sample in the calibration set.
        inputs: [tokens, in_features], in the model's dtype.
        outputs: [tokens, out_features].
        types: int64 [tokens], modalities.
        attention: float32 [tokens] from the last real token, or None where the layer has no
            weights.
        tokens: int64 [tokens], each row's index among the sample's real tokens; None if it is the
            row.
        routed: False for the tokens of an expert that no token of the batch was routed to.
    """

    target: Target
    sample: int
    inputs: torch.Tensor
    outputs: torch.Tensor
    types: torch.Tensor
    attention: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    routed: bool = True


class Observer:
    """Hooks the target Linears of a model and hands their activations to consumers.

    Args:
        targets: the Linears.
        layers: the decoder layers by name.
        batches: token types of every calibration batch.
        current_batch: gives the number of the batch that is passing through.
        consume: called once a Linear and sample.
        needs_attention: whether activations wait for the attention of their layer.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        layers: Mapping[str, nn.Module],
        batches: Sequence[TokenBatch],
        current_batch: Callable[[], int],
        consume: Callable[[Activations], None],
        needs_attention: bool,
    ) -> None:
        self.layers_without_attention: set[str] = set()
        self._targets = targets
        self._layers = layers
        self._batches = batches
        self._current_batch = current_batch
        self._consume = consume
        self._needs_attention = needs_attention
        self._matched: dict[int, TokenBatch] = {}
        self._routing: dict[str, torch.Tensor] = {}
        self._attention: dict[str, list[torch.Tensor]] = {}
        self._waiting: dict[str, list[Activations]] = defaultdict(list)

    def register(self, model: nn.Module, register_hook: RegisterHook) -> None:
        """Puts the hooks in place, through ``register_hook(module, hook, kind, **options)``."""
        get_embeddings = getattr(model, "get_input_embeddings", None)
        embeddings = get_embeddings() if callable(get_embeddings) else None
        if embeddings is not None:
            register_hook(embeddings, self._match_batch, "forward_pre", with_kwargs=True)
        for target in self._targets:
            hook = partial(self._on_linear, target)
            register_hook(target.module, hook, "forward", with_kwargs=True)
        for experts in sorted({t.experts for t in self._targets if t.experts}):
            hook = partial(self._on_experts, experts)
            register_hook(model.get_submodule(experts), hook, "forward_pre", with_kwargs=True)
        if self._needs_attention:
            self._register_attention(register_hook)

    def _register_attention(self, register_hook: RegisterHook) -> None:
        for name in {t.layer for t in self._targets if t.layer}:
            layer = self._layers[name]
            attention = find_attention_module(layer)
            if attention is None:
                self.layers_without_attention.add(name)
                continue
            register_hook(layer, partial(self._on_layer_start, name), "forward_pre")
            register_hook(attention, partial(self._on_attention, name), "forward")
            register_hook(layer, partial(self._on_layer_end, name), "forward")

    def _match_batch(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Finds out which of the batches read before this one is.

        Raises:
            RuntimeError: it is none of them.
        """
        input_ids = args[0] if args else kwargs.get("input", kwargs.get("input_ids"))
        if not isinstance(input_ids, torch.Tensor) or input_ids.is_floating_point():
            return
        index = self._current_batch()
        candidates = [*self._batches[index : index + 1], *self._batches]
        match = next((batch for batch in candidates if batch.has_ids(input_ids)), None)
        if match is not None:
            self._matched[index] = match
        elif any(
            b.input_ids is not None and b.input_ids.shape == input_ids.shape for b in candidates
        ):
            raise RuntimeError(
                f"calibration batch {index} was not among the batches that TAMP read first, so the "
                "data loader draws other samples in every pass. Give a loader with a fixed order "
                "(shuffle=False)"
            )

    def _batch(self) -> TokenBatch:
        index = self._current_batch()
        return self._matched.get(index) or self._batches[index]

    def _on_linear(
        self, target: Target, _module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any
    ) -> None:
        inputs = args[0] if args else kwargs["input"]
        layer = target.layer
        attention = self._attention.get(layer) if layer is not None else None
        waits = (
            self._needs_attention
            and layer is not None
            and layer not in self.layers_without_attention
            and attention is None
        )
        for activations in self._per_sample(target, inputs.detach(), output.detach()):
            if waits:
                self._waiting[layer].append(activations)  # type: ignore[index]
            else:
                self._emit(activations, attention)

    def _emit(self, activations: Activations, attention: list[torch.Tensor] | None) -> None:
        if attention is not None:
            weights = attention[activations.sample - self._batch().first_sample]
            if activations.tokens is not None:
                weights = weights[activations.tokens]
            activations = Activations(
                **{**activations.__dict__, "attention": weights.to(activations.outputs.device)}
            )
        self._consume(activations)

    def _on_layer_start(self, layer: str, _module: nn.Module, _args: tuple) -> None:
        self._attention.pop(layer, None)

    def _on_attention(self, layer: str, _module: nn.Module, _args: tuple, output: Any) -> None:
        weights = attention_weights_from_output(output)
        if weights is None:
            return
        types = self._batch().types
        _check_length(layer, weights.shape[-1], types)
        self._attention[layer] = last_token_attention(weights, (types >= 0).to(weights.device))
        for activations in self._waiting.pop(layer, []):
            self._emit(activations, self._attention[layer])

    def _on_layer_end(self, layer: str, _module: nn.Module, _args: tuple, _output: Any) -> None:
        if layer not in self._attention:
            self.layers_without_attention.add(layer)
            for activations in self._waiting.pop(layer, []):
                self._emit(activations, None)
        self._attention.pop(layer, None)

    def _on_experts(
        self, experts: str, _module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> None:
        # forward(hidden_states, top_k_index, top_k_weights)
        top_k_index = args[1] if len(args) > 1 else kwargs["top_k_index"]
        self._routing[experts] = top_k_index.detach().reshape(-1, top_k_index.shape[-1])

    def _per_sample(
        self, target: Target, inputs: torch.Tensor, outputs: torch.Tensor
    ) -> Iterator[Activations]:
        batch = self._batch()
        size, length = batch.types.shape
        rows = inputs.shape[:-1].numel()
        if target.layer is None:
            yield from self._outside_decoder(target, batch, inputs, outputs)
            return
        positions = None
        routed = True
        if target.experts is not None:
            positions, inputs, outputs, routed = self._routed_rows(
                target, inputs, outputs, size * length
            )
        elif rows != size * length:
            _check_length(target.name, rows, batch.types)
        if positions is None:
            inputs = inputs.reshape(size, length, -1)
            outputs = outputs.reshape(size, length, -1)
            for number, (real, types) in enumerate(batch.samples(inputs.device)):
                x, o = inputs[number], outputs[number]
                if real is not None:
                    x, o = x[real], o[real]
                yield Activations(target, batch.first_sample + number, x, o, types, routed=routed)
            return
        # Index of every position among its sample's real tokens; padding is left out.
        flat = batch.types.reshape(-1).to(inputs.device)
        order = (batch.types >= 0).cumsum(dim=1).sub(1).reshape(-1).to(inputs.device)
        for number in range(size):
            mine = (positions // length == number) & (flat[positions] >= 0)
            if not bool(mine.any()):
                continue
            at = positions[mine]
            yield Activations(
                target,
                batch.first_sample + number,
                inputs[mine],
                outputs[mine],
                flat[at],
                None,
                order[at],
            )

    def _routed_rows(
        self, target: Target, inputs: torch.Tensor, outputs: torch.Tensor, tokens: int
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, bool]:
        """The rows of the tokens routed to an expert, in order, and their places in the batch."""
        top_k_index = self._routing[target.experts]  # type: ignore[index]
        inputs, outputs = inputs.flatten(0, -2), outputs.flatten(0, -2)
        # The linearised experts look their tokens up in this order.
        positions = top_k_index.T.eq(target.expert).nonzero()[:, 1]  # type: ignore[arg-type]
        if get_calibrate_all_experts_flag() and inputs.shape[0] == tokens:
            if positions.numel() == 0:
                return None, inputs, outputs, False
            positions = positions.sort().values
            return positions, inputs[positions], outputs[positions], True
        if inputs.shape[0] != positions.numel():
            raise RuntimeError(
                f"{target.name} saw {inputs.shape[0]} tokens, but {positions.numel()} were routed "
                "to it"
            )
        positions, order = positions.sort()
        return positions, inputs[order], outputs[order], True

    @staticmethod
    def _outside_decoder(
        target: Target, batch: TokenBatch, inputs: torch.Tensor, outputs: torch.Tensor
    ) -> Iterator[Activations]:
        """Encoders and projectors have tokens of one kind, unknown to input_ids: one modality."""
        size = batch.types.shape[0]
        if inputs.dim() < 3 or inputs.shape[0] != size:
            # Pictures of all samples in one sequence (Qwen-VL): they cannot be told apart.
            inputs, outputs = inputs.flatten(0, -2)[None], outputs.flatten(0, -2)[None]
        for number, (x, o) in enumerate(zip(inputs, outputs, strict=True)):
            x, o = x.flatten(0, -2), o.flatten(0, -2)
            types = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
            yield Activations(target, batch.first_sample + number, x, o, types)


def _check_length(name: str, rows: int, types: torch.Tensor) -> None:
    if rows not in (types.shape[1], types.numel()):
        raise RuntimeError(
            f"{name} saw {rows} tokens, but the batch has token types for {list(types.shape)}. "
            "Where the decoder's sequence is not input_ids, give token_types_fn, which tells the "
            "types of the decoder's own sequence"
        )
