"""Correct how llm-compressor's sequential pipeline traces some models and data.

Tracing turns the model into a graph that is cut at the decoder layers. Five things go wrong on the
way, most of them without a word:

- Every argument of the root module's ``forward`` becomes a placeholder, and placeholders that the
  first calibration batch does not fill are deleted with everything computed from them. ``**kwargs``
  is one. Where ``forward`` hands it to a wrapped piece of code, as Qwen2.5-Omni's thinker does,
  that deletes the embeddings and with them every decoder layer: nothing is calibrated.
- For the same reason, if the first batch is text alone, the pictures of all other batches are
  ignored; and if the first has a picture, a batch of text alone raises.
- A config in the graph is written down as a call that makes it anew, without the attention
  implementation of the model. Mistral, Mixtral, Phi3 and Qwen3-MoE make their mask from it: their
  layers then get no mask at all, see the future, and attend to padding.
- A ModelOutput that enters a wrapped piece of code arrives there as a plain dict, without the
  attributes that the code reads (Qwen2-Audio: ``outputs.labels``), which raises.
- Where tracing raises, functions of torch such as `torch.arange` stay replaced by ones for tracing,
  and models that are loaded later have wrong buffers.

All are properties of the tracer and the pipeline, so they are corrected there, once a process, for
every modifier. A model that still cannot be traced runs as a whole, see `upstream.fallback`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from llmcompressor.core import active_session
from llmcompressor.pipelines.cache import IntermediatesCache
from llmcompressor.pipelines.sequential import pipeline
from llmcompressor.pipelines.sequential.helpers import SequentialTracer
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from tamp_modifier.calibration.loader import RepeatableLoader
from tamp_modifier.upstream.fallback import traced_or_whole

_DONE = "_tamp_corrected"


def complete_tracing() -> None:
    """Correct llm-compressor's sequential pipeline; a second call does nothing.

    TAMPModifier calls it at initialization, before anything is traced. Call it yourself to use
    another modifier of llm-compressor on these models and data.
    """
    if getattr(SequentialTracer, _DONE, False):
        return
    _keep_what_kwargs_reach(SequentialTracer)
    _keep_configs_and_outputs(SequentialTracer)
    _restore_torch_after_errors(SequentialTracer)
    _trace_with_every_input()
    _give_every_batch_every_input(IntermediatesCache)
    setattr(SequentialTracer, _DONE, True)


def _keep_what_kwargs_reach(tracer: Any) -> None:
    create_proxy = tracer.create_proxy

    @wraps(create_proxy)
    def corrected(self: Any, kind: str, target: Any, *args: Any, **kwargs: Any) -> Any:
        if kind == "placeholder" and isinstance(target, str) and target.startswith("**"):
            return {}  # calibration inputs fill named arguments only
        return create_proxy(self, kind, target, *args, **kwargs)

    tracer.create_proxy = corrected


def _keep_configs_and_outputs(tracer: Any) -> None:
    create_arg = tracer.create_arg

    @wraps(create_arg)
    def corrected(self: Any, a: Any) -> Any:
        if isinstance(a, PreTrainedConfig):
            return self.create_node("call_function", _returning(a), (), {})
        if isinstance(a, ModelOutput):
            fields = {name: self.create_arg(value) for name, value in a.items()}
            return self.create_node("call_function", type(a), (), fields)
        return create_arg(self, a)

    tracer.create_arg = corrected


def _returning(config: PreTrainedConfig) -> Callable[[], PreTrainedConfig]:
    """Return a function that a graph calls to get this very config."""

    def model_config() -> PreTrainedConfig:
        return config

    return model_config


def _restore_torch_after_errors(tracer: Any) -> None:
    patch_for_tracing = tracer.patch_for_tracing

    @wraps(patch_for_tracing)
    @contextmanager
    def corrected(self: Any, root: Any) -> Iterator[None]:
        patched = patch_for_tracing(self, root)
        patched.__enter__()
        try:
            yield
        finally:
            patched.__exit__(None, None, None)  # with an error it would not restore anything

    tracer.patch_for_tracing = corrected


def _trace_with_every_input() -> None:
    trace = pipeline.trace_subgraphs

    @wraps(trace)
    def corrected(model: Any, sample_input: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        data = active_session().state.data
        batch = sample_input
        if data is not None and data.calib is not None:
            sample_input = _with_inputs_of_all(data.calib, sample_input)
        targets = args[0] if args else kwargs["sequential_targets"]
        return traced_or_whole(
            lambda: trace(model, sample_input, *args, **kwargs),
            model,
            batch,
            list(sample_input),
            targets,
        )

    pipeline.trace_subgraphs = corrected


def _with_inputs_of_all(loader: Any, sample: dict[str, Any]) -> dict[str, Any]:
    """Add to a batch the inputs that it lacks and other batches have."""
    complete = dict(sample)
    again = RepeatableLoader(loader)
    for batch in again:
        for name, value in batch.items():
            complete.setdefault(name, value)
    again.rewind()
    return complete


def _give_every_batch_every_input(cache: Any) -> None:
    from_dataloader = cache.from_dataloader.__func__

    @wraps(from_dataloader)
    def corrected(cls: Any, *args: Any, **kwargs: Any) -> Any:
        filled = from_dataloader(cls, *args, **kwargs)
        batches = filled.batch_intermediates
        names = dict.fromkeys(name for batch in batches for name in batch)
        for batch in batches:
            for name in names:
                if name not in batch:
                    batch[name] = cls._offload_value(None, filled.offload_device)
        return filled

    cache.from_dataloader = classmethod(corrected)
