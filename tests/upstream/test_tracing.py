"""The graph that llm-compressor's sequential pipeline runs computes what the model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from llmcompressor.args.dataset_arguments import DatasetArguments
from llmcompressor.modeling.moe.linearize import linearize_moe
from llmcompressor.pipelines.sequential.helpers import SequentialTracer, Subgraph, trace_subgraphs
from torch import nn

from tamp_modifier.tokens import real_token_mask
from tamp_modifier.upstream.tracing import complete_tracing
from tests.architectures.models import ARCHITECTURES, build, eager


def record_layers(
    model: nn.Module, class_name: str
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Collects the input and the mask of every call of a decoder layer."""
    calls: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        calls.append((hidden.clone(), kwargs.get("attention_mask")))

    for module in model.modules():
        if type(module).__name__ == class_name:
            module.register_forward_pre_hook(hook, with_kwargs=True)
    return calls


def run(subgraphs: list[Subgraph], model: nn.Module, batch: dict[str, Any]) -> None:
    """Runs a traced model as the sequential pipeline does."""
    values = dict(batch)
    for subgraph in subgraphs:
        outputs = subgraph.forward(model, **{name: values[name] for name in subgraph.input_names})
        if isinstance(outputs, dict):
            values.update(outputs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_see_the_same_in_the_graph_as_in_the_model(name: str) -> None:
    complete_tracing()
    model, batches, expected = build(name, padded=True)
    linearize_moe(model)
    ignore = DatasetArguments().tracing_ignore
    subgraphs = trace_subgraphs(model, batches[0], [expected.decoder_layer], ignore)
    assert len(subgraphs) == 3  # what comes before, and two decoder layers

    calls = record_layers(model, expected.decoder_layer)
    # The graph must not have kept anything of the batch it was traced with.
    for batch, types in zip(batches, expected.token_types, strict=True):
        calls.clear()
        with eager(model):
            model(**batch)
        plain = list(calls)
        calls.clear()
        with eager(model):
            run(subgraphs, model, batch)
        assert len(plain) == len(calls) == 2
        real = types >= 0
        for (inputs, mask), (traced_inputs, traced_mask) in zip(plain, calls, strict=True):
            torch.testing.assert_close(traced_inputs[real], inputs[real])
            if mask is None:
                assert traced_mask is None
            else:
                torch.testing.assert_close(traced_mask, mask)
            assert torch.equal(real_token_mask(traced_mask, *types.shape, types.device), real)


def test_correcting_twice_is_correcting_once() -> None:
    complete_tracing()
    once = SequentialTracer.create_proxy, SequentialTracer.create_arg
    complete_tracing()
    assert once == (SequentialTracer.create_proxy, SequentialTracer.create_arg)
