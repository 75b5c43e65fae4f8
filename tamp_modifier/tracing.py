"""Corrects how llm-compressor's sequential pipeline traces some models.

Tracing turns the model into a graph that is cut at the decoder layers. Three things go wrong on the
way, none of them with a word:

- Every argument of the root module's ``forward`` becomes a placeholder, and placeholders that no
  calibration input fills are deleted with everything computed from them. ``**kwargs`` is one. Where
  ``forward`` hands it to a wrapped piece of code, as Qwen2.5-Omni's thinker does, that deletes the
  embeddings and with them every decoder layer: nothing is calibrated.
- A config in the graph is written down as a call that makes it anew, without the attention
  implementation of the model. Mistral, Mixtral, Phi3 and Qwen3-MoE make their mask from it: their
  layers then get no mask at all, see the future, and attend to padding.
- A ModelOutput that enters a wrapped piece of code arrives there as a plain dict, without the
  attributes that the code reads (Qwen2-Audio: ``outputs.labels``), which raises.

All are properties of the tracer, so they are corrected there, once a process, for every modifier.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from llmcompressor.pipelines.sequential.helpers import SequentialTracer
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

_DONE = "_tamp_corrected"


def complete_tracing() -> None:
    """Corrects llm-compressor's tracer; a second call does nothing.

    TAMPModifier calls it at initialization, before anything is traced. Call it yourself to use
    another modifier of llm-compressor on these models in the sequential pipeline.
    """
    if getattr(SequentialTracer, _DONE, False):
        return
    create_proxy, create_arg = SequentialTracer.create_proxy, SequentialTracer.create_arg

    @wraps(create_proxy)
    def create_proxy_but_for_kwargs(
        self: Any, kind: str, target: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if kind == "placeholder" and isinstance(target, str) and target.startswith("**"):
            return {}  # calibration inputs fill named arguments only
        return create_proxy(self, kind, target, *args, **kwargs)

    @wraps(create_arg)
    def create_arg_of_transformers(self: Any, a: Any) -> Any:
        if isinstance(a, PreTrainedConfig):
            return self.create_node("call_function", _returning(a), (), {})
        if isinstance(a, ModelOutput):
            fields = {name: self.create_arg(value) for name, value in a.items()}
            return self.create_node("call_function", type(a), (), fields)
        return create_arg(self, a)

    SequentialTracer.create_proxy = create_proxy_but_for_kwargs  # type: ignore[method-assign]
    SequentialTracer.create_arg = create_arg_of_transformers  # type: ignore[method-assign]
    setattr(SequentialTracer, _DONE, True)


def _returning(config: PreTrainedConfig) -> Callable[[], PreTrainedConfig]:
    """A function that a graph calls to get this very config."""

    def model_config() -> PreTrainedConfig:
        return config

    return model_config
