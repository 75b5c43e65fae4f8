"""Turn forward hooks on Linears into calls with the tokens of one sample, padding removed.

This is the only room that knows in which shapes activations pass through a model: batches with
padding, experts that see the tokens routed to them, attention weights that arrive after the
projections that wait for them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from llmcompressor.modeling.moe.context import get_calibrate_all_experts_flag
from llmcompressor.modeling.moe.linear_experts import LinearExperts2D
from torch import nn

from tamp_modifier.calibration.activations import Activations, LayerStates
from tamp_modifier.calibration.attention import (
    attention_weights_from_output,
    find_attention_module,
    last_token_attention,
)
from tamp_modifier.calibration.batches import TokenBatch
from tamp_modifier.calibration.cross_attention import (
    cross_attention_targets,
    real_states,
    states_of,
)
from tamp_modifier.calibration.targets import Target

RegisterHook = Callable[..., Any]


class Observer:
    """Hook the target Linears of a model and hand their activations to consumers.

    Args:
        targets: the Linears.
        layers: the decoder layers by name.
        batches: token types of every calibration batch.
        current_batch: gives the number of the batch that is passing through.
        consume: called once a Linear and sample.
        needs_attention: whether activations wait for the attention of their layer.
        layer_done: called with the states of a whole decoder layer once a batch; the activations
            of its Linears wait for that.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        layers: Mapping[str, nn.Module],
        batches: Sequence[TokenBatch],
        current_batch: Callable[[], int],
        consume: Callable[[Activations], None],
        needs_attention: bool,
        layer_done: Callable[[str, list[LayerStates]], None] | None = None,
    ) -> None:
        self.layers_without_attention: set[str] = set()
        self._targets = targets
        self._layers = layers
        self._batches = batches
        self._current_batch = current_batch
        self._consume = consume
        self._needs_attention = needs_attention
        self._layer_done = layer_done
        self._matched: dict[int, TokenBatch] = {}
        self._cross: set[Target] = set()
        self._states: dict[str, torch.Tensor | None] = {}
        self._routing: dict[str, Callable[[int], torch.Tensor]] = {}
        self._attention: dict[str, list[torch.Tensor]] = {}
        self._waiting: dict[str, list[Activations]] = defaultdict(list)

    def register(self, model: nn.Module, register_hook: RegisterHook) -> None:
        """Put the hooks in place, through ``register_hook(module, hook, kind, **options)``."""
        get_embeddings = getattr(model, "get_input_embeddings", None)
        embeddings = get_embeddings() if callable(get_embeddings) else None
        if embeddings is not None:
            register_hook(embeddings, self._match_batch, "forward_pre", with_kwargs=True)
        self._cross = cross_attention_targets(model, self._targets)
        for name in sorted({target.layer for target in self._cross if target.layer}):
            hook = partial(self._on_cross_layer, name)
            register_hook(self._layers[name], hook, "forward_pre", with_kwargs=True)
        for target in self._targets:
            hook = partial(self._on_linear, target)
            register_hook(target.module, hook, "forward", with_kwargs=True)
        for experts in sorted({t.experts for t in self._targets if t.experts}):
            hook = partial(self._on_experts, experts)
            register_hook(model.get_submodule(experts), hook, "forward_pre", with_kwargs=True)
        if self._layer_done is not None:
            for name in sorted({t.layer for t in self._targets if t.layer}):
                hook = partial(self._on_layer, name)
                register_hook(self._layers[name], hook, "forward", with_kwargs=True)
        elif self._needs_attention:
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
        """Find out which of the batches read before this one is.

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
        inputs = (args[0] if args else kwargs["input"]).detach()
        if target in self._cross:
            states = self._states.get(target.layer or "")
            for activations in states_of(target, self._batch(), inputs, output.detach(), states):
                self._consume(activations)
            return
        layer = target.layer
        attention = self._attention.get(layer) if layer is not None else None
        waits = layer is not None and (
            self._layer_done is not None
            or (
                self._needs_attention
                and layer not in self.layers_without_attention
                and attention is None
            )
        )
        for activations in self._per_sample(target, inputs, output.detach()):
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

    def _on_cross_layer(
        self, layer: str, _module: nn.Module, _args: tuple, kwargs: dict[str, Any]
    ) -> None:
        self._states[layer] = real_states(kwargs)

    def _on_layer_start(self, layer: str, _module: nn.Module, _args: tuple) -> None:
        self._attention.pop(layer, None)

    def _on_attention(self, layer: str, _module: nn.Module, _args: tuple, output: Any) -> None:
        weights = attention_weights_from_output(output)
        if weights is None:
            return
        types = self._batch().types
        _check_length(layer, weights.shape[-1], types.shape[1], types)
        self._attention[layer] = last_token_attention(weights, (types >= 0).to(weights.device))
        for activations in self._waiting.pop(layer, []):
            self._emit(activations, self._attention[layer])

    def _on_layer_end(self, layer: str, _module: nn.Module, _args: tuple, _output: Any) -> None:
        if layer not in self._attention:
            self.layers_without_attention.add(layer)
            for activations in self._waiting.pop(layer, []):
                self._emit(activations, None)
        self._attention.pop(layer, None)

    def _on_layer(
        self, layer: str, _module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any
    ) -> None:
        """Hand over the states of a decoder layer, then what its Linears had waiting."""
        assert self._layer_done is not None
        inputs: Any = args[0] if args else kwargs.get("hidden_states")
        outputs = output[0] if isinstance(output, (tuple, list)) else output
        batch = self._batch()
        for states in (inputs, outputs):
            if not isinstance(states, torch.Tensor) or states.shape[:-1] != batch.types.shape:
                raise RuntimeError(
                    f"{layer} does not take and give hidden states of the batch's shape "
                    f"{list(batch.types.shape)}, so its tokens cannot be followed. Choose another "
                    "selection"
                )
        states = []
        for number, (real, types) in enumerate(batch.samples(outputs.device)):
            x, y = inputs[number].detach(), outputs[number].detach()
            if real is not None:
                x, y = x[real], y[real]
            states.append(LayerStates(batch.first_sample + number, x, y, types))
        self._layer_done(layer, states)
        for activations in self._waiting.pop(layer, []):
            self._consume(activations)

    def _on_experts(
        self, experts: str, module: LinearExperts2D, args: tuple, kwargs: dict[str, Any]
    ) -> None:
        """Note which tokens each expert gets, in the order in which it sees them."""
        top_k_index = args[1] if len(args) > 1 else kwargs.get("top_k_index")
        route: Any = getattr(module, "route", None)
        if route is not None:  # the choice is made inside
            top_k_index = route(args[1])[0]
        if top_k_index is not None:
            slots = top_k_index.detach().reshape(-1, top_k_index.shape[-1]).T
            self._routing[experts] = lambda expert: slots.eq(expert).nonzero()[:, 1]
        else:
            # Llama 4 hands over all tokens once an expert, those not routed to it as zeros.
            rows = args[0].detach().unflatten(0, (module.num_experts, -1)).abs().amax(-1)
            self._routing[experts] = lambda expert: rows[expert].nonzero()[:, 0]

    def _per_sample(
        self, target: Target, inputs: torch.Tensor, outputs: torch.Tensor
    ) -> Iterator[Activations]:
        batch = self._batch()
        if target.layer is None:
            return self._outside_decoder(target, batch, inputs, outputs)
        inputs, outputs = inputs.flatten(0, -2), outputs.flatten(0, -2)
        if target.experts is None:
            _check_length(target.name, inputs.shape[0], batch.types.numel(), batch.types)
            return self._all_tokens(target, batch, inputs, outputs)
        return self._routed_tokens(target, batch, inputs, outputs)

    @staticmethod
    def _all_tokens(
        target: Target,
        batch: TokenBatch,
        inputs: torch.Tensor,
        outputs: torch.Tensor,
        routed: bool = True,
    ) -> Iterator[Activations]:
        inputs = inputs.unflatten(0, batch.types.shape)
        outputs = outputs.unflatten(0, batch.types.shape)
        for number, (real, types) in enumerate(batch.samples(inputs.device)):
            x, o = inputs[number], outputs[number]
            if real is not None:
                x, o = x[real], o[real]
            sample = batch.first_sample + number
            yield Activations(target, sample, x, o, types, x.shape[0], routed=routed)

    def _routed_tokens(
        self, target: Target, batch: TokenBatch, inputs: torch.Tensor, outputs: torch.Tensor
    ) -> Iterator[Activations]:
        """Yield the tokens routed to an expert, or all of them if none is and it sees all."""
        assert target.experts is not None and target.expert is not None
        positions = self._routing[target.experts](target.expert)
        count, tokens = inputs.shape[0], batch.types.numel()
        # Llama 4 hands every expert all tokens, or all tokens of all experts.
        sees_all = count % tokens == 0 and (
            get_calibrate_all_experts_flag() or count != positions.numel()
        )
        if sees_all and count > tokens:
            first = target.expert * tokens
            inputs, outputs = inputs[first : first + tokens], outputs[first : first + tokens]
        elif not sees_all and count != positions.numel():
            raise RuntimeError(
                f"{target.name} saw {count} tokens, but {positions.numel()} were routed to it"
            )
        types = batch.types.flatten().to(inputs.device)
        rows = positions if sees_all else torch.arange(len(positions), device=positions.device)
        real = types[positions] >= 0
        positions, order = positions[real].sort()
        rows = rows[real][order]
        if sees_all and positions.numel() == 0 and bool(inputs.any()):
            yield from self._all_tokens(target, batch, inputs, outputs, routed=False)
        # Index of every position among the real tokens of its sample.
        counts = (batch.types >= 0).cumsum(dim=1)
        sizes, index = counts[:, -1].tolist(), counts.sub(1).flatten().to(inputs.device)
        sample = positions // batch.types.shape[1]
        for number in sample.unique().tolist():
            mine = sample == number
            at, x, o = positions[mine], inputs[rows[mine]], outputs[rows[mine]]
            yield Activations(
                target,
                batch.first_sample + number,
                x,
                o,
                types[at],
                sizes[number],
                tokens=index[at],
            )

    @staticmethod
    def _outside_decoder(
        target: Target, batch: TokenBatch, inputs: torch.Tensor, outputs: torch.Tensor
    ) -> Iterator[Activations]:
        """Yield encoders and projectors have tokens of one kind, unknown to input_ids: one
        modality.
        """
        size = batch.types.shape[0]
        if inputs.dim() < 3 or inputs.shape[0] != size:
            # Pictures of all samples in one sequence (Qwen-VL): they cannot be told apart.
            inputs, outputs = inputs.flatten(0, -2)[None], outputs.flatten(0, -2)[None]
        for number, (x, o) in enumerate(zip(inputs, outputs, strict=True)):
            x, o = x.flatten(0, -2), o.flatten(0, -2)
            types = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
            yield Activations(target, batch.first_sample + number, x, o, types, x.shape[0])


def _check_length(name: str, rows: int, expected: int, types: torch.Tensor) -> None:
    if rows != expected:
        raise RuntimeError(
            f"{name} saw {rows} tokens, but the batch has token types for {list(types.shape)}. "
            "Where the decoder's sequence is not input_ids, give token_types_fn, which tells the "
            "types of the decoder's own sequence"
        )
