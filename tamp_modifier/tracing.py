"""Makes models traceable that llm-compressor's sequential pipeline would leave unpruned or refuse.

Tracing turns every argument of the root module's ``forward`` into a placeholder of the graph, and
then deletes the placeholders that no calibration input fills, with everything computed from them.

- ``**kwargs`` is such a placeholder. Where ``forward`` hands it to a wrapped piece of code, as
  Qwen2.5-Omni's thinker does for audio and vision features, that deletes the embeddings, and with
  them every decoder layer: nothing is calibrated, and nothing is said.
- A ModelOutput that enters a wrapped piece of code arrives there as a plain dict, without the
  attributes that the code reads (Qwen2-Audio: ``outputs.labels``).

Both are properties of the tracer, so they are corrected there, once a process, for every modifier.
Models that were traced correctly before give the same graph up to one node at its end.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from llmcompressor.pipelines.sequential.helpers import SequentialTracer
from transformers.utils import ModelOutput

_DONE = "_tamp_complete_tracing"


def complete_tracing() -> None:
    """Corrects llm-compressor's tracer; a second call does nothing.

    TAMPModifier calls it at initialization, before anything is traced. Call it yourself to use
    another modifier of llm-compressor on Qwen2.5-Omni or Qwen2-Audio in the sequential pipeline.
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
    def create_arg_with_outputs(self: Any, a: Any) -> Any:
        if isinstance(a, ModelOutput):
            fields = {name: self.create_arg(value) for name, value in a.items()}
            return self.create_node("call_function", type(a), (), fields)
        return create_arg(self, a)

    SequentialTracer.create_proxy = create_proxy_but_for_kwargs
    SequentialTracer.create_arg = create_arg_with_outputs
    setattr(SequentialTracer, _DONE, True)
